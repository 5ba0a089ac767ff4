"""
Owns the tests of core.likeness: which parts are guessed to be alike, and where a look is taken.

Knows nothing of files.
Invariants: what is guessed has the same names, types, shapes and lengths on both sides; equal
inputs give equal guesses; the bytes to look at lie inside the part.
Source: core/likeness.py; docs/decisions/0010-deduplication.md.
"""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcache.core import likeness as module
from p2pcache.core.digest import BlobDigest
from p2pcache.core.likeness import (
    FIRST_PROBES,
    PROBE_BYTES,
    PROBES_MAX,
    Likeness,
    Place,
    find_likenesses,
)
from p2pcache.core.tensors import LARGE_TENSOR_BYTES_MIN, Tensor, TensorMap

A, B = (BlobDigest("sha256", digit * 64) for digit in "ab")
LARGE = LARGE_TENSOR_BYTES_MIN
# Name, type and shape, length.
Described = tuple[str, str, int]


def make_map(tensors: list[Described], head_bytes: int = 1000) -> TensorMap:
    """Return the map of a file with these tensors."""
    made, start = [], head_bytes
    for name, kind, length in tensors:
        made.append(Tensor(name, kind, start, length))
        start += length
    return TensorMap(start, head_bytes, tuple(made))


def find(wanted: TensorMap, *here: TensorMap, seed: int = 0) -> list[Likeness]:
    """Compare with files that are called A, B."""
    return find_likenesses(wanted, dict(zip((A, B), here, strict=False)), random=Random(seed))


BASE: list[Described] = [(f"t{n}", "F32[4]", LARGE + 8 * n) for n in range(40)]


def test_same_tensors_at_other_offsets_are_found() -> None:
    """A tensor in front shifts everything and changes nothing."""
    wanted, here = make_map([("new", "F32[1]", LARGE), *BASE], 5000), make_map(BASE)
    found = find(wanted, here)
    assert sorted(likeness.start for likeness in found) == [t.start for t in wanted.tensors[1:]]
    by_start = {tensor.start: tensor for tensor in wanted.tensors}
    there = {tensor.name: tensor.start for tensor in here.tensors}
    for likeness in found:
        tensor = by_start[likeness.start]
        assert likeness.length == tensor.length
        assert likeness.places == (Place(A, there[tensor.name]),)


@pytest.mark.parametrize(
    "other", [("u", "F32[4]", LARGE), ("t", "F16[4]", LARGE), ("t", "F32[4]", LARGE + 1)]
)
def test_other_name_type_shape_or_length_is_not_alike(other: Described) -> None:
    """Only what could be the same bytes is looked at."""
    wanted = make_map([("t", "F32[4]", LARGE)])
    assert len(find(wanted, wanted)) == 1
    assert find(wanted, make_map([other])) == []
    assert find(wanted) == []


def test_small_tensors_are_compared_as_the_parts_that_they_form() -> None:
    """Neighbours that differ make another part; a large tensor between sets it right again."""
    tail: list[Described] = [("large", "F32[4]", LARGE), ("x", "F32[1]", 4), ("y", "F32[1]", 4)]
    wanted = make_map([("a", "F32[1]", 4), ("b", "F32[1]", 4), *tail])
    here = make_map([("a", "F32[1]", 4), *tail])
    assert sorted(likeness.length for likeness in find(wanted, here)) == [8, LARGE]


def test_all_places_of_a_part_are_named_the_likeliest_file_first() -> None:
    """A base that was tuned twice is here three times."""
    one = make_map(BASE)
    other = make_map([("new", "U8[1]", LARGE), *BASE])
    for likeness in find(one, other, one):
        assert [place.blob for place in likeness.places] == [A, B]
        assert likeness.places[1].start == likeness.start


def test_first_looks_are_spread_over_large_and_small_and_the_rest_is_largest_first() -> None:
    """A handful that were all trained on must not hide the many that were not."""
    wanted = make_map(BASE)
    lengths = [likeness.length for likeness in find(wanted, wanted)]
    first, rest = lengths[:FIRST_PROBES], lengths[FIRST_PROBES:]
    assert first[0] == max(lengths)
    assert first == sorted(lengths, reverse=True)[:: len(lengths) // FIRST_PROBES][:FIRST_PROBES]
    assert rest == sorted(rest, reverse=True)
    assert sorted(lengths) == [length for _, _, length in BASE]


@pytest.mark.parametrize("count", [0, 1, FIRST_PROBES - 1, FIRST_PROBES, FIRST_PROBES + 1])
def test_every_part_is_named_once_however_few_there_are(count: int) -> None:
    """Spreading loses and repeats nothing."""
    wanted = make_map([*BASE[:count], ("only here", "F32[4]", LARGE)])
    found = find(wanted, make_map(BASE))
    assert sorted(likeness.start for likeness in found) == [
        tensor.start for tensor in wanted.tensors[:count]
    ]


def test_more_parts_than_looks_leaves_the_smallest_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest are most of any model."""
    monkeypatch.setattr(module, "PROBES_MAX", 30)
    wanted = make_map(BASE)
    found = find(wanted, wanted)
    assert sorted(likeness.length for likeness in found) == [length for *_, length in BASE[10:]]
    assert PROBES_MAX == 1000


@given(st.lists(st.integers(1, 3 * LARGE), min_size=1, max_size=9), st.integers(0, 1 << 32))
def test_bytes_to_look_at_lie_inside_their_part(lengths: list[int], seed: int) -> None:
    """Any place of a part may be looked at, none beyond its end; short parts are read whole."""
    wanted = make_map([(f"t{n}", "U8", length) for n, length in enumerate(lengths)])
    found = find(wanted, wanted, seed=seed)
    assert sum(likeness.length for likeness in found) == sum(lengths)
    for likeness in found:
        assert likeness.start <= likeness.probe_start
        assert likeness.probe_start + likeness.probe_bytes <= likeness.start + likeness.length
        assert likeness.probe_bytes == min(PROBE_BYTES, likeness.length)


def test_place_to_look_at_is_chance_and_reaches_both_ends() -> None:
    """Whoever makes a file cannot know where it will be looked at; equal chance, equal place."""
    wanted = make_map([("t", "U8", PROBE_BYTES + 3)])
    places = {find(wanted, wanted, seed=seed)[0].probe_start for seed in range(60)}
    assert places == {1000, 1001, 1002, 1003}
    assert find(wanted, wanted, seed=7) == find(wanted, wanted, seed=7)
