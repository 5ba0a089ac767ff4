"""
Owns a small run of the replay: one phase against two, killed and retried.

Knows nothing of the full size, which `make two-phases` takes.
Invariants: shares and counts, no speeds.
Source: bench/two_phase.py.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.timeline import Bar, Row, draw
from bench.two_phase import Attempt, Run, find_misses, make_rows, measure

# Large beside the chunks that are on their way when a daemon is killed, four of 4 MiB at most.
SIZE_BYTES = 64_000_000
RATE_BYTES_PER_S = 32_000_000


@pytest.mark.alone
@pytest.mark.timeout(120)
def test_two_phases_leave_no_device_idle_and_continue_after_a_kill() -> None:
    """The issue's claim: idle for the whole download, or not; from the beginning, or on."""
    one, two = measure(SIZE_BYTES, RATE_BYTES_PER_S, (0.6,))
    assert [one.name, two.name] == ["one phase, killed at 60%", "two phases, killed at 60%"]
    assert (one.wrong_files, two.wrong_files) == ([], [])
    assert one.idle_s >= SIZE_BYTES / RATE_BYTES_PER_S
    assert two.idle_s < one.idle_s / 2
    assert one.upstream_ratio > 1.5
    assert two.upstream_ratio < 1.4, "at full size 1.01: less is on its way, in proportion"
    assert two.attempts[0].was_killed
    assert two.attempts[0].claimed_s is None


def make_run(name: str, *attempts: Attempt) -> Run:
    """Return a run of a model of 100 bytes."""
    return Run(name, 100, list(attempts), upstream_bytes=100)


def test_idle_time_is_counted_over_all_attempts() -> None:
    """One that was killed before it used the device was idle until its end."""
    killed = Attempt(0, claimed_s=1, ended_s=5, was_killed=True)
    waited = Attempt(5, claimed_s=6, used_s=16, ready_s=17, ended_s=18)
    never = Attempt(0, ended_s=3, was_killed=True)
    assert make_run("one phase", never, killed, waited).idle_s == 14


@pytest.mark.parametrize(
    ("name", "idle_s", "upstream", "missed"),
    [
        ("one phase", 10.0, 100, False),
        ("one phase", 9.0, 100, True),
        ("two phases", 0.5, 105, False),
        ("two phases", 1.5, 100, True),
        ("two phases", 0.5, 106, True),
    ],
)
def test_misses_are_what_the_issue_promises(
    name: str, idle_s: float, upstream: int, missed: bool
) -> None:
    """At ten bytes a second the download takes ten seconds."""
    run = make_run(name, Attempt(0, claimed_s=0, used_s=idle_s))
    run.upstream_bytes = upstream
    assert bool(find_misses([run], 10)) == missed


def test_picture_has_a_bar_for_each_part_and_a_mark_for_each_kill(tmp_path: Path) -> None:
    """It is SVG, whatever the titles hold; equal runs give equal pictures."""
    killed = Attempt(0, claimed_s=1, ended_s=5, was_killed=True)
    waited = Attempt(5, claimed_s=6, used_s=16, ended_s=18)
    rows = make_rows([make_run("one & <two>", killed, waited)])
    kinds = [bar.kind for bar in rows[0].bars]
    assert kinds == ["download", "idle", "download", "idle", "used"]
    assert rows[0].killed_s == (5,)
    draw("title", [*rows, Row("x", "y", (Bar("used", 0, 20),))], tmp_path / "a.svg")
    draw("title", [*rows, Row("x", "y", (Bar("used", 0, 20),))], tmp_path / "b.svg")
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    picture = ElementTree.fromstring(text)  # noqa: S314 - written a line above
    assert sum(element.tag.endswith("rect") for element in picture) == 1 + 6 + 3
    assert text.count("✕") == 2
