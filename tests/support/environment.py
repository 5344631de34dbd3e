"""The environment of a process that has imported libraries before it got its own."""

import importlib.util
import sys
from pathlib import Path

PLAIN = str | bool | int | float | Path | None
# Modules that read the environment when they are imported.
READERS = (
    "huggingface_hub.constants",
    "diffusers.utils.constants",
    "gradio.node_server",
    "gradio.oauth",
    "gradio.screen_recording_utils",
    "gradio.tunneling",
)


def follow_environment() -> None:
    """Libraries read the environment when they are imported, and others take what they have read."""
    for reader in filter(None, map(sys.modules.get, READERS)):
        before, now = dict(vars(reader)), vars(_imported_anew(reader))
        changed = {
            name: value
            for name, value in now.items()
            if name.isupper() and isinstance(value, PLAIN) and before[name] != value
        }
        for module in list(sys.modules.values()):
            for name in changed.keys() & vars(module).keys():
                if vars(module)[name] == before[name]:
                    setattr(module, name, changed[name])
    if hub := sys.modules.get("huggingface_hub"):
        hub.hf_api.api.endpoint = hub.constants.ENDPOINT


def _imported_anew(module):
    """What would be in the module's place were it imported now."""
    found = importlib.util.module_from_spec(module.__spec__)
    module.__spec__.loader.exec_module(found)
    return found
