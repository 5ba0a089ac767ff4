"""
Owns the tests of jobs beyond one run: the queue, pause and resume, restarts, what is left out.

Knows nothing of HTTP.
Invariants: what was ordered is not lost; a token is on no disk.
Source: engine/downloads.py, engine/jobs.py; docs/decisions/0021-downloads.md.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from p2pcache.core.credentials import ANONYMOUS, Credentials
from p2pcache.core.jobs import JobOrder, JobState
from p2pcache.core.refs import ModelReference
from p2pcache.engine import downloads as downloads_module
from p2pcache.engine.downloads import FINAL_STATES, Job
from p2pcache.engine.jobview import describe_job
from p2pcache.errors import (
    DaemonBusyError,
    ForbiddenError,
    InputError,
    JobEndedError,
    StoreFullError,
)
from tests.engine.conftest import (
    CHUNK_BYTES,
    FILES,
    GATED,
    MODEL_BYTES,
    REPO,
    TOKEN,
    WEIGHTS,
    MakeCache,
)
from tests.engine.engine import Engine, eventually
from tests.hub import Hub, Repository

KEY = f"{REPO}/pytorch_model.bin"
TWINS = {
    "config.json": b"{}",
    "model.safetensors": WEIGHTS[: 4 * CHUNK_BYTES],
    "pytorch_model.bin": WEIGHTS[CHUNK_BYTES : 5 * CHUNK_BYTES],
}


def order(repo: str = REPO, **fields: Any) -> JobOrder:
    """Make an order."""
    return JobOrder(ModelReference.parse(repo), **fields)


def show(engine: Engine, job: Job) -> dict[str, object]:
    """Return a job as programs see it."""
    return describe_job(job, now_s=engine.context.clock.monotonic_s())


async def over(job: Job) -> None:
    """Wait for a job's end."""
    await eventually(lambda: job.state in FINAL_STATES, "the download's end", timeout_s=20)


async def begin_and_hang(engine: Engine, hub: Hub, **fields: Any) -> Job:
    """Begin a download that comes to a halt after a few chunks."""
    await engine.find(REPO, "config.json")
    hub.set_faults(hang_after_bytes=2 * CHUNK_BYTES, paths=KEY)
    job = engine.downloads.start(order(**fields), ANONYMOUS)
    await eventually(lambda: job.count_bytes().total() > 4 * CHUNK_BYTES, "some chunks")
    return job


@pytest.fixture
async def second_hub() -> AsyncIterator[Hub]:
    """Run a hub with several models, one of them with the same weights twice."""
    names = [f"org/m{number}" for number in range(4)]
    repositories = [Repository(name, {"config.json": name.encode()}) for name in names]
    async with Hub([*repositories, Repository("org/twins", TWINS)]) as running:
        yield running


async def test_paused_job_keeps_its_place_and_its_bytes(engine: Engine, hub: Hub) -> None:
    """Pause holds as long as wanted; resume goes on, and still tells where bytes are from."""
    job = await begin_and_hang(engine, hub)
    before = job.count_bytes()
    assert (await engine.downloads.pause(job.id)).state is JobState.PAUSED
    shown, kept = show(engine, job), job.count_bytes()
    assert (shown["bytes_done"], shown["rate_bps"], shown["eta_s"]) == (kept.total(), 0, None)
    assert kept.total() >= before.total() > 0
    assert (await engine.downloads.pause(job.id)).state is JobState.PAUSED
    hub.set_faults()
    assert (await engine.downloads.resume(job.id)).state is not JobState.PAUSED
    await over(job)
    assert (job.state, job.error) == (JobState.DONE, None)
    counts = job.count_bytes()
    assert (counts.total(), counts["upstream"]) == (MODEL_BYTES, MODEL_BYTES)
    for verb in (engine.downloads.pause, engine.downloads.resume):
        with pytest.raises(JobEndedError, match="p2pcache pull"):
            await verb(job.id)


async def test_paused_job_can_be_cancelled(engine: Engine, hub: Hub) -> None:
    """Cancel ends a job in any state, once."""
    job = await begin_and_hang(engine, hub)
    await engine.downloads.pause(job.id)
    for _ in range(2):
        assert (await engine.downloads.cancel(job.id)).state is JobState.CANCELLED


