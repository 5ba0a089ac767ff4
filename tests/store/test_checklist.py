"""
Owns the tests of store.checklist: the index as a check sees it.

Knows nothing of files.
Invariants: what was never proven, or longest ago, comes first; condemned is what has a table and
is not proven.
Source: store/checklist.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from p2pcache.core.chunktable import Standing
from p2pcache.store.base import FileStamp
from p2pcache.store.index import Index
from tests.samples import make_sample
from tests.store.rows import list_rows
from tests.store.test_bloblist import make_row

pytestmark = pytest.mark.usefixtures("small_chunks")

OLD, NEW, UNSEEN = (make_sample(10_000, seed) for seed in range(3))


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """An index of three blobs: one hashed long ago, one lately, one never."""
    opened = Index(tmp_path / "index.sqlite")
    opened.blobs.put(replace(make_row(NEW), verified_wall_s=50.0))
    opened.blobs.put(replace(make_row(OLD), verified_wall_s=10.0, checked_chunks=2))
    opened.blobs.put(replace(make_row(UNSEEN, is_hashed=False), verified_wall_s=0.0))
    yield opened
    opened.close()


def test_checklist_lists_what_is_most_urgent_first(index: Index) -> None:
    """Never proven, then longest ago; a condemned one is told from one without a table."""
    rows = index.checks.list_all()
    assert [row.blob for row in rows] == [UNSEEN.blob, OLD.blob, NEW.blob]
    assert [row.is_condemned for row in rows] == [False] * 3
    index.checks.condemn(NEW.blob)
    [unseen, condemned, _] = index.checks.list_all()
    assert (unseen.blob, unseen.is_condemned) == (UNSEEN.blob, False)
    assert (condemned.blob, condemned.is_condemned) == (NEW.blob, True)


def test_checklist_finds_what_is_proven_and_since_when(index: Index) -> None:
    """What was asked for, and no more."""
    absent = make_sample(1, seed=9).blob
    wanted = [OLD.blob, UNSEEN.blob, absent]
    assert index.checks.find_proven(wanted) == {OLD.blob: 10.0}
    index.checks.condemn(OLD.blob)
    assert index.checks.find_proven([OLD.blob, NEW.blob]) == {NEW.blob: 50.0}


def test_checklist_is_due_by_age_by_proof_and_by_a_clock_that_jumped(index: Index) -> None:
    """Something unproven is always due; a time in the future is no proof of anything."""
    assert index.checks.has_due(0.0, 60.0)
    index.blobs.remove(UNSEEN.blob)
    assert not index.checks.has_due(5.0, 60.0)
    assert index.checks.has_due(20.0, 60.0)
    assert index.checks.has_due(5.0, 40.0)


@pytest.mark.parametrize("is_same", [True, False])
def test_checklist_right_file_is_proven_as_it_is_now(index: Index, is_same: bool) -> None:
    """The time alone where nothing changed; stamp and table too where the file was replaced."""
    row = index.blobs.find(OLD.blob)
    assert row is not None
    assert row.table is not None
    stamp = row.stamp if is_same else FileStamp(len(OLD.content), 7, 8)
    index.checks.note_right(row, stamp, row.table, 99.0)
    found = index.blobs.find(OLD.blob)
    assert found is not None
    assert (found.stamp, found.is_proven, found.verified_wall_s) == (stamp, True, 99.0)
    assert found.checked_chunks == 0
    assert found.table is not None
    assert found.table.standing is Standing.PROVEN


def test_checklist_forgets_how_far_checks_came(index: Index) -> None:
    """A check that begins anew begins at the first chunk of each."""
    index.checks.forget_progress()
    assert [row.checked_chunks for row in list_rows(index)] == [0, 0, 0]
