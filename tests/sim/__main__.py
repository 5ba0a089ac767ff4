"""
Owns the simulator's command line: `python -m tests.sim`, and `python -m tests.sim campaign`.

Knows nothing of swarms.
Invariants: ends with 0 only if nothing was violated; a violation prints what replays it.
Source: issue 4, item 2; Makefile, verb `sim`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path

from tests.sim.campaign import PROCESSES_MAX, Case, judge_all, keep
from tests.sim.faultplan import FAULTS
from tests.sim.invariants import Violation
from tests.sim.picture import draw_svg, draw_text
from tests.sim.report import make_report
from tests.sim.scenario import (
    SCENARIOS,
    draw_setting,
    make_drawn,
    make_scenario,
    parse_faults,
)
from tests.sim.setting import Setting
from tests.sim.swarm import Swarm

# What a daemon's loop takes to look; in large swarms news comes so often that looking at every one
# would take a simulator, and a daemon, more time than it is worth.
LOOK_DELAY_S, LARGE_LOOK_DELAY_S = 0.002, 0.02
LARGE_PEERS = 32


def parse_arguments(words: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--peers", type=int)
    parser.add_argument("--chunks", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scenario", choices=SCENARIOS, default="cold")
    parser.add_argument("--drawn", action="store_true", help="a small swarm as the seed draws it")
    parser.add_argument("--faults", default="", help=f"all, none, or some of {', '.join(FAULTS)}")
    parser.add_argument("--untrusting", action="store_true", help="peers are not believed")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--picture", type=Path, help="draw the progress: .svg, or text")
    return parser.parse_args(words)


def parse_campaign(words: list[str]) -> argparse.Namespace:
    """Read the command line of a campaign."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim campaign")
    parser.add_argument("--seeds", type=int, default=2000)
    parser.add_argument("--from", dest="first", type=int, default=1, help="the first seed")
    parser.add_argument("--faults", default="all")
    parser.add_argument("--processes", type=int, default=PROCESSES_MAX)
    return parser.parse_args(words)


def run_one(words: list[str]) -> int:
    """Run one swarm and show its figures."""
    arguments = parse_arguments(words)
    swarm, log = _make(arguments)
    problem = ""
    try:
        swarm.run()
    except Violation as error:
        problem = str(error)
    report = make_report(swarm, arguments.seed)
    if arguments.json:
        print(json.dumps({**report.to_json(), "faults": log, "violation": problem}))
    else:
        print("\n".join([*log, report.render()]))
    if arguments.picture is not None:
        is_svg = arguments.picture.suffix == ".svg"
        arguments.picture.write_text(draw_svg(swarm, log) if is_svg else draw_text(swarm) + "\n")
    if problem:
        print(f"VIOLATED {problem}", file=sys.stderr)
        print(f"replay: python -m tests.sim {shlex.join(words)}", file=sys.stderr)
    return 1 if problem else 0


def _make(arguments: argparse.Namespace) -> tuple[Swarm, list[str]]:
    seed = arguments.seed
    if arguments.drawn:
        setting = draw_setting(seed, peers=arguments.peers, chunks=arguments.chunks)
        swarm, plan = make_drawn(setting, seed, parse_faults(arguments.faults or "all"))
        return swarm, plan.log
    peers = arguments.peers or 8
    setting = Setting(
        peers=peers,
        chunks=arguments.chunks or 128,
        trusts_peers=not arguments.untrusting,
        look_delay_s=LOOK_DELAY_S if peers <= LARGE_PEERS else LARGE_LOOK_DELAY_S,
    )
    if arguments.faults:
        swarm, plan = make_drawn(setting, seed, parse_faults(arguments.faults))
        return swarm, plan.log
    return make_scenario(arguments.scenario, setting, seed), []


def run_campaign(words: list[str]) -> int:
    """Run many drawn swarms; show and keep those that fail."""
    arguments = parse_campaign(words)
    cases = [Case(arguments.first + n, arguments.faults) for n in range(arguments.seeds)]
    begun_s = time.monotonic()
    failed = done = 0
    for verdict in judge_all(cases, processes=arguments.processes):
        done += 1
        if verdict.problem:
            failed += 1
            keep(verdict)
            print(f"seed {verdict.case.seed}: {verdict.problem}\n  replay: {verdict.case.command}")
    print(f"{done} seeds, {failed} violations, {time.monotonic() - begun_s:.0f} s")
    return 1 if failed else 0


def main(words: list[str]) -> int:
    """Do what the command line says."""
    return run_campaign(words[1:]) if words[:1] == ["campaign"] else run_one(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
