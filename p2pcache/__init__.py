"""A peer-to-peer, content-addressed cache for AI model files."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from p2pcache.client import Client, IndexView, read_index

__all__ = ["Client", "IndexView", "__version__", "read_index"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import what programs use when they use it: a command that needs none of it starts faster."""
    if name in __all__:
        found: object = getattr(import_module("p2pcache.client"), name)
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
