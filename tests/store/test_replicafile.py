"""
Owns the tests of store.replicafile.

Knows nothing of orders.
Invariants: what is written is read back; what cannot be read never stops a start.
Source: store/replicafile.py; docs/reference/store-layout.md.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2pcache.core.refs import ModelReference, RepoId
from p2pcache.errors import StoreError, StoreFullError
from p2pcache.store.replicafile import (
    REPLICAS_NAME,
    Holder,
    ReplicaRow,
    read_replicas,
    write_replicas,
)
from tests.samples import COMMIT, OTHER_COMMIT, OTHER_PEER_ID, PEER_ID

HOLDERS = {
    PEER_ID: Holder(PEER_ID, "node-1", "http://10.0.0.1:7777", "12" * 8),
    OTHER_PEER_ID: Holder(OTHER_PEER_ID, "knoten-ü", "http://[::1]:7777", ""),
}
ROWS = [
    ReplicaRow(ModelReference(RepoId("hf", "models", "org/name"), "main"), COMMIT, 3, HOLDERS),
    ReplicaRow(ModelReference(RepoId("hf", "datasets", "org/x"), "refs/pr/1"), OTHER_COMMIT, 1),
    ReplicaRow(ModelReference(RepoId("ms", "models", "org/name")), COMMIT, 2),
]
FAILING = ["open", "fsync", "rename"]
DAMAGED = [
    *(b"", b"{", b"7", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"replicas": '),
    *(
        b'{"replicas": %s}' % rows
        for rows in (b"7", b"null", b'"abc"', b"[7]", b"[[]]", b'{"a":1}')
    ),
    b'{"replicas": [{"count": %s}]}' % (b"9" * 5000),
]


def fail_with(number: int) -> Callable[..., Any]:
    """Return a system call that fails."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def change_first(root: Path, **fields: object) -> None:
    """Change fields of the first row on the disk."""
    content = json.loads((root / REPLICAS_NAME).read_bytes())
    content["replicas"][0] |= fields
    (root / REPLICAS_NAME).write_text(json.dumps(content))


def test_replicas_are_read_back(tmp_path: Path) -> None:
    """Both hubs, every kind, holders in their order; no file means none are kept."""
    assert read_replicas(tmp_path) == []
    write_replicas(tmp_path, ROWS)
    found = read_replicas(tmp_path)
    assert found == ROWS
    assert list(found[0].holders) == [PEER_ID, OTHER_PEER_ID]
    write_replicas(tmp_path, [])
    assert read_replicas(tmp_path) == []
    assert os.listdir(tmp_path) == [REPLICAS_NAME]


def test_replicas_file_has_the_form_that_is_documented(tmp_path: Path) -> None:
    """Later releases read it; what it names may be private, so only we do."""
    write_replicas(tmp_path, ROWS[:1])
    holders = [
        {"id": h.peer_id, "name": h.name, "url": h.url, "order": h.order_id}
        for h in HOLDERS.values()
    ]
    row = {"model": "org/name", "revision": "main", "commit": COMMIT, "count": 3}
    assert json.loads((tmp_path / REPLICAS_NAME).read_bytes()) == {
        "format_version": 1,
        "replicas": [row | {"holders": holders}],
    }
    assert stat.S_IMODE((tmp_path / REPLICAS_NAME).stat().st_mode) == 0o600


