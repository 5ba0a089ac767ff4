"""
Owns `STORE/jobs/`: one small file for each download job, so that a restart goes on with them.

Knows nothing of what a job is.
Invariants: a file is written whole or not at all; readable by the daemon's user alone, since it
names what may be private; one that cannot be understood costs that job, never the start.
Source: docs/reference/store-layout.md (jobs).
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from pathlib import Path

from p2pcache.errors import StoreError
from p2pcache.store.disk import store_error, sync_directory, try_read
from p2pcache.store.home import write_file_atomically

log = logging.getLogger(__name__)

JOBS_NAME = "jobs"
# A thousand patterns of four thousand characters; a larger file is not ours.
_FILE_BYTES_MAX = 16 * 1024 * 1024
_NAME = re.compile(r"([0-9a-f]{16})\.json", re.ASCII)


def write_job(root: Path, job_id: str, record: dict[str, object]) -> None:
    """
    Write a job's record.

    Raises:
        StoreError: The disk failed or is full; the old record stands.
    """
    path = root / JOBS_NAME / f"{job_id}.json"
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_file_atomically(path, json.dumps(record).encode(), mode=0o600)
        sync_directory(path.parent)
    except OSError as error:
        raise store_error(error, path) from error


def remove_job(root: Path, job_id: str) -> None:
    """
    Remove a job's record, if there is one; a power cut does not bring it back.

    Raises:
        StoreError: The disk failed.
    """
    path = root / JOBS_NAME / f"{job_id}.json"
    try:
        path.unlink(missing_ok=True)
        # Of a record that had gone as well: its folder may not have been synced then.
        sync_directory(path.parent)
    except FileNotFoundError:
        return  # no folder, no records
    except OSError as error:
        raise store_error(error, path) from error


def read_jobs(root: Path) -> list[dict[str, object]]:
    """
    Return all records that make sense, in no order; clears away what a crash left half written.

    Raises:
        StoreError: The folder cannot be read now.
    """
    folder = root / JOBS_NAME
    try:
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise store_error(error, folder) from error
    records = []
    for path in paths:
        if _NAME.fullmatch(path.name) is None:
            if path.name.endswith(".new"):
                # What stays takes some room, and is tried again at the next start.
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            continue
        try:
            record = json.loads(try_read(path, _FILE_BYTES_MAX) or b"")
        except (ValueError, RecursionError, StoreError) as error:
            log.warning("the job in %s cannot be read (%s); order it again", path, error)
            continue
        if isinstance(record, dict) and f"{record.get('id')}.json" == path.name:
            records.append(record)
    return records
