"""D-OPSD: a LoRA for few-step image models that keeps the few steps."""

import logging

__version__ = "0.1.0"

# At its import bitsandbytes tells people on a CPU to install a package that nothing here needs.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
