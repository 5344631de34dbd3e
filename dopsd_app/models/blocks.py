"""The blocks of a transformer, of which a memory plan counts so many."""

from collections.abc import Sequence
from typing import Any

from dopsd_app.models.protocol import Transformer


def blocks_of(transformer: Transformer, block_lists: Sequence[str]) -> list[Any]:
    """Its blocks in the order in which a pass goes through them."""
    return [block for name in block_lists for block in transformer.get_submodule(name)]
