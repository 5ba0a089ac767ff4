"""
Owns the tests of store.home.

Knows nothing of blobs.
Invariants: one owner at a time; what is not ours is left as it was.
Source: store/home.py.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pcache.errors import (
    ConfigError,
    SchemaTooNewError,
    StoreError,
    StoreFullError,
    StoreLockedError,
)
from p2pcache.store.home import (
    ENDPOINT_NAME,
    MARKER_NAME,
    STORE_SCHEMA,
    TOKEN_NAME,
    StoreHome,
    write_file_atomically,
)

OPEN_IN_ANOTHER_PROCESS = """
import sys
from pathlib import Path
from p2pcache.store.home import StoreHome
try:
    StoreHome(Path(sys.argv[1])).open().close()
except Exception as error:
    print(type(error).__name__)
else:
    print("opened")
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[StoreHome]:
    """An open store."""
    opened = StoreHome(tmp_path / "store").open()
    yield opened
    opened.close()


def open_elsewhere(root: Path) -> str:
    """Open a store in another process; returns the error's name, or "opened"."""
    command = [sys.executable, "-c", OPEN_IN_ANOTHER_PROCESS, str(root)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    return done.stdout.strip()


def mode_of(path: Path) -> int:
    """Return the permission bits of a file."""
    return stat.S_IMODE(path.stat().st_mode)


def names_in(path: Path) -> list[str]:
    """List a folder."""
    return sorted(child.name for child in path.iterdir())


def test_home_new_folder_becomes_a_store(home: StoreHome) -> None:
    """Marker, token, identity and hub folder are made, for us alone to write."""
    assert names_in(home.root) == ["admin-token", "hub", "lock", MARKER_NAME, "peer-id"]
    marker = json.loads((home.root / MARKER_NAME).read_text())
    assert marker == {"schema_version": STORE_SCHEMA}
    assert mode_of(home.root) == 0o755
    assert mode_of(home.root / TOKEN_NAME) == 0o600
    assert mode_of(home.root / "peer-id") == 0o600
    assert len(home.admin_token) == 64
    assert len(home.peer_id) == 32


def test_home_second_process_is_locked_out_until_the_first_closes(home: StoreHome) -> None:
    """One daemon per store; the lock goes with its owner."""
    assert open_elsewhere(home.root) == StoreLockedError.__name__
    home.close()
    assert open_elsewhere(home.root) == "opened"


def test_home_second_opening_in_this_process_is_locked_out(home: StoreHome) -> None:
    """The lock holds within a process too, and a failed opening does not take it away."""
    home.write_endpoint("http://127.0.0.1:1", "0.0.0.0:2", "me")
    with pytest.raises(StoreLockedError):
        StoreHome(home.root).open()
    assert (home.root / ENDPOINT_NAME).exists()
    assert open_elsewhere(home.root) == StoreLockedError.__name__


def test_home_opened_again_keeps_token_and_identity(home: StoreHome) -> None:
    """What clients and peers know us by does not change with a restart."""
    home.close()
    again = StoreHome(home.root).open()
    again.close()
    assert (again.admin_token, again.peer_id) == (home.admin_token, home.peer_id)


@pytest.mark.parametrize("content", [b"", b"short\n", b"Z" * 64, b"\xff" * 64, b"0" * 65])
def test_home_unreadable_token_is_made_anew(home: StoreHome, content: bytes) -> None:
    """A token that cannot be one is replaced, and its file closed to others again."""
    home.close()
    (home.root / TOKEN_NAME).write_bytes(content)
    (home.root / TOKEN_NAME).chmod(0o644)
    again = StoreHome(home.root).open()
    again.close()
    assert len(again.admin_token) == 64
    assert (home.root / TOKEN_NAME).read_text().strip() == again.admin_token
    assert mode_of(home.root / TOKEN_NAME) == 0o600


def test_home_token_readable_by_others_is_closed(home: StoreHome) -> None:
    """A mode that somebody changed is put right."""
    home.close()
    (home.root / TOKEN_NAME).chmod(0o644)
    StoreHome(home.root).open().close()
    assert mode_of(home.root / TOKEN_NAME) == 0o600


def test_home_foreign_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    """Somebody's documents are not made a store: no lock file, no change of mode."""
    folder = tmp_path / "documents"
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError) as caught:
        StoreHome(folder).open()
    assert "letter.txt" in str(caught.value)
    assert names_in(folder) == ["letter.txt"]
    assert mode_of(folder) == 0o777


def test_home_folder_with_hidden_files_or_parts_of_a_store_is_taken(tmp_path: Path) -> None:
    """A fresh mount's lost+found, dot files and a store that lost its marker are fine."""
    for name in ("lost+found", ".nfs1", "blobs", "partial"):
        (tmp_path / name).mkdir()
    StoreHome(tmp_path).open().close()
    assert (tmp_path / MARKER_NAME).exists()


