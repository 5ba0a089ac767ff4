"""
Owns the tests of store.pinfile.

Knows nothing of the engine.
Invariants: what is written is read back; what cannot be read costs the pins in it alone.
Source: store/pinfile.py; docs/reference/store-layout.md.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from p2pcache.core.refs import RepoId
from p2pcache.errors import StoreFullError
from p2pcache.store.catalogue import RefRow
from p2pcache.store.index import Index
from p2pcache.store.pinfile import PINS_NAME, read_pins, restore_pins, write_pins
from tests.samples import COMMIT, OTHER_COMMIT

REPO = RepoId("hf", "models", "org/name")
PINS = [
    RefRow(REPO, "main", COMMIT, 1.5),
    RefRow(RepoId("hf", "datasets", "org/data"), "refs/pr/1", OTHER_COMMIT, 2.0),
]


def test_pins_are_read_back(tmp_path: Path) -> None:
    """Models and data sets, branches with slashes; no file means no pins."""
    assert read_pins(tmp_path) == []
    write_pins(tmp_path, PINS)
    assert read_pins(tmp_path) == PINS
    write_pins(tmp_path, [])
    assert read_pins(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == [PINS_NAME]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"pins": 7}', b"\xff", b"[" * 100_000, b'{"pins": null}']
)
def test_pins_of_a_damaged_file_are_none(tmp_path: Path, content: bytes) -> None:
    """A daemon starts whatever is in there."""
    (tmp_path / PINS_NAME).write_bytes(content)
    assert read_pins(tmp_path) == []


def test_pins_that_cannot_be_are_passed_over(tmp_path: Path) -> None:
    """One bad row does not cost the others."""
    write_pins(tmp_path, PINS[:1])
    rows = json.loads((tmp_path / PINS_NAME).read_bytes())["pins"]
    bad: list[object] = [
        7,
        {},
        {**rows[0], "model": "../../etc"},
        {**rows[0], "commit": "main"},
        {**rows[0], "revision": "a b"},
        {**rows[0], "added_wall_s": "never"},
    ]
    (tmp_path / PINS_NAME).write_text(json.dumps({"pins": [*bad, *rows]}))
    assert read_pins(tmp_path) == PINS[:1]


def test_pins_file_is_whole_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old content stands, and the error says what to do."""
    write_pins(tmp_path, PINS)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        with pytest.raises(StoreFullError, match="free some space"):
            write_pins(tmp_path, [])
    assert read_pins(tmp_path) == PINS


def test_pins_are_restored_into_an_index_without_overwriting_its_own(tmp_path: Path) -> None:
    """What an index already says of a revision is newer than the file."""
    write_pins(tmp_path, PINS)
    index = Index(tmp_path / "index.sqlite")
    index.roots.put_pin(RefRow(REPO, "main", OTHER_COMMIT, 9.0))
    assert restore_pins(tmp_path, index) == 1
    assert index.roots.list_pins() == [PINS[1], RefRow(REPO, "main", OTHER_COMMIT, 9.0)]
    index.close()
