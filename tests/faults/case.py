"""
Owns one case: an operation, a fault in it, and everything that is looked at afterwards.

Knows nothing of how many cases there are.
Invariants: a case begins with a fresh copy of its stage; three readings follow a fault (as it is,
after recovery, after the operation was done again), each by the oracle.
Source: reliability.md §3.2.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import shutil
import time
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from p2pcache.core.digest import BlobDigest
from p2pcache.errors import P2PCacheError
from p2pcache.store.blobs import FileBlobStore
from tests.faults import vfs, witness
from tests.faults.bench import Bench, ErrorTeller, open_bench
from tests.faults.child import Channel, Outcome, run_child
from tests.faults.mutation import MUTATIONS
from tests.faults.operation import OPERATIONS, Operation
from tests.faults.oracle import Finding, Oracle, Rule
from tests.faults.promises import Promises
from tests.faults.seam import ENDINGS, READS, Action, Group, Plan, Seam
from tests.faults.stage import TORN_INDEX_NAME, Stages
from tests.faults.strace import Tracer
from tests.faults.world import CHUNK_BYTES, WORLD

# What a start may take, for stores of any size that a test has.
RECOVERY_S_MAX = 5.0
# The unit of a disk's free room in a plan.
FILL_STEP_BYTES = 4096
# What a model that is all here may be called after a start: its files may have to be hashed again.
HERE_STATES = ("resident", "verifying")


@dataclass(frozen=True, slots=True)
class Case:
    """What is needed to do it again."""

    operation: str
    plan: Plan
    seed: int = 0
    mutation: str = ""


@dataclass(slots=True)
class Verdict:
    """What came of a case."""

    case: Case
    site: str = ""
    findings: list[Finding] = field(default_factory=list)
    recovery_s: float = 0.0
    sites: list[tuple[Group, str]] = field(default_factory=list)
    log: str = ""
    seconds: float = 0.0
    # How the operation ended that met the fault: the error's name, empty if it worked.
    outcome: str = ""

    @property
    def was_reached(self) -> bool:
        """Return whether the fault happened."""
        return bool(self.site)


@dataclass(slots=True)
class Bay:
    """Where a case's site lies; power cuts bring a disk of their own."""

    folder: Path
    # Called in the child at the planned point.
    cut: Callable[[], None] | None = None
    # Called in the parent when the child is gone, before anybody looks.
    after_fault: Callable[[], None] = lambda: None
    # Called in the parent when the site is laid out.
    before_fault: Callable[[], None] = lambda: None
    # Called in the child: take all but so many bytes of the disk, and give them back.
    fill: Callable[[int], None] | None = None
    drain: Callable[[], None] = lambda: None

    @property
    def site(self) -> Path:
        """Return the folder of the site."""
        return self.folder / "site"