async def test_jobs_wait_for_their_turn_and_the_urgent_one_goes_first(
    make_cache: MakeCache, second_hub: Hub, hub: Hub
) -> None:
    """One at a time; a higher priority takes over, and who gave way goes on after it."""
    engine = await make_cache("b", hub_url=second_hub.url, downloads_max=1)
    second_hub.set_faults(hang_after_bytes=0, paths="org/m0/config.json")
    first = engine.downloads.start(order("org/m0"), ANONYMOUS)
    second = engine.downloads.start(order("org/m1"), ANONYMOUS)
    await eventually(lambda: first.state is JobState.DOWNLOADING, "the first begins")
    assert second.state is JobState.QUEUED
    urgent = engine.downloads.start(order("org/m2", priority=5), ANONYMOUS)
    await over(urgent)
    assert (first.is_over, second.is_over) == (False, False)
    second_hub.set_faults()
    await over(first)
    await over(second)
    assert {j.state for j in (first, second, urgent)} == {JobState.DONE}
    assert urgent.ended_wall_s is not None
    assert first.ended_wall_s is not None
    assert second.ended_wall_s is not None
    assert urgent.ended_wall_s <= first.ended_wall_s <= second.ended_wall_s


async def test_job_goes_on_after_a_restart(make_cache: MakeCache, hub: Hub) -> None:
    """Jobs that ran go on, those that were paused stay so, those that ended are remembered."""
    engine = await make_cache("b")
    await engine.downloads.open()
    ended = await engine.pull(REPO, include=("config.json",))
    job = await begin_and_hang(engine, hub, is_pin=True, priority=3)
    paused = engine.downloads.start(order(include=("other*",)), ANONYMOUS)
    await engine.downloads.pause(paused.id)
    await engine.close()
    hub.set_faults()
    again = await make_cache("b")
    await again.downloads.open()
    assert [j.id for j in again.downloads.list_all()] == [ended.id, job.id, paused.id]
    carried = again.downloads.get(job.id)
    assert carried.order == job.order
    await over(carried)
    assert (carried.state, carried.count_bytes().total()) == (JobState.DONE, MODEL_BYTES)
    assert carried.count_bytes()["upstream"] >= len(WEIGHTS)
    assert again.downloads.get(ended.id).state is JobState.DONE
    assert again.downloads.get(paused.id).state is JobState.PAUSED
    assert len(await again.cache.space.pins.list_all()) == 1


async def test_restart_loses_a_token_and_says_so(make_cache: MakeCache, hub: Hub) -> None:
    """A gated model's job waits for its token; no file of the store ever has it."""
    engine = await make_cache("b")
    await engine.downloads.open()
    hub.set_faults(hang_after_bytes=2 * CHUNK_BYTES, paths=f"{GATED}/pytorch_model.bin")
    job = engine.downloads.start(order(GATED), Credentials(TOKEN))
    await eventually(lambda: job.count_bytes().total() > 4 * CHUNK_BYTES, "some chunks")
    await engine.close()
    for path in engine.root.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
    hub.set_faults()
    again = await make_cache("b")
    await again.downloads.open()
    carried = again.downloads.get(job.id)
    await eventually(lambda: carried.state is JobState.PAUSED, "it waits for its token")
    assert carried.failure is not None
    assert f"--resume {job.id} --token" in carried.failure.message
    await again.downloads.resume(job.id, Credentials(TOKEN))
    await over(carried)
    shown = show(again, carried)
    assert (shown["state"], shown.get("error")) == ("done", None)


