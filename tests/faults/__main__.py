"""
Owns the harness's command line: `python -m tests.faults run|prove|replay`.

Knows nothing of single faults.
Invariants: ends with 0 only if nothing was found; what is skipped is named at the end.
Source: Makefile, verb `faults`.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.faults import report
from tests.faults.campaign import CLASSES
from tests.faults.mutation import MUTATIONS
from tests.faults.probe import find_abilities
from tests.faults.runner import Selection, open_runner
from tests.faults.tally import Tally, read_case

RESULT_PATH = Path(".cache") / "faults.json"
# How often it is looked whether a lane has ended.
LANE_LOOK_S = 0.2
# By SIGTERM, as shells count.
ENDED_CODE = 128 + signal.SIGTERM
PROOF_PATH = Path(".cache") / "faults-proof.json"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="put faults into operations, and judge")
    run.add_argument("--class", dest="classes", action="append", default=[], choices=CLASSES)
    run.add_argument("--operation", dest="operations", action="append", default=[])
    run.add_argument("--count", type=int, help="cases of each class; the whole without")
    run.add_argument("--seconds", type=float, help="at most so long for each class")
    run.add_argument("--seed", type=int, default=1)
    run.add_argument("--mutation", default="", choices=["", *MUTATIONS])
    run.add_argument("--aim", default="", help="only points whose site has this in it")
    run.add_argument("--lanes", type=int, default=1, help="processes side by side")
    run.add_argument(
        "--skip", type=int, default=0, help="leave out each lane's first cases: goes on after a cut"
    )
    run.add_argument("--part", default="0/1", help="one lane's share, as 0/2")
    run.add_argument("--out", type=Path, default=RESULT_PATH, help="the result, as JSON")
    proof = commands.add_parser("prove", help="break the store on purpose, and see it noticed")
    proof.add_argument("--out", type=Path, default=PROOF_PATH, help="the result, as JSON")
    replay = commands.add_parser("replay", help="one case again")
    replay.add_argument("case")
    return parser.parse_args()


def run(arguments: argparse.Namespace) -> int:
    """Run fault classes and show what came of them."""
    begun_s = time.monotonic()
    abilities = find_abilities()
    names = [one.name for one in report.choose_classes(arguments.classes)]
    skipped = report.list_skipped(abilities, names)
    counts = {
        name: arguments.count if arguments.count is not None else CLASSES[name].whole
        for name in names
        if name not in skipped
    }
    if arguments.lanes > 1:
        tallies = run_lanes(arguments)
    else:
        part, _, parts = arguments.part.partition("/")
        selection = Selection(
            counts,
            tuple(arguments.operations),
            arguments.seed,
            int(part),
            int(parts),
            arguments.skip,
            arguments.seconds,
            arguments.mutation,
            arguments.aim,
        )
        with open_runner(abilities) as runner:
            tallies = runner.run(selection)
    result = report.to_json(tallies, skipped, arguments.seed, time.monotonic() - begun_s)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1))
    if arguments.part == "0/1":
        show(tallies, skipped, arguments.seed, result["seconds"])
    return 0 if all(tally.is_clean for tally in tallies.values()) else 1


def run_lanes(arguments: argparse.Namespace) -> dict[str, Tally]:
    """Run the shares of a selection side by side, and put their counts together."""
    tallies: dict[str, Tally] = {}
    with tempfile.TemporaryDirectory(prefix="p2pcache-lanes-") as folder, ExitStack() as stack:
        waiting: dict[subprocess.Popen[bytes], Path] = {}
        for lane in range(arguments.lanes):
            out = Path(folder) / f"{lane}.json"
            command = [sys.executable, "-m", "tests.faults", "run", "--out", str(out)]
            command += ["--seed", str(arguments.seed), "--part", f"{lane}/{arguments.lanes}"]
            command += [f"--class={name}" for name in arguments.classes]
            command += [f"--operation={name}" for name in arguments.operations]
            for option in ("count", "skip", "seconds", "mutation", "aim"):
                value = getattr(arguments, option)
                command += [] if value in (None, "") else [f"--{option}={value}"]
            child = stack.enter_context(subprocess.Popen(command))
            stack.callback(child.terminate)
            waiting[child] = out
        while waiting:
            time.sleep(LANE_LOOK_S)
            for child in [child for child in waiting if child.poll() is not None]:
                out = waiting.pop(child)
                if not out.exists():
                    raise SystemExit(f"lane {out.stem} broke off ({child.returncode}); see above")
                for name, fields in json.loads(out.read_text())["classes"].items():
                    tallies.setdefault(name, Tally()).merge(Tally.from_json(fields))
    return tallies


def show(tallies: dict[str, Tally], skipped: dict[str, str], seed: int, seconds: float) -> None:
    """Print tables, failures, what was skipped, and the one line that counts."""
    machine = " ".join(f"{name} {value}" for name, value in report.describe_machine().items())
    print("cases of each class, at how many places in the code:\n")
    print(f"{report.write_coverage(tallies)}\n")
    for name, tally in tallies.items():
        print(f"{name}:", ", ".join(f"{n} × {kind}" for kind, n in tally.outcomes.most_common()))
    print(f"\n{report.write_table(tallies)}\n")
    failures = report.write_failures(tallies)
    print(f"{failures}\n" if failures else "", end="")
    print(f"seed {seed}, {seconds:.0f} s, {machine}")
    reasons = "; ".join(f"{name} ({reason})" for name, reason in skipped.items())
    print(f"skipped fault classes: {reasons or 'none'}")
    print(report.write_sums(tallies))


def prove(arguments: argparse.Namespace) -> int:
    """Break the store's order in every known way; ends with 0 if each was noticed."""
    abilities = find_abilities()
    classes = [mutation.class_name for mutation in MUTATIONS.values()]
    skipped = report.list_skipped(abilities, dict.fromkeys(classes))
    seen = {}
    with open_runner(abilities) as runner:
        for name, mutation in MUTATIONS.items():
            if mutation.class_name not in skipped:
                seen[name] = runner.prove(name)
                print(f"{name}: {f'noticed by {seen[name]}' if seen[name] else 'NOT NOTICED'}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"seen": seen, "skipped": skipped}, indent=1))
    return 0 if all(seen.values()) else 1


def replay(arguments: argparse.Namespace) -> int:
    """Run one case again and show all that was found."""
    scopes = {name: one.scope for name, one in CLASSES.items()}
    class_name, case = read_case(arguments.case, scopes)
    with open_runner(find_abilities()) as runner:
        verdict = runner.replay(class_name, case)
    print(f"at {verdict.site or 'no point: the fault was not reached'}")
    for finding in verdict.findings:
        print(f"{finding.rule}: {finding.text}\n")
    print(verdict.log)
    print("nothing was found" if not verdict.findings else f"{len(verdict.findings)} findings")
    return 1 if verdict.findings else 0


def main() -> int:
    """Do what the command line says."""
    arguments = parse_arguments()
    # What is mounted and started goes away with a lane that is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(ENDED_CODE))
    return {"run": run, "prove": prove, "replay": replay}[arguments.command](arguments)


if __name__ == "__main__":
    sys.exit(main())
