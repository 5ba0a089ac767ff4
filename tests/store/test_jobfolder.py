"""
Owns the tests of store.jobfolder.

Knows nothing of what a job is.
Invariants: what is written is read back; what cannot be read costs that job alone.
Source: store/jobfolder.py; docs/reference/store-layout.md.
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

from p2pcache.errors import StoreError, StoreFullError
from p2pcache.store.jobfolder import JOBS_NAME, read_jobs, remove_job, write_job

ID, OTHER_ID = "0123456789abcdef", "f" * 16
RECORD: dict[str, object] = {"id": ID, "order": {"model": "org/nü", "include": ["*"]}, "bytes": 7}
OTHER: dict[str, object] = {"id": OTHER_ID}
# How a file is written: it is begun under another name, synced, named.
STEPS = ["open", "fsync", "rename"]


def fail_with(number: int) -> Callable[..., Any]:
    """Return a system call that fails."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def watch_disk(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Return a list that takes down, in order, what is synced, renamed and removed from now on."""
    calls: list[tuple[str, str]] = []
    real_fsync, real_rename, real_unlink = os.fsync, os.rename, os.unlink

    def fsync(fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        calls.append(("fsync", "folder" if path == root / JOBS_NAME else "file"))
        real_fsync(fd)

    def rename(source: Path, target: Path) -> None:
        calls.append(("rename", target.name))
        real_rename(source, target)

    def unlink(path: Path) -> None:
        real_unlink(path)
        calls.append(("unlink", path.name))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(os, "unlink", unlink)
    return calls


def path_of(root: Path, job_id: str = ID) -> Path:
    """Return where a job's record lies."""
    return root / JOBS_NAME / f"{job_id}.json"


def names_in(root: Path) -> list[str]:
    """List the folder of jobs."""
    return sorted(os.listdir(root / JOBS_NAME))


def test_jobs_are_read_back_until_they_are_removed(tmp_path: Path) -> None:
    """The last word on each; no folder means no jobs."""
    assert read_jobs(tmp_path) == []
    remove_job(tmp_path, ID)
    write_job(tmp_path, ID, RECORD)
    write_job(tmp_path, OTHER_ID, OTHER)
    write_job(tmp_path, ID, RECORD | {"bytes": 9})
    assert read_jobs(tmp_path) == [RECORD | {"bytes": 9}, OTHER]
    remove_job(tmp_path, ID)
    remove_job(tmp_path, ID)
    assert read_jobs(tmp_path) == [OTHER]
    assert names_in(tmp_path) == [f"{OTHER_ID}.json"]


def test_jobs_are_readable_by_the_daemons_user_alone(tmp_path: Path) -> None:
    """They name what may be private, whatever the umask is."""
    before = os.umask(0)
    try:
        write_job(tmp_path, ID, RECORD)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / JOBS_NAME).stat().st_mode) == 0o700
    assert stat.S_IMODE(path_of(tmp_path).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"id": "012', b"\xff\xfe", b"[" * 100_000, b'{"id": %s}' % (b"9" * 5000)],
)
def test_jobs_damaged_file_costs_that_job(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The others go on, the log says what to do, and the file stays for whoever looks into it."""
    write_job(tmp_path, OTHER_ID, OTHER)
    path_of(tmp_path).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert read_jobs(tmp_path) == [OTHER]
    assert "order it again" in caplog.text
    assert path_of(tmp_path).read_bytes() == content


@pytest.mark.parametrize(
    "content",
    [None, 7, [], "id", {}, {"id": None}, {"id": OTHER_ID}, {"id": f"../{JOBS_NAME}/{ID}"}],
)
def test_jobs_record_of_something_else_is_passed_over(tmp_path: Path, content: object) -> None:
    """A record is that of the job whose name its file has, or none."""
    write_job(tmp_path, ID, RECORD)
    path_of(tmp_path).write_text(json.dumps(content))
    assert read_jobs(tmp_path) == []


def test_jobs_record_of_a_later_release_is_handed_on(tmp_path: Path) -> None:
    """Who knows what a job is decides; here a form's number and new fields are kept."""
    newer = RECORD | {"format_version": 99, "zones": [1]}
    write_job(tmp_path, ID, newer)
    assert read_jobs(tmp_path) == [newer]


def test_jobs_files_of_others_are_left_alone(tmp_path: Path) -> None:
    """Only names that we give are read; only what we left half written is cleared away."""
    write_job(tmp_path, ID, RECORD)
    folder = tmp_path / JOBS_NAME
    strange = [f"{ID}.json.bak", f"{ID.upper()}.json", f"{ID}0.json", "notes.txt", f"{ID}\n.json"]
    for name in strange:
        (folder / name).write_text(json.dumps(RECORD))
    (folder / f".{os.getpid()}.1.new").write_text("{")
    assert read_jobs(tmp_path) == [RECORD]
    assert names_in(tmp_path) == sorted([*strange, f"{ID}.json"])


def test_jobs_rest_that_cannot_be_cleared_away_stops_no_start(tmp_path: Path) -> None:
    """Whatever made it: all other jobs go on."""
    write_job(tmp_path, ID, RECORD)
    (tmp_path / JOBS_NAME / "a folder.new").mkdir()
    assert read_jobs(tmp_path) == [RECORD]


def test_jobs_file_longer_than_any_of_ours_costs_that_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not read into memory to its end."""
    monkeypatch.setattr("p2pcache.store.jobfolder._FILE_BYTES_MAX", 100)
    write_job(tmp_path, ID, RECORD | {"note": "x" * 100})
    write_job(tmp_path, OTHER_ID, OTHER)
    assert read_jobs(tmp_path) == [OTHER]


def test_jobs_file_that_cannot_be_read_now_costs_that_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A sector that the disk does not give back is no reason not to start; a folder is no job."""
    write_job(tmp_path, ID, RECORD)
    write_job(tmp_path, OTHER_ID, OTHER)
    path_of(tmp_path, "a" * 16).mkdir()
    real = Path.open

    def open_file(path: Path, *arguments: Any) -> Any:
        if path == path_of(tmp_path):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, *arguments)

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(Path, "open", open_file)
        assert read_jobs(tmp_path) == [OTHER]
    assert path_of(tmp_path).name in caplog.text
    assert read_jobs(tmp_path) == [RECORD, OTHER]


def test_jobs_folder_that_cannot_be_listed_is_not_taken_for_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Downloads are not forgotten for want of a descriptor."""
    write_job(tmp_path, ID, RECORD)
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", fail_with(errno.EMFILE))
        with pytest.raises(StoreError, match="too many files"):
            read_jobs(tmp_path)
    assert read_jobs(tmp_path) == [RECORD]


def test_jobs_folder_that_is_a_file_has_none_and_takes_none(tmp_path: Path) -> None:
    """Somebody's mistake is no reason not to start."""
    (tmp_path / JOBS_NAME).write_text("")
    assert read_jobs(tmp_path) == []
    with pytest.raises(StoreError, match=JOBS_NAME):
        write_job(tmp_path, ID, RECORD)
    with pytest.raises(StoreError, match=JOBS_NAME):
        remove_job(tmp_path, ID)


@pytest.mark.parametrize("call", STEPS)
@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, StoreFullError), (errno.EIO, StoreError)]
)
def test_job_write_that_fails_leaves_the_old_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, kind: type[StoreError]
) -> None:
    """At any step; nothing is left beside it, and a job that is new is not half there."""
    write_job(tmp_path, ID, RECORD)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail_with(number))
        for job_id in (ID, OTHER_ID):
            with pytest.raises(kind, match=job_id):
                write_job(tmp_path, job_id, {"id": job_id})
    assert names_in(tmp_path) == [f"{ID}.json"]
    assert read_jobs(tmp_path) == [RECORD]


