"""
Owns the measure of the swarm: `python -m bench.swarm` runs the scenarios and prints one table.

Knows nothing of how a run is made.
Invariants: upstream bytes are counted at the hub; every file is compared with the original;
exit code 1 when a goal was missed.
Source: design.md §6; docs/how-to/measure-a-swarm.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.memory import open_memory_folder
from bench.model import BenchModel, make_model
from bench.outcome import HEADER, Outcome, find_misses, show_cpu, show_peers, show_row
from bench.scenarios import SCENARIOS, Scenario
from bench.swarmrun import run_scenario
from tests.discovery.link import find_obstacle

CLEAN = "cold"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.swarm", description=__doc__)
    parser.add_argument("--mib", type=int, default=512, help="size of the model (default 512)")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        choices=[s.name for s in SCENARIOS],
        help="this scenario; repeatable",
    )
    parser.add_argument("--list", action="store_true", help="name the scenarios and end")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw every peer's progress here, .png or .svg"
    )
    parser.add_argument(
        "--rivals",
        action="store_true",
        help="do the first scenario with libtorrent and with hf download too",
    )
    parser.add_argument(
        "--loopback", action="store_true", help="no namespaces and no shaping, though root could"
    )
    parser.add_argument(
        "--scratch",
        type=Path,
        metavar="DIR",
        help="where stores are made (default: memory, where it has room, else a temporary folder)",
    )
    parser.add_argument(
        "--keep-logs",
        type=Path,
        metavar="DIR",
        help="put the daemons' logs here, a folder for each scenario",
    )
    return parser.parse_args()  # fmt: skip


def choose(names: list[str]) -> list[Scenario]:
    """Return the scenarios to run; the hostile ones are compared with the clean one."""
    chosen = [s for s in SCENARIOS if not names or s.name in names]
    if any(s.goal.clean_max is not None for s in chosen):
        clean = [s for s in SCENARIOS if s.name == CLEAN and s not in chosen]
        return clean + chosen
    return chosen


def describe_machine(obstacle: str | None, size_bytes: int) -> str:
    """Return one line about what the numbers were got on."""
    where = "network namespaces, links shaped by tc tbf at both ends"
    if obstacle is not None:
        where = f"loopback, nothing shaped but the hub ({obstacle}); time is not judged"
    return f"{size_bytes >> 20} MiB in 4 files, {os.cpu_count()} cores; {where}"


@contextlib.contextmanager
def open_stores(scenario: Scenario, model: BenchModel, chosen: Path | None) -> Iterator[Path]:
    """
    Name a folder for the stores of one run, and remove it afterwards.

    In memory, unless somebody chose: every machine of a real swarm has a disk of its own, and
    one disk for all of them would be what is measured.
    """
    with contextlib.ExitStack() as cleanup:
        place = chosen
        if place is None:
            size_bytes = scenario.copies * model.size_bytes
            place = cleanup.enter_context(open_memory_folder(size_bytes))
        made = tempfile.TemporaryDirectory(prefix="p2pcache-swarm-", dir=place)
        folder = cleanup.enter_context(made)
        print(f"  stores in {'memory' if place and not chosen else folder}", flush=True)
        yield Path(folder) / scenario.name


def run_all(arguments: argparse.Namespace, scratch: Path) -> list[Outcome]:
    """Run what was asked for and print each result as it comes."""
    obstacle = "asked for" if arguments.loopback else find_obstacle()
    model: BenchModel = make_model(scratch / "models", arguments.mib << 20)
    print(describe_machine(obstacle, model.size_bytes), flush=True)
    goals = {s.name: s.goal for s in SCENARIOS}
    outcomes: list[Outcome] = []
    clean_s = None
    for scenario in choose(arguments.only):
        print(f"\n{scenario.name}: {scenario.title} …", flush=True)
        with open_stores(scenario, model, arguments.scratch) as stores:
            outcome = run_scenario(
                scenario, model, stores, is_shaped=obstacle is None, logs=arguments.keep_logs
            )
        if scenario.name == CLEAN:
            clean_s = outcome.time_s
        elif scenario.goal.clean_max is not None and obstacle is None:
            outcome.clean_s = clean_s
        outcomes.append(outcome)
        print("\n".join([*show_peers(outcome), HEADER, show_row(outcome, scenario.goal)]))
        print(show_cpu(outcome), flush=True)
    if arguments.rivals:
        from bench.rivals import RIVALS

        for rival in RIVALS:
            print(f"\n{rival.name}: the work of {SCENARIOS[0].name!r} …", flush=True)
            try:
                with open_stores(SCENARIOS[0], model, arguments.scratch) as stores:
                    outcome = rival.run(SCENARIOS[0], model, stores, is_shaped=obstacle is None)
            except ImportError as error:
                print(f"  left out: {error}; pip install --group bench")
                continue
            outcomes.append(outcome)
            print("\n".join([*show_peers(outcome), HEADER, show_row(outcome, None)]), flush=True)
    print(f"\n{HEADER}")
    for outcome in outcomes:
        goal = goals[outcome.scenario] if outcome.runner == "p2pcache" else None
        print(show_row(outcome, goal))
    print(
        "bound: max(F/u_s, F/d_min, N·F/(u_s+Σu_i)) at nominal link rates, headers not allowed for"
    )
    return outcomes


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments()
    if arguments.list:
        for scenario in SCENARIOS:
            print(f"{scenario.name:<10}{scenario.title}")
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(
            prefix="p2pcache-swarm-", dir=arguments.scratch
        ) as scratch:
            outcomes = run_all(arguments, Path(scratch))
    except KeyboardInterrupt:
        sys.exit(130)
    if arguments.json is not None:
        written = json.dumps([outcome.to_json() for outcome in outcomes], indent=1)
        arguments.json.write_text(written + "\n")
    if arguments.plot is not None:
        from bench.progressplot import draw

        draw(outcomes, arguments.plot)
    goals = {s.name: s.goal for s in SCENARIOS}
    own = [outcome for outcome in outcomes if outcome.runner == "p2pcache"]
    if any(find_misses(outcome, goals[outcome.scenario]) for outcome in own):
        sys.exit(1)


if __name__ == "__main__":
    main()
