"""
Owns the tests of core.bitfield.

Knows nothing of chunks.
Invariants: a Bitfield behaves as a set of whole numbers below its length.
Source: core/bitfield.py.
"""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcache.core.bitfield import Bitfield
from p2pcache.errors import InputError

lengths = st.integers(0, 200)


@st.composite
def two_sets(draw: st.DrawFn) -> tuple[int, set[int], set[int]]:
    """A length and two sets of indexes below it."""
    length = draw(lengths)
    indexes = st.sets(st.integers(0, length - 1)) if length else st.just(set())
    return length, draw(indexes), draw(indexes)


@given(two_sets())
def test_bitfield_any_two_sets_behave_as_sets(case: tuple[int, set[int], set[int]]) -> None:
    """Union, intersection, difference, size, order and membership are those of sets."""
    length, left, right = case
    a, b = Bitfield.of(length, left), Bitfield.of(length, right)
    assert list(a | b) == sorted(left | right)
    assert list(a & b) == sorted(left & right)
    assert list(a - b) == sorted(left - right)
    assert len(a) == len(left)
    assert bool(a) is bool(left)
    assert (a == b) is (left == right)
    assert a.is_full() is (len(left) == length)
    assert [i for i in range(-1, length + 2) if i in a] == sorted(left)


@given(two_sets())
def test_bitfield_add_and_discard_change_only_themselves(
    case: tuple[int, set[int], set[int]],
) -> None:
    """A copy is independent; discarding what is absent does nothing."""
    length, left, right = case
    field = Bitfield.of(length, left)
    copy = field.copy()
    for index in right:
        copy.discard(index)
    assert list(copy) == sorted(left - right)
    assert list(field) == sorted(left)


@given(two_sets())
def test_bitfield_wire_form_is_read_back(case: tuple[int, set[int], set[int]]) -> None:
    """from_wire is the inverse of to_wire."""
    length, left, _ = case
    field = Bitfield.of(length, left)
    assert Bitfield.from_wire(field.to_wire(), length) == field


@given(st.text(max_size=40), lengths)
def test_bitfield_hostile_text_is_refused_or_fits(text: str, length: int) -> None:
    """Whatever the text, the outcome is InputError or a set below the length."""
    try:
        field = Bitfield.from_wire(text, length)
    except InputError:
        return
    assert field.length == length
    assert all(0 <= index < length for index in field)


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("", 1),
        ("AA==", 0),
        ("AA==", 9),
        ("AAA=", 8),
        ("A*==", 8),
        ("ééé=", 8),
        (base64.b64encode(b"\x80").decode(), 7),
        (base64.b64encode(b"\xff\xff\xff").decode(), 8),
        ("AAAA", 8),
        ("A===", 8),
    ],
)
def test_bitfield_wrong_wire_text_is_refused(text: str, length: int) -> None:
    """Another length, another alphabet and bits beyond the length are input errors."""
    with pytest.raises(InputError):
        Bitfield.from_wire(text, length)


def test_bitfield_bit_order_is_least_significant_first() -> None:
    """Index 0 is the lowest bit of the first byte, as the protocol page says."""
    assert base64.b64decode(Bitfield.of(9, [0, 8]).to_wire()) == b"\x01\x01"


def test_bitfield_full_holds_every_index() -> None:
    """full() is full, of() of everything equals it."""
    assert Bitfield.full(13) == Bitfield.of(13, range(13))
    assert Bitfield.full(0).is_full()


def test_bitfield_repr_counts_only() -> None:
    """A large set does not flood a log."""
    assert repr(Bitfield.of(100, [1, 2])) == "<Bitfield 2/100>"


def test_bitfield_other_types_are_not_equal_and_it_has_no_hash() -> None:
    """Comparison with a set says no; a mutable set is no key."""
    assert Bitfield(3) != {1}
    with pytest.raises(TypeError):
        hash(Bitfield(3))


def test_bitfield_programmer_errors_are_assertions() -> None:
    """Indexes outside and fields of different blobs are our own mistakes."""
    with pytest.raises(AssertionError):
        Bitfield(3).add(3)
    with pytest.raises(AssertionError):
        Bitfield(3, 8)
    with pytest.raises(AssertionError):
        _ = Bitfield(3) | Bitfield(4)
