"""
Owns the simulation's verdict: whole swarms, many seeds, and the issue's table.

Knows nothing of the engine's tasks.
Invariants: a seed that failed once is replayed for ever; counts and ratios are judged, in simulated
time, with the bound beside them.
Source: design.md §6; issue 4, "It is done when".
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from p2pcache.core.cadence import EXCHANGES_CROWD_PER_S_MAX
from p2pcache.core.ownership import OWNERS_MAX
from p2pcache.core.views import UPSTREAM
from tests.sim.__main__ import main
from tests.sim.campaign import Case, Verdict, judge, judge_all, keep, read_kept
from tests.sim.faultplan import FAULTS
from tests.sim.invariants import Violation
from tests.sim.member import MERE_WORDS
from tests.sim.report import Report, make_report
from tests.sim.scenario import SCENARIOS, draw_setting, make_drawn, make_scenario, parse_faults
from tests.sim.setting import MEGABIT_BPS, Setting
from tests.sim.vice import Vice

SEEDS = 200
# So many swarms in one test: enough to be quick, few enough to see which failed.
BATCH = 20


def run_scenario(name: str, setting: Setting, seed: int) -> Report:
    """Run one line of the table."""
    swarm = make_scenario(name, setting, seed)
    swarm.run()
    return make_report(swarm, seed)


@pytest.mark.parametrize("first", range(1, SEEDS + 1, BATCH))
def test_swarm_with_faults_violates_nothing(first: int) -> None:
    """Whatever goes wrong: only verified bytes count, ownership is kept, everybody finishes."""
    verdicts = judge_all((Case(seed) for seed in range(first, first + BATCH)), processes=1)
    failed = [f"{v.problem}\n  replay: {v.case.command}" for v in verdicts if v.problem]
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("case", read_kept(), ids=lambda case: str(case.seed))
def test_swarm_of_a_kept_seed_violates_nothing(case: Case) -> None:
    """What went wrong once does not come back."""
    verdict = judge(case)
    assert not verdict.problem, f"{verdict.problem}\n  replay: {case.command}"


@pytest.mark.parametrize("name", SCENARIOS)
def test_swarm_of_eight_keeps_the_bounds_of_the_table(name: str) -> None:
    """What the hub gives and how long it takes are near what is possible."""
    scenario = SCENARIOS[name]
    report = run_scenario(name, Setting(), seed=1)
    shown = f"{scenario.title}\n{report.render()}"
    assert report.amplification <= scenario.amplification_max, shown
    assert report.slowness <= scenario.time_max, shown
    assert report.extra_share <= 0.02, shown


@pytest.mark.parametrize("trusts_peers", [True, False])
def test_swarm_cold_together_takes_one_copy_whether_peers_are_trusted_or_not(
    trusts_peers: bool,
) -> None:
    """One that passes on first-hand chunks alone costs the hub no more."""
    setting = Setting(peers=5, chunks=40, trusts_peers=trusts_peers)
    report = run_scenario("cold", setting, seed=3)
    assert report.amplification <= 1.05, report.render()


@pytest.mark.parametrize(("mbit", "copies_max", "time_max"), [(4, 1.05, 1.3), (20, 1.15, 2.0)])
def test_swarm_does_not_wait_for_a_slow_member_that_streams(
    mbit: int, copies_max: float, time_max: float
) -> None:
    """It brings everything itself, and would take minutes; the others bring theirs."""
    swarm = make_scenario("stream", Setting(peers=4), seed=1)
    streamer = swarm.member(0)
    swarm.network.set_rate(streamer.down, mbit * MEGABIT_BPS)
    # Its own line keeps it busy for minutes: what counts is when the others are done.
    swarm.excused.add(streamer.id)
    swarm.run()
    report = make_report(swarm, seed=1)
    assert report.amplification <= copies_max, report.render()
    assert report.slowness <= time_max, report.render()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("vice", MERE_WORDS)
def test_swarm_does_not_wait_for_one_that_only_talks(vice: Vice, seed: int) -> None:
    """Whatever it says it will bring: everybody else finishes, and the hub gives little more."""
    swarm = make_scenario("cold", Setting(peers=4, chunks=40), seed)
    swarm.member(1).vice = vice
    swarm.run()
    report = make_report(swarm, seed)
    assert report.amplification <= 1.15, report.render()


@pytest.mark.parametrize("name", ["cold", "join"])
def test_swarm_of_many_takes_one_copy_though_nobody_talks_to_everybody(name: str) -> None:
    """Control messages are bounded for each daemon, however many there are."""
    report = run_scenario(name, Setting(peers=32, chunks=64), seed=2)
    assert report.amplification <= SCENARIOS[name].amplification_max, report.render()
    assert report.slowness <= SCENARIOS[name].time_max, report.render()
    assert report.messages_per_peer_and_s <= 2 * EXCHANGES_CROWD_PER_S_MAX, report.render()


def test_swarm_of_many_agrees_on_who_follows_a_lost_owner() -> None:
    """Else whoever takes itself for the next brings what others have begun."""
    swarm = make_scenario("kill", Setting(peers=64, chunks=48, look_delay_s=0.02), seed=2)
    swarm.run()
    report = make_report(swarm, seed=2)
    bringers = [m.number for m in swarm.members.values() if m.tally.chunks_from[UPSTREAM]]
    assert len(bringers) <= OWNERS_MAX + 1, report.render()
    assert report.amplification <= SCENARIOS["kill"].amplification_max, report.render()


def test_swarm_of_one_seed_always_tells_the_same_story() -> None:
    """A seed that fails can be run again."""
    stories = []
    for _ in range(2):
        setting = replace(draw_setting(4), peers=6, chunks=24)
        swarm, plan = make_drawn(setting, 4, list(FAULTS))
        swarm.run()
        stories.append((plan.log, make_report(swarm, 4), swarm.invariants.made))
    assert stories[0] == stories[1]


def test_swarm_run_checks_every_invariant() -> None:
    """A check that is never made proves nothing."""
    made: dict[str, int] = {}
    for seed in range(1, 13):
        swarm, _ = make_drawn(draw_setting(seed, peers=5, chunks=24), seed, ["liar", "kill"])
        swarm.run()
        for name, count in swarm.invariants.made.items():
            made[name] = made.get(name, 0) + count
    assert all(made.values()), made


# --- the command line ---


def test_command_prints_the_figures_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One command, one seed: figures as text or JSON, and a picture."""
    picture = tmp_path / "progress.svg"
    words = ["--peers", "3", "--chunks", "8", "--seed", "5", "--json", "--picture", str(picture)]
    assert main(words) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["upstream_by_model"] >= 1.0
    assert len(figures["members"]) == 3
    assert picture.read_text().startswith("<svg")
    assert picture.read_text().count("<title>member") == 3
    text = tmp_path / "progress.txt"
    assert main(["--peers", "3", "--chunks", "8", "--picture", str(text)]) == 0
    assert "time / bound" in capsys.readouterr().out
    assert text.read_text().count("|") == 3


