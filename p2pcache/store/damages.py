"""
Owns `STORE/check.json`: which files were found damaged and what became of them, and when the pass
that is not through yet began.

Knows nothing of how damage is found or mended.
Invariants: a file that cannot be read is an empty one: it is a memory, not a truth; bounded.
Source: docs/reference/store-layout.md.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import CHUNKS_PER_BLOB_MAX
from p2pcache.core.refs import RepoId, SnapshotId, parse_commit
from p2pcache.errors import InputError
from p2pcache.store.disk import store_error, try_read
from p2pcache.store.home import write_file_atomically

CHECK_FILE_NAME = "check.json"
# More files than a disk damages before somebody replaces it; the oldest are dropped.
DAMAGES_KEPT_MAX = 10_000
GONE_DETAIL = "The file is gone: deleted by hand? Pull it to have it back."
# It names private repositories.
_MODE = 0o600


class DamageState(StrEnum):
    """What became of a damaged file."""

    QUARANTINED = "quarantined"
    HEALING = "healing"
    HEALED = "healed"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class DamagePlace:
    """Where a damaged file belongs; `is_linked`: the hub tree had it there."""

    snapshot_id: SnapshotId
    path: str
    is_linked: bool

    def __str__(self) -> str:
        return f"{self.snapshot_id}: {self.path}"


@dataclass(frozen=True, slots=True)
class Damage:
    """
    A file that was found damaged. `is_gone`: its row was there and its file was not.
    """

    blob: BlobDigest
    chunks: tuple[int, ...]
    places: tuple[DamagePlace, ...]
    is_public: bool
    found_wall_s: float
    state: DamageState = DamageState.QUARANTINED
    detail: str = ""
    is_gone: bool = False

    @property
    def is_open(self) -> bool:
        """Return whether the file is not here again."""
        return self.state is not DamageState.HEALED

    def to_json(self) -> dict[str, object]:
        """Return what parse() reads."""
        # One that was being healed is not any more, once somebody reads this.
        is_healing = self.state is DamageState.HEALING
        return {
            "blob": str(self.blob),
            "chunks": list(self.chunks),
            "places": [_place_to_json(place) for place in self.places],
            "public": self.is_public,
            "found_at": self.found_wall_s,
            "state": (DamageState.QUARANTINED if is_healing else self.state).value,
            "detail": self.detail,
            "gone": self.is_gone,
        }

    @classmethod
    def parse(cls, fields: dict[str, Any]) -> Damage:
        """
        Read what to_json() wrote.

        Raises:
            InputError, ValueError, KeyError, TypeError: It is something else.
        """
        chunks = tuple(int(index) for index in fields["chunks"])
        if any(not 0 <= index < CHUNKS_PER_BLOB_MAX for index in chunks):
            raise InputError("No blob has such a chunk.")
        return cls(
            BlobDigest.parse(str(fields["blob"])),
            chunks,
            tuple(_read_place(place) for place in fields["places"]),
            bool(fields["public"]),
            float(fields["found_at"]),
            DamageState(fields["state"]),
            str(fields["detail"]),
            bool(fields["gone"]),
        )


@dataclass(slots=True)
class CheckMemory:
    """What checks have to remember across restarts. One thread."""

    # When the pass over everything began that is not through yet.
    pass_started_wall_s: float | None = None
    damages: dict[BlobDigest, Damage] = field(default_factory=dict)

    @classmethod
    def load(cls, root: Path) -> CheckMemory:
        """
        Read the memory of a store; an empty one when there is none, or none that is right.

        Raises:
            StoreError: It cannot be read now; an empty one would be written over it.
        """
        raw = try_read(root / CHECK_FILE_NAME)
        try:
            content = json.loads(raw or b"")
            started = content["pass_started_at"]
            damages = [Damage.parse(fields) for fields in content["damaged"]]
            started_wall_s = None if started is None else float(started)
        except (InputError, ValueError, KeyError, TypeError, RecursionError):
            return cls()
        return cls(started_wall_s, {damage.blob: damage for damage in damages[-DAMAGES_KEPT_MAX:]})

    def to_bytes(self) -> bytes:
        """Return what load() reads."""
        content = {
            "pass_started_at": self.pass_started_wall_s,
            "damaged": [damage.to_json() for damage in self.damages.values()],
        }
        return json.dumps(content).encode()

    def note(self, damage: Damage) -> None:
        """Take in a damage; one of the same file before it is replaced."""
        before = self.damages.pop(damage.blob, None)
        if before is not None and before.is_open:
            # Found again before it was healed: the hub tree had it where it had it then.
            damage = replace(damage, places=_join(before.places, damage.places))
        self.damages[damage.blob] = damage
        while len(self.damages) > DAMAGES_KEPT_MAX:
            del self.damages[next(iter(self.damages))]

    def continue_pass(self, now_wall_s: float, *, within_s: float, is_anew: bool) -> bool:
        """
        Go on with the pass over everything that was not through, or begin one.

        Args:
            now_wall_s: When this check began.
            within_s: A pass that began longer ago is given up.
            is_anew: Begin one in any case.

        Returns:
            Whether a new pass began.
        """
        started = self.pass_started_wall_s
        if started is not None and 0 <= now_wall_s - started < within_s and not is_anew:
            return False
        self.pass_started_wall_s = now_wall_s
        self.drop_healed(now_wall_s)
        return True

    def drop_healed(self, before_wall_s: float) -> None:
        """Forget what was found before a moment and is here again, or will never be."""
        over = (DamageState.HEALED, DamageState.LOST)
        for damage in list(self.damages.values()):
            if damage.state in over and damage.found_wall_s < before_wall_s:
                del self.damages[damage.blob]


def save_memory(root: Path, content: bytes) -> None:
    """
    Write what to_bytes() made, so that a crash leaves the old memory or this.

    Raises:
        StoreError: The disk failed or is full.
    """
    path = root / CHECK_FILE_NAME
    try:
        write_file_atomically(path, content, mode=_MODE)
    except OSError as error:
        raise store_error(error, path) from error


def _join(before: tuple[DamagePlace, ...], now: tuple[DamagePlace, ...]) -> tuple[DamagePlace, ...]:
    linked = {str(place) for place in before if place.is_linked}
    return tuple(replace(place, is_linked=place.is_linked or str(place) in linked) for place in now)


def _place_to_json(place: DamagePlace) -> dict[str, object]:
    repo = place.snapshot_id.repo
    return {
        "hub": repo.hub,
        "kind": repo.kind,
        "repo": repo.name,
        "commit": place.snapshot_id.commit,
        "path": place.path,
        "linked": place.is_linked,
    }


def _read_place(fields: dict[str, Any]) -> DamagePlace:
    repo = RepoId.of(str(fields["hub"]), str(fields["kind"]), str(fields["repo"]))
    snapshot_id = SnapshotId(repo, parse_commit(str(fields["commit"])))
    return DamagePlace(snapshot_id, str(fields["path"]), bool(fields["linked"]))
