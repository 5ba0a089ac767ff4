"""
Owns the tests of store.index and store.schema: opening, durability, damage.

Knows nothing of rows (test_bloblist.py, test_catalogue.py).
Invariants: a corrupt index and a newer one are set aside, neither is lost.
Source: store/index.py.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlite_utils import Database

from p2pcache.core.refs import RepoId
from p2pcache.errors import IndexCorruptError, SchemaTooNewError, StoreError, StoreFullError
from p2pcache.store.catalogue import RefRow
from p2pcache.store.index import Index, open_database, translate_error
from p2pcache.store.schema import migrations
from tests.samples import COMMIT

REPO = RepoId("hf", "models", "org/name")
REF = RefRow(REPO, "main", COMMIT, 7.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the index is."""
    return tmp_path / "index.sqlite"


@pytest.fixture
def index(path: Path) -> Iterator[Index]:
    """An open index with one row."""
    opened = Index(path)
    opened.catalogue.put_ref(REF)
    yield opened
    opened.close()


def test_index_new_is_empty_and_asks_to_be_filled(path: Path) -> None:
    """The first index has every table and says that it was built."""
    index = Index(path)
    assert index.was_rebuilt
    assert index.blobs.measure() == (0, 0)
    assert index.catalogue.list_snapshots() == []
    assert index.roots.list_pins() == []
    index.close()


def test_index_opened_again_keeps_its_rows(index: Index, path: Path) -> None:
    """Once it was filled nothing is rebuilt, nothing migrated twice."""
    index.note_filled()
    index.close()
    again = Index(path)
    assert not again.was_rebuilt
    assert again.catalogue.find_ref(REPO, "main") == REF
    again.close()


def test_index_whose_first_start_did_not_end_is_filled_again(index: Index, path: Path) -> None:
    """Tables without what the store knows are no index yet; the rows that are there stay."""
    index.close()
    again = Index(path)
    assert again.was_rebuilt
    assert again.catalogue.find_ref(REPO, "main") == REF
    again.close()


def test_index_is_durable_when_a_call_returns(index: Index, path: Path) -> None:
    """A write-ahead log, synced at every commit; another reader sees the row at once."""
    db = index._db
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert not db.conn.in_transaction
    reader = sqlite3.connect(path)
    assert reader.execute("SELECT commit_id FROM refs").fetchall() == [(COMMIT,)]
    reader.close()


def test_index_tables_are_strict(index: Index) -> None:
    """A value of a wrong type is refused by the database itself."""
    with pytest.raises(sqlite3.IntegrityError):
        index._db.execute("INSERT INTO chunk_places VALUES (x'00', 'blob', 'not a number')")


@pytest.mark.parametrize("content", [b"not a database at all" * 500, b"SQLite format 3\x00" * 300])
def test_index_that_is_no_database_is_set_aside(path: Path, content: bytes) -> None:
    """The broken file is kept under another name, and a new index begun."""
    path.write_bytes(content)
    index = Index(path)
    assert index.was_rebuilt
    assert index.blobs.measure() == (0, 0)
    index.close()
    assert path.with_name("index.sqlite.corrupt-1").read_bytes() == content


def test_index_with_a_damaged_page_is_set_aside(index: Index, path: Path) -> None:
    """The quick check finds what a header does not show."""
    index.close()
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(bytes(content))
    again = Index(path)
    assert again.was_rebuilt
    again.close()
    assert path.with_name("index.sqlite.corrupt-1").read_bytes() == bytes(content)


def test_index_broken_again_is_set_aside_under_another_name(path: Path) -> None:
    """The second broken index does not overwrite the first, and takes its log along."""
    for number in (1, 2):
        path.write_bytes(b"broken %d" % number * 1000)
        path.with_name("index.sqlite-wal").write_bytes(b"log %d" % number)
        Index(path).close()
    for number in (1, 2):
        aside = path.with_name(f"index.sqlite.corrupt-{number}")
        assert aside.read_bytes().startswith(b"broken %d" % number)


def make_newer(index: Index) -> None:
    """Let an index be of a later release, as far as its migrations say."""
    index._db.execute(
        "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) "
        "VALUES ('p2pcache', 'm999_future', '2100-01-01')"
    )
    index._db.conn.commit()
    index.close()


def test_index_of_a_newer_release_is_refused_by_who_only_opens_it(index: Index, path: Path) -> None:
    """A migration that we do not know means that we do not know the tables."""
    make_newer(index)
    with pytest.raises(SchemaTooNewError) as caught:
        open_database(path)
    assert "m999_future" in str(caught.value)