def test_command_that_meets_a_violation_prints_how_to_replay_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A failing seed is worth nothing without its command."""

    def refuse(_: object) -> None:
        raise Violation("on purpose")

    monkeypatch.setattr("tests.sim.invariants.Invariants.check_end", refuse)
    assert main(["--peers", "2", "--chunks", "2", "--seed", "9"]) == 1
    said = capsys.readouterr().err
    assert "on purpose" in said
    assert "python -m tests.sim --peers 2 --chunks 2 --seed 9" in said


def test_campaign_that_finds_something_keeps_the_seed_once(tmp_path: Path) -> None:
    """What failed is written down, and read back as the same case."""
    path = tmp_path / "kept.txt"
    path.write_text("# kept\n")
    for _ in range(2):
        keep(Verdict(Case(17, "kill,loss"), "at 3 s: something"), path)
    assert read_kept(path) == [Case(17, "kill,loss")]
    assert "at 3 s: something" in path.read_text()


def test_campaign_command_counts_what_it_ran(capsys: pytest.CaptureFixture[str]) -> None:
    """Without violations it ends with 0."""
    assert main(["campaign", "--seeds", "2", "--faults", "none", "--processes", "1"]) == 0
    assert "2 seeds, 0 violations" in capsys.readouterr().out


def test_parse_faults_knows_all_none_and_names() -> None:
    """A kind that does not exist is named."""
    assert parse_faults("none") == []
    assert parse_faults("all") == list(FAULTS)
    assert parse_faults("kill,loss") == ["kill", "loss"]
    with pytest.raises(ValueError, match="flood"):
        parse_faults("kill,flood")
