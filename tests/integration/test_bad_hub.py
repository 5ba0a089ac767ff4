"""
Owns that a hub which misbehaves midway costs patience, and neither bytes nor copies.

Knows nothing of how single answers are read (tests/transfer, tests/hubs).
Invariants: the fault really acted; two daemons that share the work end with the same bytes.
Source: issue "the swarm", degrees of failure.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.daemons import DaemonProcess, wait_until
from tests.hub import HubProcess
from tests.integration.conftest import MakeDaemon
from tests.integration.trial import (
    CUT_BYTES_MAX,
    REPO,
    REQUESTS_MAX,
    WEIGHTS,
    WEIGHTS_BYTES,
    Trial,
    begin,
    finish,
    list_blamed,
)

# Slow enough for something to happen midway.
RATE_BYTES_PER_S = 12_000_000
BREAKS = 8


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """Return the model."""
    return Trial.make(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def hub(trial: Trial) -> Iterator[HubProcess]:
    """Run a hub that can be stopped midway."""
    with HubProcess(trial.folder, rate_bytes_per_s=RATE_BYTES_PER_S) as hub:
        yield hub


@pytest.fixture
def pair(hub: HubProcess, make_daemon: MakeDaemon) -> list[DaemonProcess]:
    """Run two daemons that know each other."""
    first = make_daemon("a", upstream=hub.url).start()
    return [first, make_daemon("b", upstream=hub.url, peers=[first.peer]).start()]


def begin_all(pair: list[DaemonProcess]) -> list[tuple[DaemonProcess, str]]:
    """Ask both daemons for the model."""
    return [(daemon, begin(daemon)) for daemon in pair]


def finish_all(trial: Trial, jobs: list[tuple[DaemonProcess, str]]) -> None:
    """Wait until both have it, and neither blames the other."""
    for daemon, job_id in jobs:
        trial.assert_survived(daemon, finish(daemon, job_id))
        assert list_blamed(daemon) == set()


def test_hub_that_is_away_for_a_while_is_sat_out(
    trial: Trial, hub: HubProcess, pair: list[DaemonProcess]
) -> None:
    """A hub that cuts all connections midway, and is back later, sends only what was cut again."""
    jobs = begin_all(pair)
    hub.wait_for(lambda stats: stats["body_bytes"] > 0.4 * trial.size_bytes)
    hub.set_listening(hub=False, cdn=False)
    for daemon, job_id in jobs:
        # All that was under way has ended, and nobody has given up.
        wait_until(lambda: daemon.client.download(job_id)["rate_bps"] == 0, "silence")  # noqa: B023
        assert daemon.client.download(job_id)["state"] == "downloading"
    hub.set_listening(hub=True, cdn=True)
    finish_all(trial, jobs)
    trial.assert_upstream(hub, lost_bytes=len(pair) * REQUESTS_MAX * CUT_BYTES_MAX)


def test_etag_that_changes_midway_changes_no_byte(
    trial: Trial, hub: HubProcess, pair: list[DaemonProcess]
) -> None:
    """Another ETag for the same commit is no reason to begin anew, nor to trust other bytes."""
    hub.faults(etag_changes_after=2, signed_url_ttl_s=0.5)
    finish_all(trial, begin_all(pair))
    asked = hub.stats()["requests"]["GET resolve"]
    assert asked > 2, "the fault had no occasion"
    trial.assert_upstream(hub)


def test_branch_that_moves_midway_does_not_mix_two_commits(
    trial: Trial, hub: HubProcess, pair: list[DaemonProcess]
) -> None:
    """Who began with a commit ends with it, whatever main is by then, and shares the new one."""
    first, second = pair
    job_id = begin(first)
    hub.wait_for(lambda stats: stats["body_bytes"] > 0.3 * trial.size_bytes)
    other = Random(5).randbytes(WEIGHTS_BYTES)
    commit = hub.commit(REPO, {WEIGHTS: other})
    job = finish(second, begin(second))
    trial.assert_survived(first, finish(first, job_id))
    assert Path(str(job["path"]), WEIGHTS).read_bytes() == other
    assert list_blamed(first) == list_blamed(second) == set()
    # Two models by now: both files of the first, and the new weights.
    trial.assert_upstream(hub, lost_bytes=len(other))
    sent = hub.stats()["body_bytes"]
    again = finish(first, begin(first, commit))
    assert Path(str(again["path"]), WEIGHTS).read_bytes() == other
    assert hub.stats()["body_bytes"] == sent


def test_signed_address_that_expires_midway_is_renewed(
    trial: Trial, hub: HubProcess, pair: list[DaemonProcess]
) -> None:
    """Bodies that break and addresses that have expired by then cost requests and no bytes."""
    hub.faults(signed_url_ttl_s=0.3, break_after_bytes=3_000_000, break_times=BREAKS)
    finish_all(trial, begin_all(pair))
    stats = hub.stats()
    assert stats["statuses"].get("cdn 403", 0) > 0, "no address expired"
    assert stats["statuses"]["cdn 403"] <= stats["requests"]["GET resolve"] + 2 * REQUESTS_MAX
    # A break is an orderly end here: all but the last piece was read.
    trial.assert_upstream(hub, lost_bytes=BREAKS * CUT_BYTES_MAX // 2)
    assert stats["token_leaks"] == []
