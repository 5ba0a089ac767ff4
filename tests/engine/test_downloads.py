"""
Owns the tests of engine.downloads: jobs, their states, sums and ends.

Knows nothing of HTTP.
Invariants: a job ends once, as done, failed or cancelled; its numbers never contradict each other.
Source: engine/downloads.py; design.md §8 (downloads).
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from p2pcache.core.credentials import ANONYMOUS, Credentials
from p2pcache.core.refs import ModelReference
from p2pcache.engine import downloads as downloads_module
from p2pcache.engine import jobrun
from p2pcache.engine.downloads import FINAL_STATES, Job, JobOrder, JobState
from p2pcache.engine.jobview import describe_job
from p2pcache.engine.passing import Passing
from p2pcache.errors import (
    GatedRepositoryError,
    InputError,
    IntegrityError,
    JobNotFoundError,
    RepositoryNotFoundError,
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
    MakePeer,
)
from tests.engine.engine import Engine, eventually
from tests.hub import Hub, Repository

KEY = f"{REPO}/pytorch_model.bin"


def start(engine: Engine, repo: str = REPO) -> Job:
    """Begin a download."""
    return engine.downloads.start(JobOrder(ModelReference.parse(repo)), ANONYMOUS)


def sum_bytes(engine: Engine, job: Job) -> int:
    """Return the bytes that a job says are here."""
    return sum(engine.downloads.count_bytes(job).values())


async def test_job_passes_through_its_states_and_ends_done(engine: Engine, hub: Hub) -> None:
    """A job goes forward only, counts up to its total, and links every file."""
    hub.set_faults(rate_bytes_per_s=1_500_000)
    job = start(engine)
    seen: list[tuple[JobState, int]] = [(job.state, 0)]
    while job.state not in FINAL_STATES:
        await asyncio.sleep(0.005)
        seen.append((job.state, sum_bytes(engine, job)))
    order = list(JobState)
    assert [order.index(state) for state, _ in seen] == sorted(order.index(s) for s, _ in seen)
    assert [count for _, count in seen] == sorted(count for _, count in seen)
    assert (job.state, job.error, job.bytes_total) == (JobState.DONE, None, MODEL_BYTES)
    assert sum_bytes(engine, job) == MODEL_BYTES
    assert job.path is not None
    for name, content in FILES.items():
        assert (Path(job.path) / name).read_bytes() == content


async def test_second_job_finds_everything_on_disk(engine: Engine, hub: Hub) -> None:
    """What is here is counted as from the disk and costs nothing."""
    await engine.pull(REPO)
    hub.stats.reset()
    job = await engine.pull(REPO)
    assert dict(engine.downloads.count_bytes(job)) == {"disk": MODEL_BYTES}
    assert hub.stats.body_bytes == 0


async def test_sources_are_told_apart(engine: Engine, make_peer: MakePeer, hub: Hub) -> None:
    """Bytes from peers, the hub and the disk add up to the total."""
    await engine.pull(REPO, include=("config.json",))
    peer = await make_peer(WEIGHTS)
    await engine.meet(peer.address)
    job = await engine.pull(REPO)
    counts = engine.downloads.count_bytes(job)
    assert counts["peer"] == len(WEIGHTS)
    assert counts["disk"] == len(FILES["config.json"])
    assert sum(counts.values()) == MODEL_BYTES


async def test_jobs_for_the_same_model_share_its_fetches(engine: Engine, hub: Hub) -> None:
    """Two jobs at once cost one copy, and both are done."""
    jobs = [start(engine) for _ in range(2)]
    await eventually(lambda: all(job.state in FINAL_STATES for job in jobs), "both ends")
    assert {job.state for job in jobs} == {JobState.DONE}
    assert hub.stats.path_bytes[KEY] == len(WEIGHTS)


async def test_patterns_choose_files_and_a_pattern_without_any_is_an_error(
    engine: Engine,
) -> None:
    """Include and exclude work together; nothing chosen names what there is."""
    job = await engine.pull(REPO, include=("*.safetensors",), exclude=("model*",))
    assert (job.state, job.bytes_total) == (JobState.DONE, 3 * CHUNK_BYTES)
    job = await engine.pull(REPO, include=("*.gguf",))
    assert job.state is JobState.FAILED
    assert isinstance(job.error, InputError)
    assert "config.json" in str(job.error)


@pytest.mark.parametrize(
    ("repo", "error"), [("org/none", RepositoryNotFoundError), (GATED, GatedRepositoryError)]
)
async def test_failed_job_keeps_its_error(
    engine: Engine, repo: str, error: type[Exception]
) -> None:
    """A job that failed says why, as one of our errors."""
    job = await engine.pull(repo)
    assert (job.state, type(job.error)) == (JobState.FAILED, error)


async def test_gated_model_comes_with_its_token(engine: Engine) -> None:
    """The caller's token is used for the whole job."""
    job = await engine.pull(GATED, token=TOKEN)
    assert (job.state, job.error) == (JobState.DONE, None)


