"""
Owns the tests of core.transitions: the tables are whole, and say what the design says.

Knows nothing of the machine that looks up in them.
Invariants: every outcome has a consequence; no chunk has a third source.
Source: core/transitions.py; design.md §6.6.
"""

from __future__ import annotations

import pytest

from p2pcache.core.transitions import (
    CHUNK_TRANSITIONS,
    CONSEQUENCES,
    ChunkEvent,
    ChunkState,
    Outcome,
    Refusal,
)

# What cannot happen: there is nothing to end, and a third source is never asked.
IMPOSSIBLE = {
    (ChunkState.MISSING, ChunkEvent.END),
    (ChunkState.DOUBLED, ChunkEvent.ASK),
    (ChunkState.HELD, ChunkEvent.ASK),
}


def test_table_of_chunks_names_everything_that_can_happen() -> None:
    """Every state knows every event, but for what cannot be."""
    every = {(state, event) for state in ChunkState for event in ChunkEvent}
    assert every - set(CHUNK_TRANSITIONS) == IMPOSSIBLE


@pytest.mark.parametrize("state", ChunkState)
def test_chunk_that_is_stored_is_held_whatever_was_before(state: ChunkState) -> None:
    """Bytes that were verified count, asked for or not."""
    assert CHUNK_TRANSITIONS[state, ChunkEvent.STORE] is ChunkState.HELD


@pytest.mark.parametrize("state", ChunkState)
def test_chunk_that_is_in_doubt_is_not_held(state: ChunkState) -> None:
    """What is forgotten is wanted again."""
    assert CHUNK_TRANSITIONS[state, ChunkEvent.FORGET] is not ChunkState.HELD


def test_every_outcome_has_a_consequence() -> None:
    """A run cannot end in a way that nobody thought of."""
    assert set(CONSEQUENCES) == set(Outcome)


def test_only_wrong_bytes_are_proof_enough_for_a_ban() -> None:
    """Whatever else goes wrong may be the network's fault."""
    bans = [outcome for outcome, consequence in CONSEQUENCES.items() if consequence.is_ban]
    assert bans == [Outcome.WRONG_BYTES]
    assert CONSEQUENCES[Outcome.WRONG_BYTES].refusal is Refusal.CHUNK


@pytest.mark.parametrize(
    "outcome",
    [Outcome.DELIVERED, Outcome.CANCELLED, Outcome.RATE_LIMITED, Outcome.UPSTREAM_FAILED],
)
def test_outcome_that_is_no_peers_fault_costs_no_peer_anything(outcome: Outcome) -> None:
    """Neither success, nor our own change of mind, nor the hub is held against a peer."""
    consequence = CONSEQUENCES[outcome]
    assert consequence.rest_s == 0.0
    assert consequence.fault is None
    assert consequence.refusal is Refusal.NONE


def test_busy_peer_still_counts_as_having_its_chunks() -> None:
    """Else a busy seeder would send everybody to the hub."""
    assert not CONSEQUENCES[Outcome.BUSY].is_shunned
    for outcome in (Outcome.UNREACHABLE, Outcome.CRAWLED, Outcome.REFUSED):
        assert CONSEQUENCES[outcome].is_shunned