async def test_carried_over_job_waits_for_a_hub_that_is_away(
    make_cache: MakeCache, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine boots before its network is up: the job is tried again; a new one fails at once."""
    monkeypatch.setattr(downloads_module, "RETRY_S_MIN", 0.05)
    monkeypatch.setattr("p2pcache.engine.silence.UNREACHABLE_PAUSE_S", 0.01)
    engine = await make_cache("b")
    await engine.downloads.open()
    job = engine.downloads.start(order(), ANONYMOUS)
    await engine.close()
    assert job.state is JobState.QUEUED
    hub.set_faults(refuse_status=503)
    again = await make_cache("b")
    await again.downloads.open()
    carried = again.downloads.get(job.id)
    await eventually(lambda: carried.retries > 1, "it is tried again")
    assert (await again.pull("org/other")).state is JobState.FAILED
    assert not carried.is_over
    # Paused by a person it waits for nothing else: an error would tell who waits to give up.
    await eventually(lambda: carried.failure is not None and carried.task is None, "a pause")
    assert "error" not in show(again, await again.downloads.pause(carried.id))
    await again.downloads.resume(carried.id)
    hub.set_faults()
    await over(carried)
    assert (carried.state, carried.failure) == (JobState.DONE, None)


async def test_record_that_is_damaged_costs_that_job_alone(make_cache: MakeCache, hub: Hub) -> None:
    """A start is never refused for a file that nobody understands."""
    engine = await make_cache("b")
    await engine.downloads.open()
    job = await engine.pull(REPO, include=("config.json",))
    await engine.close()
    folder = engine.root / "jobs"
    good = json.loads((folder / f"{job.id}.json").read_text())
    for number, content in enumerate(
        ["", "[]", "{}", json.dumps({**good, "state": "odd"}), json.dumps({**good, "order": 5})]
    ):
        (folder / f"{number:016x}.json").write_text(content.replace(job.id, f"{number:016x}"))
    (folder / ".5.5.new").write_text("half")
    again = await make_cache("b")
    await again.downloads.open()
    assert [j.id for j in again.downloads.list_all()] == [job.id]
    assert not (folder / ".5.5.new").exists()


async def test_second_format_is_left_out_and_told(make_cache: MakeCache, second_hub: Hub) -> None:
    """What is resident is what a pull brings; an include gets the rest; both load offline."""
    engine = await make_cache("b", hub_url=second_hub.url)
    job = await engine.pull("org/twins")
    assert job.path is not None
    assert {path.name for path in Path(job.path).iterdir()} == {"config.json", "model.safetensors"}
    assert show(engine, job)["left_out"] == {
        "files": 1,
        "bytes": 4 * CHUNK_BYTES,
        "example": "pytorch_model.bin",
        "reason": "the same weights are in the safetensors",
        "get_with": "include: ['*']",
    }
    tree = Path(job.path).parents[1] / "trees" / f"{job.commit}.json"
    listed = json.loads(tree.read_text())
    assert set(listed["files"]) == {"config.json", "model.safetensors"}
    assert set(listed["left_out"]) == {"pytorch_model.bin"}
    everything = await engine.pull("org/twins", include=("*",))
    assert "left_out" not in show(engine, everything)
    assert set(json.loads(tree.read_text())["files"]) == TWINS.keys()
    assert {path.name for path in Path(job.path).iterdir()} == TWINS.keys()


async def test_files_are_put_where_they_are_wanted(
    make_cache: MakeCache, hub: Hub, tmp_path: Path
) -> None:
    """Below an allowed folder they appear without a second copy; elsewhere it is refused."""
    root = tmp_path / "models"
    root.mkdir()
    engine = await make_cache("b", allow_paths=(root,))
    job = await engine.pull(REPO, path=str(root / "team" / "m"))
    assert (job.state, job.error) == (JobState.DONE, None)
    for name, content in FILES.items():
        assert (root / "team" / "m" / name).read_bytes() == content
    assert sum(job.placed.values()) == len(FILES)
    assert set(job.placed) <= {"linked", "reflinked"}
    for bad, error in (
        (str(tmp_path / "elsewhere"), ForbiddenError),
        (f"{root}-2", ForbiddenError),
        (f"{root}/../elsewhere", InputError),
        ("models", InputError),
    ):
        with pytest.raises(error):
            engine.downloads.start(order(path=bad), ANONYMOUS)
    (root / "link").symlink_to(tmp_path)
    job = await engine.pull(REPO, path=str(root / "link" / "x"))
    assert isinstance(job.error, ForbiddenError)
    assert not (tmp_path / "x").exists()


async def test_jobs_and_orders_are_bounded(
    engine: Engine, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than there may be is refused with what to do; other machines get less."""
    monkeypatch.setattr(downloads_module, "ORDERS_OPEN_MAX", 1)
    monkeypatch.setattr(downloads_module, "JOBS_KEPT_MAX", 3)
    hub.set_faults(hang_after_bytes=0)
    engine.downloads.start(order(), ANONYMOUS, origin="10.0.0.2")
    with pytest.raises(DaemonBusyError, match="other machines"):
        engine.downloads.start(order(), ANONYMOUS, origin="10.0.0.3")
    engine.downloads.start(order(), ANONYMOUS)
    engine.downloads.start(order(), ANONYMOUS)
    with pytest.raises(DaemonBusyError, match="--cancel"):
        engine.downloads.start(order(), ANONYMOUS)


async def test_order_that_cannot_be_remembered_is_refused(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is told to whoever orders, instead of a promise that a restart would break."""

    def fail(*_: object) -> None:
        raise StoreFullError("The disk is full; free some space.")

    await engine.downloads.open()
    monkeypatch.setattr("p2pcache.engine.jobbook.write_job", fail)
    job = engine.downloads.start(order(), ANONYMOUS)
    with pytest.raises(StoreFullError):
        await engine.downloads.settle(job)
    assert job.state is JobState.CANCELLED


async def test_order_for_a_passed_commit_links_the_branch_only_if_it_agrees(
    engine: Engine, hub: Hub
) -> None:
    """A worker fetches the commit that was meant, whatever the branch is here by now."""
    repository = Repository("org/moving", {"config.json": b"1"})
    repository.add_commit({"config.json": b"2"})
    hub.add(repository)
    old, new = repository.commits
    for commit in (old, new):
        job = await engine.pull("org/moving", commit=commit)
        assert (job.commit, job.error) == (commit, None)
        assert job.path is not None
        ref = Path(job.path).parents[1] / "refs" / "main"
        assert ref.exists() is (commit == new)
