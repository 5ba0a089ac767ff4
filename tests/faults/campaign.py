"""
Owns the fault classes: what each needs, where its cases take place, which cases there are.

Knows nothing of running them.
Invariants: equal points and seed give equal cases; every point comes before any point comes twice.
Source: issue "a store that never lies", the first line of "done when".
"""

from __future__ import annotations

import contextlib
import errno
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.faults import fill, powercut, probe
from tests.faults.case import Bay, Case
from tests.faults.disk import Disk
from tests.faults.seam import (
    AT_POINTS,
    CALLS,
    CHANGES,
    LOOKS,
    READS,
    WRITES,
    Action,
    Group,
    Plan,
)

ERRNOS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.EROFS)
# What listing a folder can meet, without anything being wrong with what is in it.
LOOK_ERRNOS = (errno.EIO, errno.EMFILE)
# Threads make the number of points vary a little: more than were counted are tried.
POINTS_SLACK = 8
# Above, an operation finds all the room that it wants; in units of 4 KiB.
FILL_STEPS_MAX = 110
SYNCS_MAX = 40
# A start and an operation after it have about as many points; beyond, nothing is killed again.
RELAPSE_POINTS_MAX = 250
# Of each file system and set of mount options; 500 in all were asked for.
CUTS_WHOLE = 400
RELAPSES_WHOLE = 1000

MakeBay = Callable[[Case], Bay]
# Operation → the sites of its points, in their order.
Points = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class FaultClass:
    """
    One way to hurt a store.

    Attributes:
        needs: Abilities of the machine.
        scope: Which calls count as points.
        plans: All plans for one operation, given its points.
        opens: Opens the place for its cases.
        whole: How many cases the whole of it is; None for every plan once.
    """

    name: str
    title: str
    needs: tuple[str, ...]
    scope: frozenset[Group]
    plans: Callable[[Sequence[str], Random], Iterator[Plan]]
    opens: Callable[[Path], contextlib.AbstractContextManager[MakeBay]]
    whole: int | None = None

    def list_cases(
        self, points: Points, *, count: int | None, seed: int, aim: str = ""
    ) -> list[Case]:
        """Return so many cases, or all that there are, of points whose site has `aim` in it."""
        random = Random(f"{self.name}/{seed}")
        first, later = list[Case](), list[Case]()
        for operation, sites in points.items():
            seen = set[str]()
            for plan in self.plans(sites, random):
                case = Case(operation, plan, seed=random.randrange(1 << 30))
                is_beyond = plan.action in AT_POINTS and plan.at > len(sites)
                has_site = plan.action in AT_POINTS and not is_beyond
                site = sites[plan.at - 1] if has_site else f"{plan.number} {plan.at}"
                if aim in site:
                    (later if site in seen or is_beyond else first).append(case)
                    seen.add(site)
        random.shuffle(first)
        random.shuffle(later)
        cases = first + later
        if count is None or not cases:
            return cases
        rounds = itertools.count()
        while len(cases) < count:
            another_seed = seed + 1000 + next(rounds)
            cases += self.list_cases(points, count=None, seed=another_seed, aim=aim)
        return cases[:count]


def _plan_kills(sites: Sequence[str], random: Random) -> Iterator[Plan]:
    actions = (Action.KILL_BEFORE, Action.KILL_AFTER, Action.KILL_TORN)
    for at in range(1, len(sites) + 1):
        yield Plan(random.choice(actions), at, scope=CHANGES)


def _plan_relapses(sites: Sequence[str], random: Random) -> Iterator[Plan]:
    for at in range(1, len(sites) + 1):
        yield Plan(Action.KILL_AFTER, at, random.randrange(1, RELAPSE_POINTS_MAX), CHANGES)


def _plan_cuts(sites: Sequence[str], _: Random) -> Iterator[Plan]:
    for at in range(1, len(sites) + 1):
        yield Plan(Action.CUT, at, scope=CHANGES)


def _plan_errors(sites: Sequence[str], _: Random) -> Iterator[Plan]:
    for number, at in itertools.product(ERRNOS, range(1, len(sites) + POINTS_SLACK + 1)):
        yield Plan(Action.ERROR, at, number, CALLS)


def _plan_broken(sites: Sequence[str], random: Random) -> Iterator[Plan]:
    for at in range(1, len(sites) + 1):
        yield Plan(Action.ERRORS, at, random.choice(ERRNOS), CALLS)