@pytest.mark.parametrize("content", DAMAGED, ids=lambda content: ascii(content)[:20])
def test_replicas_of_a_damaged_file_are_none(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A daemon starts whatever is in there, and says what to do."""
    (tmp_path / REPLICAS_NAME).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert read_replicas(tmp_path) == []
    assert "pin with --replicas again" in caplog.text


def test_replicas_file_that_was_cut_anywhere_is_none_or_whole(tmp_path: Path) -> None:
    """A file system that lost its end does not make other models of it."""
    write_replicas(tmp_path, ROWS)
    whole = (tmp_path / REPLICAS_NAME).read_bytes()
    for end in range(0, len(whole), 7):
        (tmp_path / REPLICAS_NAME).write_bytes(whole[:end])
        assert read_replicas(tmp_path) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "../../etc"},
        {"model": "other:org/name"},
        {"revision": "a b"},
        {"revision": ""},
        {"commit": "main"},
        {"commit": None},
        {"count": None},
        {"count": "many"},
        {"count": 1.5},
        {"count": 0},
        {"count": -5},
        {"count": True},
        {"revision": None},
        {"model": 7},
        {"holders": [7]},
        {"holders": ["x"]},
        {"holders": [{"id": PEER_ID}]},
        {"holders": [{"id": PEER_ID, "name": None, "url": 7, "order": ""}]},
        {"holders": None},
    ],
    ids=str,
)
def test_replicas_row_that_cannot_be_is_not_made_something_else(
    tmp_path: Path, fields: dict[str, object]
) -> None:
    """No copy is ordered of what nobody asked for, and none given up that somebody did."""
    write_replicas(tmp_path, ROWS)
    change_first(tmp_path, **fields)
    # Nor does it cost the others: the next write would make their loss permanent.
    assert read_replicas(tmp_path) == ROWS[1:]


def test_replicas_fields_of_later_releases_are_ignored(tmp_path: Path) -> None:
    """Whoever goes back a release keeps the copies."""
    write_replicas(tmp_path, ROWS)
    change_first(tmp_path, sites=["a"], until=None)
    content = json.loads((tmp_path / REPLICAS_NAME).read_bytes())
    (tmp_path / REPLICAS_NAME).write_text(json.dumps(content | {"zones": {}}))
    assert read_replicas(tmp_path) == ROWS


def test_replicas_file_that_is_a_folder_holds_none(tmp_path: Path) -> None:
    """Somebody's mistake is no reason not to start; writing says that it fails."""
    (tmp_path / REPLICAS_NAME).mkdir()
    assert read_replicas(tmp_path) == []
    with pytest.raises(StoreError):
        write_replicas(tmp_path, ROWS)
    assert os.listdir(tmp_path) == [REPLICAS_NAME]


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE])
def test_replicas_that_cannot_be_read_now_are_not_taken_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Or the next write would forget them."""
    write_replicas(tmp_path, ROWS)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fail_with(number))
        with pytest.raises(StoreError):
            read_replicas(tmp_path)
    assert read_replicas(tmp_path) == ROWS


@pytest.mark.parametrize("call", FAILING)
@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, StoreFullError), (errno.EIO, StoreError)]
)
def test_replicas_write_that_fails_leaves_the_old_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, kind: type[StoreError]
) -> None:
    """At any step; nothing is left beside the file, and the error names it."""
    write_replicas(tmp_path, ROWS)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail_with(number))
        with pytest.raises(kind, match=REPLICAS_NAME):
            write_replicas(tmp_path, [])
    assert read_replicas(tmp_path) == ROWS
    assert os.listdir(tmp_path) == [REPLICAS_NAME]


def test_replicas_on_a_full_disk_stay_as_they_were(tiny_disk: Path) -> None:
    """A real one: the write fails midway, and what it took is given back."""
    write_replicas(tiny_disk, ROWS)
    filler = tiny_disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1 << 16)):
            pass
    references = [ModelReference(RepoId("hf", "models", f"org/{n}")) for n in range(999)]
    many = [ReplicaRow(reference, COMMIT, 1) for reference in references]
    with pytest.raises(StoreFullError, match="free some space"):
        write_replicas(tiny_disk, many)
    assert read_replicas(tiny_disk) == ROWS
    assert sorted(os.listdir(tiny_disk)) == ["filler", REPLICAS_NAME]
    filler.unlink()
    write_replicas(tiny_disk, many)
    assert read_replicas(tiny_disk) == many


def test_replicas_are_durable_before_they_have_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes, the name, the folder: in this order after a power cut there is one whole file."""
    calls: list[tuple[str, str]] = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        calls.append(("fsync", "folder" if path == tmp_path else "file"))
        real_fsync(fd)

    def rename(source: Path, target: Path) -> None:
        calls.append(("rename", target.name))
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    write_replicas(tmp_path, ROWS)
    assert calls == [("fsync", "file"), ("rename", REPLICAS_NAME), ("fsync", "folder")]