class Lab:
    """Runs cases. Used by a process without threads."""

    def __init__(self, stages: Stages, hub_url: str, *, has_vfs: bool) -> None:
        self._stages = stages
        self._hub_url = hub_url
        self._has_vfs = has_vfs

    def run(self, case: Case, bay: Bay) -> Verdict:
        """Run one case and judge it."""
        begun_s = time.monotonic()
        operation = OPERATIONS[case.operation]
        verdict = Verdict(case)
        shutil.rmtree(bay.site, ignore_errors=True)
        self._stages.lay_out(operation.stage, bay.site)
        bay.before_fault()
        tracer = _make_tracer(case, bay)
        fault = run_child(
            lambda channel: self._meet_fault(case, operation, bay, channel),
            attend=None if tracer is None else tracer.attach,
        )
        bay.after_fault()
        self._take_in(verdict, fault)
        if tracer is not None:
            verdict.site = tracer.finish()
        if case.plan.action is Action.COUNT:
            verdict.seconds = time.monotonic() - begun_s
            return verdict
        kept = operation.pinned if _may_take_away(case) else operation.promised
        promises = Promises.of(WORLD, kept, operation.pinned)
        promises.take_in(fault.messages)
        if case.plan.action in ENDINGS and case.plan.number:
            promises.take_in(self._kill_again(case, operation, bay).messages)
        if fault.was_killed or not verdict.outcome:
            verdict.outcome = "killed" if fault.was_killed else "it works"
        self._note_end(verdict, fault, is_ending=case.plan.action in ENDINGS)
        verdict.findings += _oracle(bay.site, operation).examine(is_settled=False)
        again = run_child(
            lambda channel: self._meet_recovery(case, operation, bay, promises, channel)
        )
        self._take_in(verdict, again)
        self._note_end(verdict, again, is_ending=False)
        verdict.seconds = time.monotonic() - begun_s
        return verdict

    def _kill_again(self, case: Case, operation: Operation, bay: Bay) -> Outcome:
        """Kill the next start, or what it does then, too."""
        plan = Plan(Action.KILL_AFTER, case.plan.number, scope=case.plan.scope)
        again = Case(case.operation, plan, case.seed, case.mutation)
        whole = replace(operation, covers_start=True)
        return run_child(lambda channel: self._meet_fault(again, whole, bay, channel))

    def _take_in(self, verdict: Verdict, outcome: Outcome) -> None:
        for message in outcome.messages:
            what = message["what"]
            if what == "fault":
                verdict.site = message["site"]
            elif what == "finding":
                verdict.findings.append(Finding(Rule(message["rule"]), message["text"]))
            elif what == "unexpected":
                verdict.findings.append(Finding(Rule.BEHAVIOUR, message["text"]))
            elif what == "failed":
                verdict.outcome = message["error"]
            elif what == "opened":
                verdict.recovery_s = message["seconds"]
            elif what == "points":
                verdict.sites = [(Group(group), site) for group, site in message["sites"]]
        verdict.log += outcome.log

    def _note_end(self, verdict: Verdict, outcome: Outcome, *, is_ending: bool) -> None:
        """A child ends by itself, or by the kill that was planned."""
        if is_ending and verdict.was_reached and not outcome.was_killed:
            text = "it was to be killed, and went on: the harness is wrong"
            verdict.findings.append(Finding(Rule.BEHAVIOUR, text))
        if outcome.is_hung:
            verdict.findings.append(Finding(Rule.BEHAVIOUR, f"it hangs:\n{outcome.log}"))
        elif not outcome.is_well and not (is_ending and outcome.was_killed):
            text = f"the process ended with status {outcome.status}:\n{outcome.log}"
            verdict.findings.append(Finding(Rule.BEHAVIOUR, text))

    # --- in the child that meets the fault ---

    def _meet_fault(self, case: Case, operation: Operation, bay: Bay, channel: Channel) -> None:
        store = bay.site / "store"
        logging.getLogger("p2pcache").addHandler(ErrorTeller(channel))
        witness.watch(channel)
        seam = Seam(
            store, case.plan, lambda number, site: channel.tell("fault", number=number, site=site)
        )
        if bay.cut is not None:
            seam.cut = bay.cut
        seam.lacking = operation.lacks
        seam.install()
        if self._has_vfs:
            vfs.install(seam)
        if case.mutation:
            MUTATIONS[case.mutation].apply(seam)
        asyncio.run(self._perform(case, operation, bay, seam, channel))
        seam.is_armed = False
        seam.lose_pages()
        channel.tell("points", sites=seam.sites)

    async def _perform(
        self, case: Case, operation: Operation, bay: Bay, seam: Seam, channel: Channel
    ) -> None:
        survives = case.plan.action not in ENDINGS and case.plan.action is not Action.COUNT

        async def meet(act: Callable[[], Awaitable[None]]) -> None:
            seam.is_armed = True
            if bay.fill is not None:
                bay.fill(case.plan.at * FILL_STEP_BYTES)
            await _attempt(act, channel)
            if bay.fill is not None:
                channel.tell("fault", site=f"{case.plan.at * FILL_STEP_BYTES} bytes free")
                bay.drain()
            seam.is_armed = seam.is_armed and not survives

        # strace counts from the process's first sync, and for each thread anew.
        if operation.covers_start or case.plan.action is Action.SYNC:
            await meet(lambda: self._open_and_act(operation, bay.site, channel))
            if survives:
                _tell_findings(channel, _oracle(bay.site, operation).examine(is_settled=False))
                if case.plan.action is not Action.SYNC:
                    await self._open_and_act(operation, bay.site, channel)
            return
        async with open_bench(bay.site, self._hub_url, channel, operation.settings) as bench:
            await meet(lambda: operation.act(bench))
            if survives:
                await self._look(operation, bench, channel)
                await operation.act(bench)

    async def _open_and_act(self, operation: Operation, site: Path, channel: Channel) -> None:
        async with open_bench(site, self._hub_url, channel, operation.settings) as bench:
            await operation.act(bench)

    async def _look(self, operation: Operation, bench: Bench, channel: Channel) -> None:
        """Look at files and claims while the engine that met the fault is open."""
        await bench.settle()
        oracle = _oracle(bench.site, operation)
        _tell_findings(channel, oracle.examine(is_settled=False))
        _tell_findings(channel, oracle.check_claims(await bench.measure(), {}, operation.doubtful))

    # --- in the child that comes after ---

    def _meet_recovery(
        self, case: Case, operation: Operation, bay: Bay, promises: Promises, channel: Channel
    ) -> None:
        logging.getLogger("p2pcache").addHandler(ErrorTeller(channel))
        if case.mutation:
            MUTATIONS[case.mutation].apply(None)
        asyncio.run(self._recover(case, operation, bay, promises, channel))
        oracle = _oracle(bay.site, None)
        _tell_findings(channel, oracle.examine(is_settled=True))
        left = sorted(path.name for path in (bay.site / "store" / "partial").iterdir())
        if left and operation.wanted:
            text = f"partial/ is not empty after everything was fetched: {left}"
            _tell_findings(channel, [Finding(Rule.ORPHAN, text)])
        done = Promises.of(WORLD, operation.wanted, ())
        _tell_findings(channel, oracle.check_promises(done))

    async def _recover(
        self, case: Case, operation: Operation, bay: Bay, promises: Promises, channel: Channel
    ) -> None:
        oracle, begun_s = _oracle(bay.site, operation), time.monotonic()
        async with open_bench(bay.site, self._hub_url, channel, operation.settings) as bench:
            seconds = time.monotonic() - begun_s
            channel.tell("opened", seconds=seconds)
            if seconds > RECOVERY_S_MAX:
                text = f"the start took {seconds:.1f} s"
                _tell_findings(channel, [Finding(Rule.BEHAVIOUR, text)])
            have = _open_partials(bay.site / "store") if case.seed % 2 else {}
            _tell_findings(channel, oracle.examine(is_settled=False))
            _tell_findings(channel, oracle.check_promises(promises))
            states = await bench.measure()
            _tell_findings(channel, oracle.check_claims(states, have, operation.doubtful))
            for repo in promises.snapshots:
                if states.get(repo) not in HERE_STATES:
                    text = f"{repo} was complete and is called {states.get(repo, 'unknown')}"
                    _tell_findings(channel, [Finding(Rule.LOST, text)])
            if operation.damaged:
                await operation.act(bench)
            await bench.clean()
            _tell_findings(channel, oracle.check_promises(promises))
            _tell_findings(channel, oracle.examine(is_settled=True))
            for repo in operation.wanted:
                await bench.pull(repo)
            await bench.clean()


