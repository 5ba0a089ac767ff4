"""
Owns the tests of store.damages: what checks remember across restarts.

Knows nothing of how damage is found or mended.
Invariants: what was written is read again; what cannot be read costs the memory, not the start.
Source: store/damages.py.
"""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from p2pcache.core.digest import BlobDigest
from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.errors import StoreFullError
from p2pcache.store import damages
from p2pcache.store.damages import (
    CHECK_FILE_NAME,
    CheckMemory,
    Damage,
    DamagePlace,
    DamageState,
    save_memory,
)
from tests.samples import COMMIT, OTHER_COMMIT

WEEK_S = 7 * 86_400.0
BLOB, OTHER = BlobDigest("sha256", "ab" * 32), BlobDigest("gitsha1", "cd" * 20)
PLACE = DamagePlace(SnapshotId(RepoId("hf", "models", "org/name"), COMMIT), "a/b.bin", True)
ELSEWHERE = DamagePlace(SnapshotId(RepoId("hf", "datasets", "d"), OTHER_COMMIT), "c", False)
DAMAGE = Damage(BLOB, (0, 7), (PLACE, ELSEWHERE), True, 5.0, detail="why")


def test_memory_written_is_read_again(tmp_path: Path) -> None:
    """Every field of every damage, in order, and the pass; for the owner's eyes alone."""
    gone = Damage(OTHER, (), (), False, 6.0, DamageState.LOST, is_gone=True)
    memory = CheckMemory(3.5, {BLOB: DAMAGE, OTHER: gone})
    save_memory(tmp_path, memory.to_bytes())
    assert CheckMemory.load(tmp_path) == memory
    assert (tmp_path / CHECK_FILE_NAME).stat().st_mode & 0o777 == 0o600


def test_memory_of_a_healing_that_was_cut_off_is_of_a_quarantined_file(tmp_path: Path) -> None:
    """Nobody heals it any more when somebody reads this."""
    memory = CheckMemory(None, {BLOB: replace(DAMAGE, state=DamageState.HEALING)})
    save_memory(tmp_path, memory.to_bytes())
    assert CheckMemory.load(tmp_path).damages[BLOB].state is DamageState.QUARANTINED


@pytest.mark.parametrize(
    "change",
    [
        {"blob": "sha256:../../etc"},
        {"chunks": [-1]},
        {"chunks": ["x"]},
        {"chunks": 7},
        {"chunks": [1 << 70]},
        {"places": [{}]},
        {"places": [{**{"hub": "hf", "kind": "models", "repo": "../x"}, "commit": COMMIT}]},
        {"state": "unheard of"},
        {"found_at": "yesterday"},
        {"found_at": None},
    ],
    ids=range(10),
)
def test_memory_that_is_none_of_ours_is_an_empty_one(
    tmp_path: Path, change: dict[str, object]
) -> None:
    """A torn or foreign file is forgotten."""
    content = {"pass_started_at": 1.0, "damaged": [{**DAMAGE.to_json(), **change}]}
    (tmp_path / CHECK_FILE_NAME).write_text(json.dumps(content))
    assert CheckMemory.load(tmp_path) == CheckMemory()


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"damaged": 1}'])
def test_memory_without_form_is_an_empty_one(tmp_path: Path, content: bytes) -> None:
    """Whatever is in the file, the daemon starts."""
    (tmp_path / CHECK_FILE_NAME).write_bytes(content)
    assert CheckMemory.load(tmp_path) == CheckMemory()
    assert CheckMemory.load(tmp_path / "nowhere") == CheckMemory()


def test_memory_that_cannot_be_written_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is a full disk; the old memory stands."""
    save_memory(tmp_path, CheckMemory(1.0).to_bytes())

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreFullError):
        save_memory(tmp_path, CheckMemory(2.0).to_bytes())
    assert CheckMemory.load(tmp_path).pass_started_wall_s == 1.0


def test_memory_damage_found_again_keeps_its_links() -> None:
    """A file that is damaged a second time before it was healed goes back where it was first."""
    memory = CheckMemory()
    memory.note(DAMAGE)
    unlinked = tuple(replace(place, is_linked=False) for place in DAMAGE.places)
    memory.note(replace(DAMAGE, chunks=(3,), places=unlinked))
    assert memory.damages[BLOB].places == DAMAGE.places
    memory.note(replace(DAMAGE, state=DamageState.HEALED))
    memory.note(replace(DAMAGE, places=unlinked))
    assert memory.damages[BLOB].places == unlinked


def test_memory_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are forgotten when there are too many."""
    monkeypatch.setattr(damages, "DAMAGES_KEPT_MAX", 3)
    memory = CheckMemory()
    blobs = [BlobDigest("sha256", f"{n:064x}") for n in range(5)]
    for blob in blobs:
        memory.note(replace(DAMAGE, blob=blob))
    assert list(memory.damages) == blobs[2:]


def test_memory_forgets_what_is_healed_or_lost_and_old() -> None:
    """What is still to be healed stays, however old."""
    memory = CheckMemory()
    blobs = [BlobDigest("sha256", f"{n:064x}") for n in range(5)]
    for blob, state in zip(blobs, [*DamageState, DamageState.HEALED], strict=True):
        memory.note(replace(DAMAGE, blob=blob, state=state, found_wall_s=10.0))
    memory.note(replace(DAMAGE, blob=blobs[4], state=DamageState.HEALED, found_wall_s=30.0))
    memory.drop_healed(20.0)
    left = [damage.state for damage in memory.damages.values()]
    assert left == [DamageState.QUARANTINED, DamageState.HEALING, DamageState.HEALED]


@pytest.mark.parametrize(
    ("started", "is_anew", "begins"),
    [(None, False, True), (90.0, False, False), (90.0, True, True), (101.0, False, True)],
)
def test_memory_continues_a_pass_that_is_not_through(
    started: float | None, is_anew: bool, begins: bool
) -> None:
    """A pass goes on unless it is too old, of the future, or not wanted."""
    memory = CheckMemory(started)
    assert memory.continue_pass(100.0, within_s=WEEK_S, is_anew=is_anew) == begins
    assert memory.pass_started_wall_s == (100.0 if begins else started)
    assert memory.continue_pass(100.0 + WEEK_S, within_s=WEEK_S, is_anew=False)
