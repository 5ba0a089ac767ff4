"""
Owns the tests of the imports routes: who may ask, what is refused, what an import looks like.

Knows nothing of how a cache is adopted (tests/engine/test_adoption.py).
Invariants: nothing but 127.0.0.1 is asked.
Source: daemon/imports_api.py; docs/reference/http-api.md.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from p2pcache.daemon import imports_api
from p2pcache.engine.adoptionjob import AdoptionJob, AdoptionOrder, FileWatch
from p2pcache.errors import InputError
from tests.daemon.conftest import Serve
from tests.daemon.local import Served
from tests.engine.conftest import CHUNK_BYTES, FILES, MODEL_BYTES, REPO, MakeCache
from tests.engine.engine import eventually
from tests.hfcaches import ForeignCache
from tests.hub import Hub

IMPORTS = "/_p2pcache/v1/imports"
FINAL_STATES = ("done", "failed", "cancelled")


@pytest.fixture
def foreign(tmp_path: Path, hub: Hub) -> ForeignCache:
    """Make another program's cache with one model in it."""
    made = ForeignCache(tmp_path / "hf" / "hub")
    repository = hub.state.catalog.find("models", REPO)
    assert repository is not None
    made.add(repository)
    return made


async def get(served: Served, import_id: str) -> Any:
    """Ask for an import as the command line does."""
    reply = await served.ask(f"{IMPORTS}/{import_id}", headers=served.change_headers)
    assert reply.status == 200
    return reply.json


async def run(served: Served, path: Path, **options: object) -> Any:
    """Run an import to its end."""
    reply = await served.change(IMPORTS, body={"path": str(path), **options})
    assert reply.status == 202, reply.body
    assert sorted(reply.json) == ["id", "state"]
    seen: list[Any] = []

    async def look() -> None:
        seen.append(await get(served, reply.json["id"]))

    await look()
    while seen[-1]["state"] not in FINAL_STATES:
        await look()
    return seen[-1]


async def test_import_says_what_came_of_it(served: Served, foreign: ForeignCache) -> None:
    """All fields of the contract, with the numbers of one model."""
    wrong = next((foreign.root / "models--org--model" / "blobs").glob("?" * 40))
    wrong.write_bytes(b"x" * wrong.stat().st_size)
    job = await run(served, foreign.root, public=True)
    snapshot = job.pop("snapshots")
    skipped = job.pop("skipped")
    assert job.pop("id")
    assert job.pop("added_at") > 0
    assert job == {
        "path": str(foreign.root),
        "watch": False,
        "public": True,
        "state": "done",
        "files_total": len(FILES),
        "files_done": len(FILES),
        "bytes_total": MODEL_BYTES,
        "bytes_done": MODEL_BYTES,
        "linked": len(FILES) - 1,
        "reflinked": 0,
        "copied": 0,
        "referred": 0,
        "present": 0,
        "skipped_total": 1,
    }
    assert [sorted(row) for row in skipped] == [["path", "reason"]]
    assert len(snapshot) == 1
    commit = snapshot[0].pop("commit")
    assert len(commit) == 40
    assert snapshot[0] == {
        "model": REPO,
        "revisions": ["main"],
        "files": len(FILES),
        "files_here": len(FILES) - 1,
        "confirmed": True,
        "public": True,
        "notes": [],
    }


async def test_imports_are_shown_and_changed_for_the_admin_alone(
    served: Served, foreign: ForeignCache
) -> None:
    """They name folders of this machine, and what may be private."""
    job = await run(served, foreign.root)
    for path in (IMPORTS, f"{IMPORTS}/{job['id']}"):
        assert (await served.ask(path)).error == (401, "MissingToken")
    assert (await served.ask(IMPORTS, "POST", body={"path": "/"})).status == 401
    assert (await served.ask(f"{IMPORTS}/{job['id']}", "DELETE")).status == 401
    listed = await served.ask(IMPORTS, headers=served.change_headers)
    assert [row["id"] for row in listed.json["imports"]] == [job["id"]]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"path": ""},
        {"path": 7},
        {"path": "relative"},
        {"path": "/absent/folder"},
        {"path": "/dev/null"},
        {"path": "/nul\0"},
        {"path": "/\ud800"},
        {"path": "/" + "x" * 5000},
        {"path": "/", "watch": "yes"},
        {"path": "/", "public": 1},
        [],
    ],
)
async def test_import_of_what_cannot_be_is_refused(served: Served, body: object) -> None:
    """A sentence that says what to do, and no job."""
    reply = await served.change(IMPORTS, body=body)
    assert reply.error == (400, "Input")
    listed = await served.ask(IMPORTS, headers=served.change_headers)
    assert listed.json == {"imports": []}


