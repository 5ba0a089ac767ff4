"""
Owns the tests of the simulator's checks: each notices what it is there for.

Knows nothing of how often that happens.
Invariants: the core is broken on purpose, one rule at a time, and the right check says so.
Source: tests/sim/invariants.py.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from p2pcache.core.bitfield import Bitfield
from p2pcache.core.fetchevents import ChunkStored
from p2pcache.core.fetchmachine import FetchMachine
from p2pcache.core.pace import ExtraBytes
from p2pcache.core.tenure import Tenure
from p2pcache.core.transitions import CONSEQUENCES, Consequence, Outcome
from tests.sim.invariants import Violation
from tests.sim.member import Member
from tests.sim.setting import MEGABIT_BPS, Setting
from tests.sim.swarm import Swarm
from tests.sim.vice import Vice

Breaker = Callable[[pytest.MonkeyPatch], None]


def run_swarm(*vices: Vice, seed: int = 1, readers: int = 0) -> Swarm:
    """Run a small swarm in which some members have vices."""
    setting = Setting(peers=5, chunks=24, link_bps=100 * MEGABIT_BPS, readers=readers)
    swarm = Swarm(setting, seed)
    for number, vice in enumerate(vices, start=1):
        swarm.member(number).vice = vice
        if vice is Vice.POISONS:
            swarm.member(number).hold_everything()
    swarm.run()
    return swarm


def own_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is asked says that all is its own."""
    monkeypatch.setattr(
        "p2pcache.core.planner.find_owned", lambda view, candidates, **_: candidates.copy()
    )


def hold_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk that comes brings the next one with it."""
    store = FetchMachine._store

    def store_two(machine: FetchMachine, event: ChunkStored, now_s: float) -> list[object]:
        actions = store(machine, event, now_s)
        machine.have.add((event.chunk_index + 1) % machine.have.length)
        return list(actions)

    monkeypatch.setattr(FetchMachine, "_store", store_two)


def forget_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked stays in flight for ever."""
    monkeypatch.setattr(FetchMachine, "note_answered", lambda *_: None)


def announce_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that has ended is still announced."""
    end = FetchMachine._end

    def end_and_announce(machine: FetchMachine, *arguments: object) -> list[object]:
        actions = end(machine, *arguments)  # type: ignore[arg-type]
        machine.intent = Bitfield.full(machine.have.length)
        return list(actions)

    monkeypatch.setattr(FetchMachine, "_end", end_and_announce)


def ban_who_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Being asked for more than one has is a crime."""
    harsh = Consequence(fault="refused", is_ban=True)
    monkeypatch.setitem(CONSEQUENCES, Outcome.REFUSED, harsh)
    monkeypatch.setattr(Member, "serve", refuse_all)


def refuse_all(*_: object) -> object:
    """Answer every request with a refusal."""
    from tests.sim.transfers import Answer  # the class that is patched imports it too

    return Answer(Outcome.REFUSED)


def skip_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever came is published."""

    def publish(member: Member, _: object) -> None:
        member.is_published = True
        member._close_fetch()
        member.swarm.invariants.check_published(member)

    monkeypatch.setattr(Member, "_prove", publish)


def double_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every chunk under way is overdue, and may be asked for twice."""
    monkeypatch.setattr(ExtraBytes, "may_spend", lambda *_: True)
    monkeypatch.setattr(FetchMachine, "_try_give_up", lambda *_, **__: False)
    monkeypatch.setattr("p2pcache.core.pace.OVERDUE_UNMEASURED_S", 0.0)
    monkeypatch.setattr("p2pcache.core.pace.OVERDUE_S_MIN", 0.0)
    monkeypatch.setattr("p2pcache.core.pace.OVERDUE_FACTOR", 0.0)
    monkeypatch.setattr("p2pcache.core.pace.ENDGAME_OVERDUE_FACTOR", 0.0)


def lease_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody loses what it owes."""
    monkeypatch.setattr(Tenure, "find_stalled", lambda *_, **__: set())
    monkeypatch.setattr(Tenure, "find_lapsed", lambda *_: {})


@pytest.mark.parametrize(
    ("break_it", "said", "vices"),
    [
        (own_everything, "does not own|announced|peer has", ()),
        (hold_too_much, "counts chunks as held", ()),
        (forget_nothing, "asked of whom", ()),
        (announce_everything, "announces what it does not fetch", ()),
        (ban_who_refuses, "which is honest", ()),
        (skip_the_proof, "publishes what is not the blob", (Vice.POISONS, Vice.POISONS)),
        (double_everything, "twice on purpose", ()),
        (lease_for_ever, "no progress", (Vice.CLAIMS,)),
    ],
)
def test_invariant_that_the_core_breaks_is_noticed(
    monkeypatch: pytest.MonkeyPatch, break_it: Breaker, said: str, vices: tuple[Vice, ...]
) -> None:
    """A check that cannot fail checks nothing."""
    break_it(monkeypatch)
    with pytest.raises(Violation, match=said):
        run_swarm(*vices)


@pytest.mark.parametrize("vice", [vice for vice in Vice if vice is not Vice.LOAFS])
def test_swarm_with_each_vice_finishes(vice: Vice) -> None:
    """Unbroken, the same swarms end well."""
    swarm = run_swarm(vice, vice, readers=1)
    assert swarm.invariants.made["published"] >= 3