def test_index_of_a_newer_release_is_set_aside_as_it_is(index: Index, path: Path) -> None:
    """The files say all that it says of them; its own release finds it again."""
    make_newer(index)
    for number in (1, 2):
        again = Index(path)
        assert again.was_rebuilt
        assert again.catalogue.find_ref(REPO, "main") is None
        assert path.with_name(f"index.sqlite.newer-{number}").exists()
        make_newer(again)
    assert not path.with_name("index.sqlite.corrupt-1").exists()
    aside = sqlite3.connect(path.with_name("index.sqlite.newer-1"))
    assert aside.execute("SELECT commit_id FROM refs").fetchall() == [(COMMIT,)]
    aside.close()


def test_index_of_an_older_release_is_migrated(tmp_path: Path) -> None:
    """What an older release wrote is kept, in today's tables."""
    path = tmp_path / "index.sqlite"
    with sqlite3.connect(path) as old:
        db = Database(old, execute_plugins=False)
        assert next(m.name for m in migrations.pending(db)) == "m001_initial"
        migrations.apply(db, stop_before="m002_refuted")
        db["pins"].insert(  # type: ignore[union-attr]
            {
                "hub": "hf",
                "kind": "models",
                "repo": "org/name",
                "revision": "main",
                "commit_id": COMMIT,
                "added_wall_s": 3.0,
            }
        )
    old.close()
    index = Index(path)
    # An older release did not say that it had come to the end of a start; one more costs little.
    assert index.was_rebuilt
    assert index.roots.list_pins() == [RefRow(REPO, "main", COMMIT, 3.0)]
    assert index.checks.list_all() == []
    index.close()


@pytest.mark.parametrize("keeps_log", [True, False])
def test_index_that_was_emptied_asks_to_be_filled(
    index: Index, path: Path, keeps_log: bool
) -> None:
    """A file of no bytes is no index, though it has the name of one."""
    log = path.with_name("index.sqlite-wal").read_bytes()
    index.close()
    path.write_bytes(b"")
    if keeps_log:
        path.with_name("index.sqlite-wal").write_bytes(log)
    again = Index(path)
    assert again.was_rebuilt
    again.close()


def test_index_with_a_garbled_name_in_a_row_is_set_aside(index: Index, path: Path) -> None:
    """A changed byte that SQLite cannot see is seen where a name is no name any more."""
    index._db.execute(
        "INSERT INTO blobs (digest, size_bytes, layout, is_proven, is_public, mtime_ns, inode, "
        "verified_wall_s) VALUES ('sha257:00', 1, 'fixed-4m', 1, 1, 1, 1, 1.0)"
    )
    index._db.conn.commit()
    index.close()
    again = Index(path)
    assert again.was_rebuilt
    again.close()
    assert path.with_name("index.sqlite.corrupt-1").exists()


def test_index_in_a_folder_that_is_not_there_is_a_store_error(tmp_path: Path) -> None:
    """What cannot be opened is not called corrupt."""
    with pytest.raises(StoreError) as caught:
        open_database(tmp_path / "nowhere" / "index.sqlite")
    assert type(caught.value) is StoreError


def test_index_without_room_is_a_full_store(tiny_disk: Path) -> None:
    """A disk without room for the index says so, and the index is not called corrupt."""
    filler = tiny_disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1 << 16)):
            pass
    with pytest.raises(StoreFullError):
        Index(tiny_disk / "index.sqlite")
    filler.unlink()
    Index(tiny_disk / "index.sqlite").close()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (sqlite3.SQLITE_FULL, StoreFullError),
        (sqlite3.SQLITE_CORRUPT, IndexCorruptError),
        (sqlite3.SQLITE_NOTADB, IndexCorruptError),
        (sqlite3.SQLITE_IOERR_READ, StoreError),
    ],
)
def test_index_error_of_sqlite_is_translated(path: Path, code: int, kind: type[StoreError]) -> None:
    """Full, broken and failed are told apart by SQLite's own code, extended codes included."""
    error = sqlite3.DatabaseError("said SQLite")
    error.sqlite_errorcode = code
    assert type(translate_error(error, path)) is kind


def test_index_that_cannot_be_set_aside_is_a_store_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged index stays where it is, and the start says why it fails."""
    path.write_bytes(b"no database" * 100)

    def fail(*_: object) -> Path:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(StoreError, match="disk failed"):
        Index(path)
    assert path.read_bytes().startswith(b"no database")
