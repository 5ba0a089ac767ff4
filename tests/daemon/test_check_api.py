"""
Owns the tests of the check's routes.

Knows nothing of how files are checked (tests/engine/test_checkup.py).
Invariants: changes need the admin token; what is not public is named to its holder alone.
Source: daemon/check_api.py; docs/reference/http-api.md.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.daemon.conftest import Serve
from tests.daemon.local import Served
from tests.engine.conftest import CHUNK_BYTES, FILES, GATED, MODEL_BYTES, REPO, TOKEN, WEIGHTS
from tests.engine.engine import Engine, eventually
from tests.engine.fakepeer import sha256_name
from tests.engine.test_shelf import flip_byte, path_of

CHECK = "/_p2pcache/v1/check"
NAME = "pytorch_model.bin"
FIELDS = {
    "state",
    "started_at",
    "pass_started_at",
    "background",
    "repair",
    "blobs_total",
    "blobs_done",
    "bytes_total",
    "bytes_done",
    "rate_bps",
    "damaged",
}


async def show(served: Served, *, is_admin: bool = True) -> dict[str, Any]:
    """Ask how far the check is."""
    reply = await served.ask(CHECK, headers=served.change_headers if is_admin else {})
    assert reply.status == 200
    answer: dict[str, Any] = reply.json
    return answer


async def check(served: Served, **body: object) -> dict[str, Any]:
    """Check to the end; returns the last answer."""
    reply = await served.change(CHECK, body=body)
    assert reply.status == 202
    assert reply.json["state"] == "running"
    checkup = served.engine.cache.checkup

    def is_over() -> bool:
        run = checkup.find_run()
        return run is not None and run.state.value != "running"

    await eventually(is_over, "the check's end")
    return await show(served)


async def test_check_that_never_ran_is_idle(served: Served) -> None:
    """Every field is there from the start."""
    answer = await show(served)
    assert set(answer) == FIELDS
    assert (answer["state"], answer["damaged"]) == ("idle", [])


async def test_check_tells_what_it_did_and_found(served: Served) -> None:
    """Counts, and each damaged file with its chunks and places."""
    await served.engine.pull(REPO)
    flip_byte(path_of(served.engine), 5 * CHUNK_BYTES, keeps_time=True)
    answer = await check(served)
    assert set(answer) == FIELDS
    assert (answer["state"], answer["repair"], answer["background"]) == ("done", False, False)
    assert (answer["blobs_done"], answer["blobs_total"]) == (len(FILES), len(FILES))
    assert (answer["bytes_done"], answer["bytes_total"]) == (MODEL_BYTES, MODEL_BYTES)
    assert answer["rate_bps"] > 0
    snapshot, _ = await served.engine.find(REPO, NAME)
    (damage,) = answer["damaged"]
    assert damage.pop("found_at") >= answer["started_at"]
    assert damage == {
        "blob": str(sha256_name(WEIGHTS)),
        "chunks": [5],
        "files": [f"{REPO}@{snapshot.id.commit}: {NAME}"],
        "state": "quarantined",
        "detail": "",
    }


async def test_check_that_repairs_heals(served: Served) -> None:
    """The check runs until the file is here again."""
    await served.engine.pull(REPO)
    flip_byte(path_of(served.engine), 5 * CHUNK_BYTES, keeps_time=True)
    answer = await check(served, repair=True)
    assert (answer["state"], answer["repair"]) == ("done", True)
    assert [damage["state"] for damage in answer["damaged"]] == ["healed"]
    assert path_of(served.engine).read_bytes() == WEIGHTS


async def test_check_without_a_body_is_a_plain_one(served: Served) -> None:
    """Nothing has to be said."""
    reply = await served.ask(CHECK, "POST", headers=served.change_headers)
    assert reply.status == 202


async def test_check_is_stopped_by_delete(served: Served) -> None:
    """Also when none runs; the state stays."""
    await served.engine.pull(REPO)
    reply = await served.change(CHECK, "DELETE")
    assert (reply.status, reply.json["state"]) == (200, "idle")
    assert (await served.change(CHECK, body={"rate_bps": 1})).status == 202
    reply = await served.change(CHECK, "DELETE")
    assert (reply.status, reply.json["state"]) == (200, "stopped")


@pytest.mark.parametrize(
    "body",
    [
        {"repair": 1},
        {"repair": None},
        {"anew": "yes"},
        {"rate_bps": 0},
        {"rate_bps": -1},
        {"rate_bps": True},
        {"rate_bps": "50MB"},
        {"rate_bps": 1e13},
        {"budget_s": 0},
        {"budget_s": 1e9},
        {"budget_s": []},
        {"offline": True},
        {"all": True},
        [],
    ],
    ids=str,
)
async def test_check_asked_wrongly_is_refused(served: Served, body: object) -> None:
    """A field that is unknown or out of range is 400, and no check begins."""
    reply = await served.change(CHECK, body=body)
    assert reply.error[0] == 400
    assert (await show(served))["state"] == "idle"


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_check_is_changed_by_the_admin_alone(served: Served, method: str) -> None:
    """Looking needs no token, starting and stopping do."""
    assert (await served.ask(CHECK, method)).error == (401, "MissingToken")
    assert (await served.ask(CHECK)).status == 200


async def test_check_names_restricted_files_to_the_admin_alone(
    engine: Engine, serve: Serve
) -> None:
    """Others learn that something is damaged, and neither what nor where."""
    served = await serve(engine)
    assert (await engine.pull(GATED, token=TOKEN)).error is None
    blob = sha256_name(FILES[NAME] + b"secret")
    flip_byte(path_of(engine, blob), 0, keeps_time=True)
    answer = await check(served, repair=True)
    (damage,) = answer["damaged"]
    assert damage["blob"] == str(blob)
    assert GATED in damage["files"][0]
    assert "token" in damage["detail"]
    (hidden,) = (await show(served, is_admin=False))["damaged"]
    assert (hidden["blob"], hidden["files"], hidden["detail"]) == (None, [], "")
    assert (hidden["state"], hidden["chunks"]) == ("quarantined", [0])
    assert blob.hex not in str(await show(served, is_admin=False))


async def test_check_shows_in_the_metrics(served: Served) -> None:
    """Bytes looked at, and chunks found damaged."""
    await served.engine.pull(REPO)
    for chunk in (1, 2):
        flip_byte(path_of(served.engine), chunk * CHUNK_BYTES, keeps_time=True)
    await check(served)
    lines = (await served.ask("/metrics")).body.decode().splitlines()
    assert f"p2pcache_checked_bytes_total {MODEL_BYTES}" in lines
    assert "p2pcache_damaged_chunks_total 2" in lines
