"""
Owns the tests of the candidate table: what it reports, and that nothing makes it grow.

Knows nothing of the network.
Invariants: after each step the cap holds.
Source: p2pcache/discovery/table.py; threats T11 and T12 of the threat model.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pcache.discovery.base import Candidate
from p2pcache.discovery.table import CandidateTable, TableChange


def at(port: int) -> Candidate:
    """A candidate that its port names."""
    return Candidate("10.0.0.7", port, "mdns")


def test_table_same_news_is_reported_once() -> None:
    """A repeated announcement changes nothing, whatever the case of its name."""
    table = CandidateTable(8)
    assert table.replace("a", [at(1)]) == TableChange(found=(at(1),))
    assert table.replace("A", [at(1)]) == TableChange()


def test_table_moved_peer_is_found_and_lost() -> None:
    """A new port is reported together with the end of the old one."""
    table = CandidateTable(8)
    table.replace("a", [at(1), at(2)])
    assert table.replace("a", [at(2), at(3)]) == TableChange(found=(at(3),), lost=(at(1),))


def test_table_shared_candidate_is_lost_with_its_last_name() -> None:
    """Who announces another's address and withdraws does not make it lost."""
    table = CandidateTable(8)
    table.replace("real", [at(1)])
    assert table.replace("fake", [at(1)]) == TableChange()
    assert table.remove("fake") == TableChange()
    assert table.remove("real") == TableChange(lost=(at(1),))


def test_table_unknown_name_removed_is_no_news() -> None:
    """A forged goodbye for a name never heard does nothing."""
    assert CandidateTable(8).remove("a") == TableChange()


def test_table_full_forgets_the_oldest_silently() -> None:
    """Being pushed out is no loss, and who is heard again is reported again."""
    table = CandidateTable(2)
    table.replace("a", [at(1)])
    table.replace("b", [at(2)])
    table.replace("a", [at(1)])
    assert table.replace("c", [at(3)]) == TableChange(found=(at(3),))
    assert len(table) == 2
    assert table.replace("a", [at(1)]) == TableChange(), "a was heard last, so b had to go"
    assert table.replace("b", [at(2)]) == TableChange(found=(at(2),))


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdefgh"), st.lists(st.integers(1, 9), max_size=4)),
        max_size=60,
    )
)
def test_table_any_sequence_stays_below_the_cap(steps: list[tuple[str, list[int]]]) -> None:
    """The count is right and never above the cap; nothing is found and lost at once."""
    table = CandidateTable(6)
    for name, ports in steps:
        change = table.replace(name, [at(port) for port in ports])
        assert len(set(ports)) <= len(table) <= 6
        assert not set(change.found) & set(change.lost)
    for name in "abcdefgh":
        table.remove(name)
    assert len(table) == 0
