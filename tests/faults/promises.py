"""
Owns what a store acknowledged as durable, put together from what its process told.

Knows nothing of how it was made durable.
Invariants: what the store itself took back, before it began to take it back, is owed no more.
Source: reliability.md §3.2, oracle (ii).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.faults.child import Message
from tests.faults.world import World


@dataclass(slots=True)
class Promises:
    """What must still be there. Chunks by (blob, index), with their digest in hex."""

    chunks: dict[tuple[str, int], str] = field(default_factory=dict)
    blobs: set[str] = field(default_factory=set)
    # Repository → whether its ref was written too.
    snapshots: dict[str, bool] = field(default_factory=dict)
    pins: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, world: World, complete: Iterable[str], pinned: Iterable[str]) -> Promises:
        """Return what a store with these repositories owes before anything happens."""
        made = cls(snapshots=dict.fromkeys(complete, True), pins=set(pinned))
        for repo in made.snapshots:
            made.blobs |= set(world.names_of(repo).values())
        return made

    def take_in(self, messages: Iterable[Message]) -> None:
        """Apply what a child told, in its order."""
        for message in messages:
            kind, name = message["what"], message.get("name", "")
            if kind == "durable":
                for index, digest in message["chunks"].items():
                    self.chunks[name, int(index)] = digest
            elif kind == "void":
                self._void(name, message.get("chunks"))
            elif kind == "published":
                self.blobs.add(name)
            elif kind == "withdrawn":
                self.blobs.discard(name)
                self._void(name, None)
            elif kind == "complete":
                self.snapshots[name] = True
            elif kind == "dropped":
                self.snapshots.pop(name, None)
            elif kind == "pinned":
                self.pins.add(name)
            elif kind == "unpinned":
                self.pins.discard(name)

    def _void(self, blob: str, indexes: list[int] | None) -> None:
        for key in [
            k for k in self.chunks if k[0] == blob and (indexes is None or k[1] in indexes)
        ]:
            del self.chunks[key]