@pytest.mark.parametrize(
    ("token", "ending"), [(TOKEN, JobState.DONE), (None, JobState.FAILED)], ids=["known", "anybody"]
)
async def test_rest_of_a_model_that_turns_private_is_for_whom_the_hub_lets_in(
    engine: Engine, hub: Hub, monkeypatch: pytest.MonkeyPatch, token: str | None, ending: JobState
) -> None:
    """Not for peers, nor, though a copy is here, for a job that was ordered without a token."""
    monkeypatch.setattr(jobrun, "FILES_AT_ONCE_MAX", 1)
    files = {"config.json": bytes(3 * CHUNK_BYTES), "model.bin": WEIGHTS}
    opened = hub.add(Repository("org/opened", files, tokens=[TOKEN]))
    hub.add(Repository("org/own", {"model.bin": WEIGHTS}, private=True, tokens=[TOKEN]))
    await engine.pull("org/own", token=TOKEN)
    hub.set_faults(hang_after_bytes=CHUNK_BYTES, paths="org/opened/config.json")
    order = JobOrder(ModelReference.parse("org/opened"))
    job = engine.downloads.start(order, Credentials(token))
    await eventually(lambda: job.count_bytes().total() > 0, "the first file has begun")
    assert job.is_public
    snapshot, entry = await engine.find("org/opened", "model.bin")
    opened.private = True
    assert not (await engine.cache.access.visibility.prove(snapshot)).is_public
    hub.set_faults()
    await eventually(lambda: job.is_over, "the download's end", timeout_s=30.0)
    assert job.state is ending
    assert await engine.cache.describe(entry.digest) is None
    found = engine.context.store.path_of(entry.digest)
    assert found.stat().st_mode & 0o777 == 0o400


async def test_order_for_others_is_asked_about_again_after_a_no(engine: Engine) -> None:
    """A no that the hub has taken back since does not end what is resumed."""
    snapshot, _ = await engine.find(REPO, "config.json")
    job = Job("0" * 16, JobOrder(ModelReference.parse(REPO), workers=("gpu",)))
    job.commit, job.is_public = snapshot.id.commit, False
    passing = Passing(engine.cache, engine.downloads.crew, job, lambda _: None)
    await passing.run(lambda order, job: job)
    assert (job.is_public, job.commit) == (True, snapshot.id.commit)


async def test_model_that_does_not_fit_is_refused_before_its_first_byte(
    make_cache: MakeCache, hub: Hub
) -> None:
    """The disk is looked at before anything is fetched."""
    engine = await make_cache("b", free_floor_bytes=1 << 60)
    job = await engine.pull(REPO)
    assert isinstance(job.error, StoreFullError)
    assert hub.stats.body_bytes == 0


async def test_wrong_file_fails_the_job_and_its_sums_stay_possible(
    engine: Engine, hub: Hub
) -> None:
    """A hub that sends a wrong byte costs the job; what is counted never exceeds the total."""
    hub.set_faults(flips={KEY: 100}, rate_bytes_per_s=3_000_000)
    job = start(engine)
    while job.state not in FINAL_STATES:
        assert sum_bytes(engine, job) <= max(job.bytes_total, MODEL_BYTES)
        await asyncio.sleep(0.005)
    assert isinstance(job.error, IntegrityError)


async def test_cancel_stops_the_fetch_and_keeps_its_chunks(engine: Engine, hub: Hub) -> None:
    """A cancelled job ends at once; another one goes on from what it left."""
    await engine.find(REPO, "config.json")
    hub.set_faults(hang_after_bytes=2 * CHUNK_BYTES, paths=KEY)
    job = start(engine)
    await eventually(lambda: sum_bytes(engine, job) > 4 * CHUNK_BYTES, "some chunks")
    before = sum_bytes(engine, job)
    await engine.downloads.cancel(job.id)
    assert (job.state, job.error) == (JobState.CANCELLED, None)
    assert sum_bytes(engine, job) >= before
    hub.set_faults()
    again = await engine.pull(REPO)
    assert again.state is JobState.DONE
    assert engine.downloads.count_bytes(again)["disk"] >= 4 * CHUNK_BYTES


async def test_cancel_before_the_first_step_is_cancelled(engine: Engine) -> None:
    """A job that never began ends as cancelled, not as queued for ever."""
    job = start(engine)
    await engine.downloads.cancel(job.id)
    assert job.state is JobState.CANCELLED


async def test_cancel_of_a_finished_job_changes_nothing(engine: Engine) -> None:
    """Done stays done."""
    job = await engine.pull(REPO)
    assert (await engine.downloads.cancel(job.id)).state is JobState.DONE
    with pytest.raises(JobNotFoundError):
        await engine.downloads.cancel("0" * 16)


