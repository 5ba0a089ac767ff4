"""
Owns the tests of core.residency.

Knows nothing of the index.
Invariants: local and missing bytes add up to the total.
Source: core/residency.py.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcache.core.residency import FileResidency, State, measure_residency, sum_whole


@st.composite
def file_residencies(draw: st.DrawFn) -> FileResidency:
    """A file that is held in part, in whole, or proven."""
    size = draw(st.integers(0, 100))
    held, is_proven, is_damaged = st.integers(0, size), st.booleans(), st.booleans()
    return FileResidency(size, draw(held), draw(is_proven), is_damaged=draw(is_damaged))


@given(st.lists(file_residencies()))
def test_residency_any_files_add_up(files: list[FileResidency]) -> None:
    """Nothing is counted twice, and resident means that nothing is missing."""
    found = measure_residency(files)
    assert found.bytes_local + found.bytes_missing == found.bytes_total
    assert found.bytes_total == sum(entry.size_bytes for entry in files)
    assert (found.state is State.RESIDENT) is all(entry.is_proven for entry in files)
    if found.state is State.RESIDENT:
        assert found.bytes_missing == 0


@given(st.lists(st.tuples(st.integers(0, 100), st.floats(0, 1e10))))
def test_residency_of_what_is_whole_is_the_same_in_less_time(rows: list[tuple[int, float]]) -> None:
    """Who has counted the bytes before need not count them again."""
    files = [FileResidency(size, size, True, wall_s) for size, wall_s in rows]
    total = sum(size for size, _ in rows)
    assert sum_whole(total, (wall_s for _, wall_s in rows)) == measure_residency(files)


@pytest.mark.parametrize(
    ("files", "state"),
    [
        ([], State.RESIDENT),
        ([FileResidency(10, 0, True)], State.RESIDENT),
        ([FileResidency(10, 0, False)], State.ABSENT),
        ([FileResidency(10, 3, False)], State.PARTIAL),
        ([FileResidency(10, 10, False)], State.VERIFYING),
        ([FileResidency(10, 0, True), FileResidency(10, 0, False)], State.PARTIAL),
        ([FileResidency(10, 0, True), FileResidency(10, 10, False)], State.VERIFYING),
        ([FileResidency(10, 8, False, is_damaged=True)], State.CORRUPT),
        ([FileResidency(10, 0, False, is_damaged=True), FileResidency(9, 0, False)], State.CORRUPT),
        ([FileResidency(10, 0, True, is_damaged=True)], State.RESIDENT),
    ],
)
def test_residency_each_state_has_its_case(files: list[FileResidency], state: State) -> None:
    """The states follow from what is held and what is proven."""
    assert measure_residency(files).state is state


def test_residency_is_as_fresh_as_the_file_that_was_hashed_longest_ago() -> None:
    """A time is given for what is here as a whole, and for nothing else."""
    files = [FileResidency(1, 0, True, 7.0), FileResidency(1, 0, True, 5.0)]
    assert measure_residency(files).verified_wall_s == 5.0
    assert measure_residency([*files, FileResidency(1, 1, False)]).verified_wall_s is None
    assert measure_residency([]).verified_wall_s is None