def _plan_shorts(sites: Sequence[str], _: Random) -> Iterator[Plan]:
    for at in range(1, len(sites) + POINTS_SLACK + 1):
        yield Plan(Action.SHORT, at, scope=WRITES)


def _plan_reads(sites: Sequence[str], _: Random) -> Iterator[Plan]:
    for at in range(1, len(sites) + POINTS_SLACK + 1):
        yield Plan(Action.ERROR, at, errno.EIO, READS)


def _plan_looks(sites: Sequence[str], _: Random) -> Iterator[Plan]:
    for number, at in itertools.product(LOOK_ERRNOS, range(1, len(sites) + POINTS_SLACK + 1)):
        yield Plan(Action.ERROR, at, number, LOOKS)


def _plan_syncs(_: Sequence[str], __: Random) -> Iterator[Plan]:
    for number, at in itertools.product(ERRNOS, range(1, SYNCS_MAX + 1)):
        yield Plan(Action.SYNC, at, number)


def _plan_fills(_: Sequence[str], random: Random) -> Iterator[Plan]:
    steps = list(range(FILL_STEPS_MAX))
    random.shuffle(steps)
    for step in steps:
        yield Plan(Action.FILL, step)


@contextlib.contextmanager
def _open_folder(folder: Path) -> Iterator[MakeBay]:
    folder.mkdir()
    yield lambda case: Bay(folder)


@contextlib.contextmanager
def _open_mains(folder: Path, kind: str, options: str) -> Iterator[MakeBay]:
    with Disk(folder, kind, powercut.DISK_BYTES, options) as disk:
        mains = powercut.Mains(disk)
        yield lambda case: mains.bay(case.seed)


@contextlib.contextmanager
def _open_full(folder: Path, kind: str) -> Iterator[MakeBay]:
    with Disk(folder, kind, fill.DISK_BYTES) as disk:
        yield lambda case: fill.make_bay(disk)


def _list_classes() -> list[FaultClass]:
    def cut(name: str, kind: str, ability: str, options: str = "") -> FaultClass:
        return FaultClass(
            name,
            f"power cut, {kind}{', ' + options if options else ''}",
            (probe.FORK, probe.SQLITE_CALLS, ability),
            CHANGES,
            _plan_cuts,
            lambda folder: _open_mains(folder, kind, options),
            CUTS_WHOLE,
        )

    plain = (probe.FORK, probe.SQLITE_CALLS)
    return [
        FaultClass("kills", "SIGKILL", plain, CHANGES, _plan_kills, _open_folder, 2000),
        FaultClass(
            "relapses",
            "SIGKILL, and again at the next start",
            plain,
            CHANGES,
            _plan_relapses,
            _open_folder,
            RELAPSES_WHOLE,
        ),
        cut("cuts-ext4", "ext4", probe.EXT4),
        cut("cuts-ext4-ordered", "ext4", probe.EXT4, "data=ordered"),
        cut("cuts-xfs", "xfs", probe.XFS),
        cut("cuts-btrfs", "btrfs", probe.BTRFS),
        FaultClass("errors", "n-th call fails", plain, CALLS, _plan_errors, _open_folder),
        FaultClass(
            "broken", "every call from the n-th on", plain, CALLS, _plan_broken, _open_folder
        ),
        FaultClass("shorts", "short write", plain, WRITES, _plan_shorts, _open_folder),
        FaultClass("reads", "n-th read fails", plain, READS, _plan_reads, _open_folder),
        FaultClass(
            "looks", "n-th look at a folder or link fails", plain, LOOKS, _plan_looks, _open_folder
        ),
        FaultClass(
            "syncs",
            "n-th sync of the index fails",
            (probe.FORK, probe.STRACE),
            CHANGES,
            _plan_syncs,
            _open_folder,
        ),
        FaultClass(
            "fills-tmpfs",
            "full disk, tmpfs",
            (probe.FORK, probe.TMPFS),
            CHANGES,
            _plan_fills,
            lambda folder: _open_full(folder, "tmpfs"),
            150,
        ),
        FaultClass(
            "fills-ext4",
            "full disk, ext4",
            (probe.FORK, probe.EXT4),
            CHANGES,
            _plan_fills,
            lambda folder: _open_full(folder, "ext4"),
            150,
        ),
    ]


CLASSES: dict[str, FaultClass] = {one.name: one for one in _list_classes()}
