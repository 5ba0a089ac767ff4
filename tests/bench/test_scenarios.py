"""
Owns tests of what swarms are measured by: bounds, parts, goals.

Knows nothing of networks.
Invariants: bounds are worked out by hand here.
Source: design.md §6.7.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.outcome import Outcome, PeerOutcome, find_misses, show_cpu, show_peers, show_row
from bench.scenarios import SCENARIOS, Goal, Scenario, find_bound_s

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
# 100 Mbit: at 100 Mb/s a second.
SIZE_BYTES = 12_500_000
GOAL = Goal(upstream_max=1.02, time_max=1.15)


def make_scenario(**changes: object) -> Scenario:
    """Return 4 peers at 100 Mb/s behind an upstream of 50 Mb/s, changed."""
    plain = Scenario("s", "s", GOAL, peers=4, upstream_mbit_s=50.0, link_mbit_s=100.0)
    return replace(plain, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "bound_s"),
    [
        ({}, 2.0),
        ({"upstream_mbit_s": 400.0}, 1.0),
        ({"upstream_mbit_s": 400.0, "link_mbit_s": 50.0}, 2.0),
        ({"upstream_mbit_s": 1.0, "link_mbit_s": 1.0}, 100.0),
        ({"upstream_mbit_s": 0.0, "seeders": 1}, 1.0),
        ({"upstream_mbit_s": 0.0, "seeders": 2, "link_mbit_s": 50.0}, 2.0),
        ({"peers": 400, "upstream_mbit_s": 100.0, "link_mbit_s": 99.0}, 100 / 99),
    ],
    ids=["upstream", "download", "narrow", "both", "seeder", "two-seeders", "many"],
)
def test_bound_is_the_largest_of_three(changes: dict[str, object], bound_s: float) -> None:
    """Whatever is narrowest, source, a download or all uploads together, gives the bound."""
    assert find_bound_s(make_scenario(**changes), SIZE_BYTES) == pytest.approx(bound_s)


def test_bound_with_a_late_peer_allows_it_its_own_time() -> None:
    """Who joins at 3 s cannot be ready before 4 s."""
    assert find_bound_s(make_scenario(), SIZE_BYTES, (0.5, 3.0)) == pytest.approx(4.0)


def test_parts_of_a_scenario_are_played_by_its_last_peers() -> None:
    """The first five are healthy; the seeder is none of the peers."""
    hostile, seeder = BY_NAME["hostile"], BY_NAME["seeder"]
    played = [hostile.part_of(name) for name in hostile.machine_names]
    assert played == ["healthy"] * 5 + ["frozen", "slow", "liar"]
    assert [seeder.part_of(name) for name in seeder.machine_names] == ["healthy"] * 7 + ["seeder"]


def test_joiners_are_told_from_the_first() -> None:
    """Three of eight begin later."""
    join = BY_NAME["join"]
    assert join.first_names() == ["p1", "p2", "p3", "p4", "p5"]
    assert list(zip(join.joiner_names(), join.joins, strict=True)) == [
        ("p6", 0.3),
        ("p7", 0.6),
        ("p8", 0.6),
    ]


def make_outcome(**changes: object) -> Outcome:
    """Return a run of two peers that met its goal, changed."""
    peers = [
        PeerOutcome(name, finished_s=2.0, received_bytes=SIZE_BYTES, exchanges=count)
        for name, count in (("p1", 10), ("p2", 20))
    ]
    plain = Outcome("s", "s", "p2pcache", SIZE_BYTES, peers, upstream_bytes=SIZE_BYTES,
                    time_s=2.0, bound_s=2.0)  # fmt: skip
    return replace(plain, **changes)  # type: ignore[arg-type]


def test_goal_that_is_met_has_no_misses() -> None:
    """Everything at its bound is met, and the rows say so."""
    outcome = make_outcome()
    assert find_misses(outcome, GOAL) == []
    assert show_row(outcome, GOAL).endswith("met")
    assert "1.000" in show_row(outcome, None)
    assert outcome.exchanges == 15
    assert len(show_peers(outcome)) == 3


@pytest.mark.parametrize(
    ("changes", "goal", "word"),
    [
        ({"upstream_bytes": SIZE_BYTES * 21 // 20}, GOAL, "upstream"),
        ({"time_s": 2.4}, GOAL, "bound"),
        ({"time_s": 2.4, "clean_s": 1.5}, Goal(1.02, clean_max=1.5), "clean"),
        ({"peers": [PeerOutcome("p1", received_bytes=0)]}, GOAL, "never ready: p1"),
        ({"peers": [PeerOutcome("p1", finished_s=1.0, wrong_files=["a"])]}, GOAL, "1 wrong"),
        (
            {"peers": [PeerOutcome("p1", finished_s=1.0, received_bytes=SIZE_BYTES * 2)]},
            GOAL,
            "extra bytes 1.000",
        ),
    ],
    ids=["upstream", "time", "clean", "late", "wrong", "extra"],
)
def test_goal_that_is_missed_says_which(changes: dict[str, object], goal: Goal, word: str) -> None:
    """Every kind of miss is found, and named."""
    misses = find_misses(make_outcome(**changes), goal)
    assert any(word in miss for miss in misses), misses
    assert "MISSED" in show_row(make_outcome(**changes), goal)


def test_peers_that_misbehave_are_not_waited_for() -> None:
    """A killed peer that is not ready, and what it received, is nobody's miss."""
    killed = PeerOutcome("p9", "killed", received_bytes=None)
    outcome = make_outcome()
    outcome.peers.append(killed)
    assert find_misses(outcome, GOAL) == []
    assert outcome.extra_share == 0


def test_time_without_a_bound_is_not_judged() -> None:
    """On loopback nothing is shaped, and a goal of time says nothing."""
    outcome = make_outcome(bound_s=None, time_s=99.0)
    assert outcome.time_ratio is None
    assert find_misses(outcome, GOAL) == []


def test_outcome_as_json_has_ratios_and_samples() -> None:
    """What is written has the numbers of the table beside the raw ones."""
    outcome = make_outcome(cpu_shares={"idle": 0.25})
    written = outcome.to_json()
    assert (written["upstream_ratio"], written["time_ratio"]) == (1.0, 1.0)
    assert (written["extra_share"], written["wrong_files"]) == (0.0, 0)
    assert show_cpu(outcome) == "  processors: idle 25%"