async def test_import_of_our_own_store_is_refused(served: Served) -> None:
    """It would make our files somebody else's."""
    for path in (served.engine.root, served.engine.context.tree.root):
        reply = await served.change(IMPORTS, body={"path": str(path)})
        assert reply.error == (400, "Input")


async def test_unknown_import_is_not_found(served: Served) -> None:
    """Nobody asked for that one."""
    reply = await served.ask(f"{IMPORTS}/nope", headers=served.change_headers)
    assert reply.error == (404, "JobNotFound")
    assert (await served.change(f"{IMPORTS}/nope", "DELETE")).error == (404, "JobNotFound")


async def test_watch_begins_again_with_the_daemon_and_ends_when_told(
    make_cache: MakeCache, serve: Serve, foreign: ForeignCache
) -> None:
    """Listed as a watch, the same after a restart, gone after DELETE and another one."""
    engine = await make_cache("w")
    served = await serve(engine)
    job = await run(served, foreign.root, watch=True)
    assert (job["watch"], job["state"]) == (True, "done")
    for is_last in (False, True):
        await served.close()
        await engine.close()
        engine = await make_cache("w")
        served = await serve(engine)
        listed = (await served.ask(IMPORTS, headers=served.change_headers)).json["imports"]
        assert [row["id"] for row in listed] == ([] if is_last else [job["id"]])
        if not is_last:
            ended = await served.change(f"{IMPORTS}/{job['id']}", "DELETE")
            assert ended.json["state"] == "cancelled"


async def test_failed_import_says_why(
    served: Served, foreign: ForeignCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder went while it was looked at: state, error, sentence."""

    def fail(*_: object) -> None:
        raise InputError("It is gone; mount it again.")

    monkeypatch.setattr("p2pcache.engine.adopter.read_cache", fail)
    job = await run(served, foreign.root)
    assert job["state"] == "failed"
    assert job["error"] == {"error": "Input", "message": "It is gone; mount it again."}


async def test_long_list_of_skipped_files_is_cut_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A folder of a million odd names does not make an answer of a million lines."""
    monkeypatch.setattr(imports_api, "SKIPPED_SHOWN_MAX", 2)
    job = AdoptionJob("1", AdoptionOrder(Path("/x")), 0.0)
    job.folder_skipped = dict.fromkeys("cab", "odd")
    described = imports_api.describe_job(job)
    assert described["skipped_total"] == 3
    assert described["skipped"] == [
        {"path": "a", "reason": "odd"},
        {"path": "b", "reason": "odd"},
    ]


async def test_import_is_seen_while_it_runs_and_ends_when_told(
    served: Served, foreign: ForeignCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes of the file under way count; DELETE ends it."""
    is_hashing, is_released = threading.Event(), threading.Event()
    real = FileWatch.note_hashed

    def note(watch: FileWatch, size_bytes: int) -> None:
        real(watch, size_bytes)
        if watch.hashed_bytes > 4 * CHUNK_BYTES:
            is_hashing.set()
            is_released.wait(20)

    monkeypatch.setattr(FileWatch, "note_hashed", note)
    reply = await served.change(IMPORTS, body={"path": str(foreign.root)})
    import_id = reply.json["id"]
    await eventually(is_hashing.is_set, "the weights are hashed")
    job = await get(served, import_id)
    assert job["state"] == "hashing"
    assert 4 * CHUNK_BYTES < job["bytes_done"] < job["bytes_total"] == MODEL_BYTES
    is_released.set()
    ended = await served.change(f"{IMPORTS}/{import_id}", "DELETE")
    assert ended.json["state"] == "cancelled"
    assert (await get(served, import_id))["state"] == "cancelled"