async def test_one_of_two_jobs_cancelled_leaves_the_other(engine: Engine, hub: Hub) -> None:
    """The fetch that two share goes on for the one that stays."""
    hub.set_faults(rate_bytes_per_s=1_500_000)
    first, second = start(engine), start(engine)
    await eventually(lambda: sum_bytes(engine, second) > 2 * CHUNK_BYTES, "some chunks")
    await engine.downloads.cancel(first.id)
    await eventually(lambda: second.state in FINAL_STATES, "the other's end")
    assert (second.state, second.error) == (JobState.DONE, None)
    assert hub.stats.path_bytes[KEY] == len(WEIGHTS)


async def test_pull_right_after_a_cancel_succeeds(engine: Engine, hub: Hub) -> None:
    """Ctrl-C and again at once: the second pull is not told that the daemon stops."""
    await engine.find(REPO, "config.json")
    hub.set_faults(hang_after_bytes=2 * CHUNK_BYTES, paths=KEY)
    first = start(engine)
    await eventually(lambda: sum_bytes(engine, first) > 4 * CHUNK_BYTES, "some chunks")
    cancelling = asyncio.create_task(engine.downloads.cancel(first.id))
    await asyncio.sleep(0)
    hub.set_faults()
    second = await engine.pull(REPO)
    await cancelling
    assert (second.state, second.error) == (JobState.DONE, None)


async def test_pin_is_recorded_once_the_model_is_here(engine: Engine) -> None:
    """A job with a pin leaves one that names revision and commit."""
    job = await engine.pull(REPO, is_pin=True)
    pins = await engine.context.index.call(lambda i: i.roots.list_pins())
    assert [(pin.revision, pin.commit) for pin in pins] == [("main", job.commit)]


async def test_finished_jobs_are_bounded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest finished jobs are forgotten, running ones never."""
    monkeypatch.setattr(downloads_module, "JOBS_KEPT_MAX", 3)
    jobs = [await engine.pull(REPO, include=("config.json",)) for _ in range(5)]
    assert [job.id for job in engine.downloads.list_all()] == [job.id for job in jobs[-3:]]
    with pytest.raises(JobNotFoundError):
        engine.downloads.get(jobs[0].id)


async def test_rate_is_bytes_over_time(engine: Engine, hub: Hub) -> None:
    """While bytes flow the rate is near the hub's; a job from the disk has none."""
    await engine.pull(REPO, exclude=("pytorch_model.bin",))
    hub.set_faults(rate_bytes_per_s=600_000)
    job = start(engine)
    rates, clock = [], engine.context.clock
    began_s = clock.monotonic_s()
    while job.state not in FINAL_STATES:
        rates.append(engine.downloads.measure_rate(job))
        await asyncio.sleep(0.01)
    assert max(rates) < 3_000_000
    # Of what it was by this test's own count: a busy machine is slower than the hub.
    counted_bps = len(WEIGHTS) / (clock.monotonic_s() - began_s)
    assert sorted(rates)[len(rates) * 3 // 4] > counted_bps / 3
    warm = await engine.pull(REPO)
    assert [engine.downloads.measure_rate(warm) for _ in range(3)] == [0.0] * 3


async def test_rate_counts_what_is_off_the_wire_before_its_chunk_is_whole(
    engine: Engine, hub: Hub
) -> None:
    """On a slow line a job does not seem to stand still until its first chunk is there."""
    small = sum(map(len, FILES.values())) - len(WEIGHTS)
    await engine.pull(REPO, exclude=("pytorch_model.bin",))
    hub.set_faults(rate_bytes_per_s=8_000)
    job = start(engine)
    await eventually(lambda: engine.downloads.measure_rate(job) > 1_000, "a rate")
    assert engine.downloads.count_bytes(job)["upstream"] < CHUNK_BYTES
    shown = describe_job(job, now_s=engine.context.clock.monotonic_s())
    assert shown["bytes_done"] == small
    eta_s = shown["eta_s"]
    assert isinstance(eta_s, float)
    assert 0 < eta_s < len(WEIGHTS) / 1_000
    await engine.downloads.cancel(job.id)


async def test_close_stops_what_runs_and_leaves_it_to_the_next_start(
    make_cache: MakeCache, hub: Hub
) -> None:
    """Stopping the daemon stops every job; their chunks are kept, and they are not over."""
    engine = await make_cache("b")
    await engine.find(REPO, "config.json")
    hub.set_faults(hang_after_bytes=2 * CHUNK_BYTES, paths=KEY)
    job = start(engine)
    await eventually(lambda: sum_bytes(engine, job) > 4 * CHUNK_BYTES, "some chunks")
    assert engine.downloads.count_running() == 1
    await engine.downloads.close()
    assert (job.state, job.task) == (JobState.QUEUED, None)


async def test_fault_of_ours_is_an_error_with_a_sentence(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception that nobody foresaw ends the job as failed, and shows no traceback."""

    async def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(engine.cache.space.rooms, "make", fail)
    job = await engine.pull(REPO)
    assert job.state is JobState.FAILED
    assert "log says more" in str(job.error)
