"""
Owns many seeds: runs them side by side, and keeps those that fail.

Knows nothing of what can go wrong in a run.
Invariants: a violation is shown with the command that replays it; a failing seed is written to the
file of kept seeds, once, and the tests replay that file from then on.
Source: issue 4, item 2.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path

from tests.sim.invariants import Violation
from tests.sim.scenario import draw_setting, make_drawn, parse_faults

KEPT_PATH = Path(__file__).parent / "kept_seeds.txt"
# More would leave the machine nothing.
PROCESSES_MAX = 2


@dataclass(frozen=True, slots=True)
class Case:
    """One drawn swarm: everything that is needed to run it again."""

    seed: int
    faults: str = "all"

    @property
    def command(self) -> str:
        """Return what replays it."""
        return f"python -m tests.sim --drawn --seed {self.seed} --faults {self.faults}"

    @property
    def line(self) -> str:
        """Return its line in the file of kept seeds."""
        return f"{self.seed} {self.faults}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a case; `problem` is empty when all is well."""

    case: Case
    problem: str
    steps: int = 0


def judge(case: Case) -> Verdict:
    """Run one case to its end."""
    setting = draw_setting(case.seed)
    swarm, _ = make_drawn(setting, case.seed, parse_faults(case.faults))
    try:
        swarm.run()
    except Violation as error:
        return Verdict(case, str(error), swarm.world.steps)
    except Exception:
        # A fault of the core, or of the simulator: in both cases somebody has to look.
        return Verdict(case, traceback.format_exc(limit=-3), swarm.world.steps)
    return Verdict(case, "", swarm.world.steps)


def judge_all(cases: Iterable[Case], *, processes: int = PROCESSES_MAX) -> Iterable[Verdict]:
    """Run cases side by side; verdicts come in order."""
    if processes <= 1:
        yield from map(judge, cases)
        return
    with Pool(min(processes, PROCESSES_MAX)) as pool:
        yield from pool.imap(judge, cases, chunksize=8)


def read_kept(path: Path = KEPT_PATH) -> list[Case]:
    """Return the cases that failed once."""
    lines = [line.partition("#")[0].split() for line in path.read_text().splitlines()]
    return [Case(int(words[0]), words[1]) for words in lines if words]


def keep(verdict: Verdict, path: Path = KEPT_PATH) -> None:
    """Write a failing case down, if it is not there yet."""
    if verdict.case in read_kept(path):
        return
    problem = verdict.problem.strip().splitlines()[-1][:90]
    with path.open("a") as file:
        file.write(f"{verdict.case.line}  # {problem}\n")