def test_home_folder_that_others_may_write_is_closed_to_them(tmp_path: Path) -> None:
    """Group and others lose the right to write; reading stays."""
    root = tmp_path / "store"
    root.mkdir()
    root.chmod(0o777)
    StoreHome(root).open().close()
    assert mode_of(root) == 0o755


def test_home_on_a_file_system_without_modes_warns_and_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where chmod fails, or does nothing, the store opens; its operator is told what that means."""
    root = tmp_path / "store"
    root.mkdir()
    root.chmod(0o777)

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "chmod", refuse)
    opened = StoreHome(root).open()
    opened.close()
    assert len(opened.admin_token) == 64
    assert "file system without modes" in caplog.text


def test_home_of_a_newer_schema_is_refused_and_left_alone(home: StoreHome) -> None:
    """A later release's store is not touched."""
    home.close()
    text = json.dumps({"schema_version": STORE_SCHEMA + 1})
    (home.root / MARKER_NAME).write_text(text)
    with pytest.raises(SchemaTooNewError):
        StoreHome(home.root).open()
    assert (home.root / MARKER_NAME).read_text() == text
    assert open_elsewhere(home.root) == SchemaTooNewError.__name__


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"schema_version": '])
def test_home_unreadable_marker_is_an_error_that_says_what_to_do(
    home: StoreHome, text: str
) -> None:
    """We do not guess at a store that we cannot read."""
    home.close()
    (home.root / MARKER_NAME).write_text(text)
    with pytest.raises(StoreError) as caught:
        StoreHome(home.root).open()
    assert "remove that file" in str(caught.value)


def test_home_schema_of_another_type_counts_as_newer(home: StoreHome) -> None:
    """A schema that is no number is of a release that we do not know."""
    home.close()
    (home.root / MARKER_NAME).write_text('{"schema_version": "two"}')
    with pytest.raises(SchemaTooNewError):
        StoreHome(home.root).open()


def test_home_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is not ours is not used, even if we could write to it."""
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(ConfigError):
        StoreHome(tmp_path).open()
    assert names_in(tmp_path) == []


def test_home_that_is_a_file_is_a_configuration_error(tmp_path: Path) -> None:
    """The message says to name a folder."""
    (tmp_path / "store").write_text("")
    with pytest.raises(ConfigError):
        StoreHome(tmp_path / "store").open()


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, StoreFullError), (errno.EROFS, ConfigError)]
)
def test_home_disk_that_refuses_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    """A full disk and a folder that we may not write are different problems; no lock is kept."""

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(kind):
            StoreHome(tmp_path / "store").open()
    StoreHome(tmp_path / "store").open().close()


def test_home_lock_that_fails_for_another_reason_is_not_called_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails at the lock is a configuration problem."""

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("p2pcache.store.lock.fcntl.flock", fail)
    with pytest.raises(ConfigError):
        StoreHome(tmp_path / "store").open()


def test_home_endpoint_is_there_while_open(home: StoreHome) -> None:
    """The command line finds the daemon by it; closing twice is fine."""
    home.write_endpoint("http://127.0.0.1:1", "0.0.0.0:2", "me")
    told = json.loads((home.root / ENDPOINT_NAME).read_text())
    expected = {"local": "http://127.0.0.1:1", "peer": "0.0.0.0:2", "name": "me"}
    assert told == {**expected, "pid": os.getpid()}
    home.close()
    home.close()
    assert not (home.root / ENDPOINT_NAME).exists()


def test_home_endpoint_on_a_full_disk_is_a_store_error(
    home: StoreHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that cannot leave word of itself says why."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreFullError):
        home.write_endpoint("http://127.0.0.1:1", "0.0.0.0:2", "me")


def test_write_atomically_failure_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a torn file nor a temporary one is left."""
    path = tmp_path / "file"
    write_file_atomically(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="Input/output"):
            write_file_atomically(path, b"new")
    assert names_in(tmp_path) == ["file"]
    assert path.read_bytes() == b"old"


def test_write_atomically_disk_that_takes_parts_gets_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """write(2) may write less than it was given: on a disk that fills up it does."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, view: real(fd, bytes(view[:3])))
    write_file_atomically(tmp_path / "file", b"some content", mode=0o640)
    assert (tmp_path / "file").read_bytes() == b"some content"
    assert mode_of(tmp_path / "file") == 0o640


def test_write_atomically_longest_name_is_fine(tmp_path: Path) -> None:
    """The temporary name does not grow with the final one."""
    path = tmp_path / ("x" * 255)
    write_file_atomically(path, b"content")
    assert path.read_bytes() == b"content"