def test_job_on_a_full_disk_keeps_its_old_record(tiny_disk: Path) -> None:
    """A real one: the write fails midway; what is whole can still be removed."""
    write_job(tiny_disk, ID, RECORD)
    filler = tiny_disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1 << 16)):
            pass
    with pytest.raises(StoreFullError, match="free some space"):
        write_job(tiny_disk, ID, RECORD | {"note": "x" * 100_000})
    assert read_jobs(tiny_disk) == [RECORD]
    assert names_in(tiny_disk) == [f"{ID}.json"]
    remove_job(tiny_disk, ID)
    assert names_in(tiny_disk) == []


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS])
def test_job_that_cannot_be_removed_is_still_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """And whoever asked is told."""
    write_job(tmp_path, ID, RECORD)
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", fail_with(number))
        with pytest.raises(StoreError, match="system's log"):
            remove_job(tmp_path, ID)
    assert read_jobs(tmp_path) == [RECORD]


def test_job_is_durable_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes, the name, the folder: after a power cut there is the old record or the new."""
    calls = watch_disk(tmp_path, monkeypatch)
    write_job(tmp_path, ID, RECORD)
    assert calls == [("fsync", "file"), ("rename", f"{ID}.json"), ("fsync", "folder")]


def test_job_that_is_removed_stays_removed_after_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name goes, then the folder is synced, again if its record had gone; no folder is none."""
    calls = watch_disk(tmp_path, monkeypatch)
    remove_job(tmp_path, ID)
    assert calls == []
    write_job(tmp_path, ID, RECORD)
    calls.clear()
    remove_job(tmp_path, ID)
    assert calls == [("unlink", f"{ID}.json"), ("fsync", "folder")]
    remove_job(tmp_path, ID)
    assert calls == [("unlink", f"{ID}.json"), ("fsync", "folder"), ("fsync", "folder")]


def test_job_whose_removal_is_not_durable_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that cannot be synced may have the record again: whoever asked is told."""
    write_job(tmp_path, ID, RECORD)
    monkeypatch.setattr(os, "fsync", fail_with(errno.EIO))
    with pytest.raises(StoreError, match="system's log"):
        remove_job(tmp_path, ID)