async def _attempt(act: Callable[[], Awaitable[None]], channel: Channel) -> None:
    """Do something in which a fault is: it works, or it fails with an error of ours."""
    try:
        await act()
    except P2PCacheError as error:
        if type(error) is P2PCacheError:
            text = f"an error without a name: {error}"
            _tell_findings(channel, [Finding(Rule.BEHAVIOUR, text)])
        channel.tell("failed", error=type(error).__name__, text=str(error))
    except Exception:
        text = f"another error than ours:\n{traceback.format_exc()}"
        _tell_findings(channel, [Finding(Rule.BEHAVIOUR, text)])


def _may_take_away(case: Case) -> bool:
    """A full disk evicts what is not pinned; what cannot be read is taken for damaged."""
    return case.plan.action is Action.FILL or case.plan.scope == READS


def _make_tracer(case: Case, bay: Bay) -> Tracer | None:
    plan = case.plan
    if plan.action is not Action.SYNC:
        return None
    log = bay.folder / "strace.log"
    log.unlink(missing_ok=True)
    return Tracer(bay.site / "store", errno.errorcode[plan.number], plan.at, log)


def _oracle(site: Path, operation: Operation | None) -> Oracle:
    """Return the judge; without an operation, one that excuses nothing of its stage."""
    is_torn = (site / TORN_INDEX_NAME).exists()
    excused = frozenset[str]() if operation is None else operation.damaged
    return Oracle(site / "store", WORLD, CHUNK_BYTES, may_have_torn_index=is_torn, damaged=excused)


def _tell_findings(channel: Channel, findings: list[Finding]) -> None:
    for finding in findings:
        channel.tell("finding", rule=finding.rule.value, text=finding.text)


def _open_partials(store: Path) -> dict[str, list[int]]:
    """Return blob → chunks, as the product reads its records now."""
    blobs = FileBlobStore(store)
    have: dict[str, list[int]] = {}
    idle: list[BlobDigest] = [b for b in blobs.iter_partials() if blobs.is_filling(b)]
    for blob in idle:
        layout = blobs.find_layout(blob)
        if layout is not None:
            partial = blobs.open_partial(blob, layout)
            have[str(blob)] = list(partial.snapshot().have)
            partial.close()
    return have
