"""
Owns running the cases of fault classes in this process, one after the other.

Knows nothing of other processes that run other parts.
Invariants: everything happens in a folder that is gone afterwards; the hub is a process of its own;
the process that forks has no threads.
Source: none.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.faults.bench import make_small
from tests.faults.campaign import CLASSES, FaultClass, Points
from tests.faults.case import Bay, Case, Lab, Verdict
from tests.faults.mutation import MUTATIONS
from tests.faults.operation import OPERATIONS
from tests.faults.probe import SQLITE_CALLS, Abilities, fast_folder
from tests.faults.seam import EVERYTHING, Action, Group, Plan
from tests.faults.stage import Stages
from tests.faults.tally import Tally, write_case
from tests.faults.world import WORLD
from tests.hub import HubProcess

_PROGRESS_S = 10.0
# A broken order shows in one of so many well aimed cases.
MUTATION_CASES_MAX = 40
# Points vary a little from run to run: so far behind one that was not reached, none is tried.
BEYOND_MAX = 8


@dataclass(frozen=True, slots=True)
class Selection:
    """
    Which cases to run. `counts`: fault class → how many, None for all. `part` of `parts`: which
    share of them, and `skip` how many of that share are left out, first ones first.
    `seconds_max`: for each class, None for no limit.
    """

    counts: Mapping[str, int | None]
    operations: tuple[str, ...] = ()
    seed: int = 0
    part: int = 0
    parts: int = 1
    skip: int = 0
    seconds_max: float | None = None
    mutation: str = ""
    # Only points whose site has this in it.
    aim: str = ""


class Runner:
    """Runs cases in a folder. Made by open_runner()."""

    def __init__(self, folder: Path, lab: Lab) -> None:
        self._folder = folder
        self._lab = lab
        self._sites: dict[str, list[tuple[Group, str]]] = {}
        # (fault class, operation) → the lowest point that was not reached.
        self._ends: dict[tuple[str, str], int] = {}

    def run(self, selection: Selection) -> dict[str, Tally]:
        """Run a selection; returns fault class → counts."""
        tallies = {}
        for name, count in selection.counts.items():
            tallies[name] = self._run_class(CLASSES[name], count, selection)
        return tallies

    def replay(self, class_name: str, case: Case) -> Verdict:
        """Run one case."""
        with CLASSES[class_name].opens(self._folder / class_name) as make_bay:
            return self._lab.run(case, make_bay(case))

    def prove(self, name: str) -> str:
        """
        Break the store's order and look whether that is seen; what it was seen by, or nothing.
        """
        mutation = MUTATIONS[name]
        fault_class, operation = CLASSES[mutation.class_name], "pull"
        self._sites.clear()
        points = self._find_points(fault_class.scope, (operation,), name)
        cases = fault_class.list_cases(points, count=MUTATION_CASES_MAX, seed=0, aim=mutation.aim)
        with fault_class.opens(self._folder / name) as make_bay:
            for plain in cases:
                case = Case(operation, plain.plan, plain.seed, name)
                verdict = self._lab.run(case, make_bay(case))
                if any(finding.rule.value == mutation.rule for finding in verdict.findings):
                    return write_case(fault_class.name, case)
        return ""

    def _run_class(self, fault_class: FaultClass, count: int | None, selection: Selection) -> Tally:
        tally = Tally()
        names = selection.operations or tuple(OPERATIONS)
        points = self._find_points(fault_class.scope, names, selection.mutation)
        for name, sites in points.items():
            tally.note_points(name, list(sites))
        cases = fault_class.list_cases(points, count=count, seed=selection.seed, aim=selection.aim)
        mine = cases[selection.part :: selection.parts]
        begun_s = told_s = time.monotonic()
        with fault_class.opens(self._folder / fault_class.name) as make_bay:
            for number, plain in enumerate(mine[selection.skip :], selection.skip):
                now_s = time.monotonic()
                if selection.seconds_max is not None and now_s - begun_s > selection.seconds_max:
                    break
                if now_s - told_s > _PROGRESS_S:
                    told_s = now_s
                    print(f"{fault_class.name}: {number} of {len(mine)}", file=sys.stderr)
                case = Case(plain.operation, plain.plan, plain.seed, selection.mutation)
                end = (fault_class.name, case.operation)
                if case.plan.at > self._ends.get(end, case.plan.at) + BEYOND_MAX:
                    continue
                verdict = self._lab.run(case, make_bay(case))
                tally.add(fault_class.name, verdict)
                if not verdict.was_reached:
                    self._ends[end] = min(case.plan.at, self._ends.get(end, case.plan.at))
                for finding in verdict.findings:
                    text = f"{write_case(fault_class.name, case)} {finding.rule}: {finding.text}"
                    print(text[:600], file=sys.stderr)
        return tally

    def _find_points(
        self, scope: frozenset[Group], names: tuple[str, ...], mutation: str
    ) -> Points:
        """Let each operation pass once without a fault, and note where it could have had one."""
        for name in names:
            if name not in self._sites:
                plan = Plan(Action.COUNT, scope=EVERYTHING)
                case = Case(name, plan, mutation=mutation)
                verdict = self._lab.run(case, Bay(self._folder))
                text = [finding.text for finding in verdict.findings]
                assert not text, f"{name} fails without a fault: {text}"
                self._sites[name] = verdict.sites
        return {
            name: [site for group, site in self._sites[name] if group in scope] for name in names
        }


# One hub serves thousands of cases: it must not ask their daemons to go slowly.
QUOTA_REQUESTS = 1_000_000_000


@contextlib.contextmanager
def open_runner(abilities: Abilities) -> Iterator[Runner]:
    """Start a hub, make a folder; remove both afterwards."""
    make_small()
    with fast_folder() as folder:
        WORLD.write_to(folder / "models")
        with HubProcess(folder / "models", quota_requests=QUOTA_REQUESTS) as hub:
            assert threading.active_count() == 1, "a process that forks has one thread"
            lab = Lab(
                Stages(folder / "stages", hub.url), hub.url, has_vfs=abilities.has(SQLITE_CALLS)
            )
            yield Runner(folder, lab)
