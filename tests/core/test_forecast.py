"""
Owns the tests of core.forecast and core.holdings: estimates, and what peers say of theirs.

Knows nothing of clocks and peers.
Invariants: equal inputs give equal estimates; no message makes a reader fail otherwise than told.
Source: core/forecast.py; core/holdings.py.
"""

from __future__ import annotations

import json
from dataclasses import astuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcache.core.digest import BlobDigest
from p2pcache.core.forecast import Speed, forecast_running, forecast_start
from p2pcache.core.holdings import (
    BLOBS_PER_QUESTION_MAX,
    ETA_S_MAX,
    Eta,
    HoldingsAnswer,
    HoldingsQuestion,
    eta_to_json,
)
from p2pcache.core.layout import BLOB_SIZE_BYTES_MAX
from p2pcache.errors import InputError

FAST, SLOW, UNKNOWN = Speed(100.0, 50.0), Speed(10.0, 8.0), Speed()
BLOB = BlobDigest("sha256", "ab" * 32)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


def test_rest_of_a_running_download_takes_its_bytes_at_its_rate() -> None:
    """Nothing missing takes no time; nothing measured gives no estimate."""
    assert forecast_running(1000, FAST) == Eta(10.0, 20.0)
    assert forecast_running(1000, FAST.scaled(0.5)) == Eta(20.0, 40.0)
    assert forecast_running(0, UNKNOWN) == Eta(0.0, 0.0)
    assert forecast_running(1, UNKNOWN) is None
    assert forecast_running(1000, Speed(100.0, 0.0)) == Eta(10.0, 10.0)


def test_start_takes_as_long_as_its_slowest_kind_of_source() -> None:
    """Peers and hub give at once; a kind that was never measured is taken for the slowest."""
    assert forecast_start([(1000, FAST), (10, SLOW)]) == Eta(10.0, 20.0)
    assert forecast_start([(1000, FAST), (1000, SLOW)]) == Eta(100.0, 125.0)
    assert forecast_start([(1000, UNKNOWN), (0, SLOW)]) == Eta(100.0, 125.0)
    assert forecast_start([(0, UNKNOWN), (0, UNKNOWN)]) == Eta(0.0, 0.0)
    assert forecast_start([(1, UNKNOWN), (0, UNKNOWN)]) is None


def test_question_and_answer_come_back_as_they_were_sent() -> None:
    """Both forms are inverse."""
    question = HoldingsQuestion(((BLOB, 5), (BlobDigest("gitsha1", "cd" * 20), 0)))
    assert HoldingsQuestion.from_json(json.loads(json.dumps(question.to_json()))) == question
    for eta in (None, Eta(1.5, 2.5)):
        answer = HoldingsAnswer((5, 0), eta)
        assert HoldingsAnswer.from_json(json.loads(json.dumps(answer.to_json())), [5, 0]) == answer
    assert eta_to_json(None) == {"p50": None, "p95": None}


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"held": 5},
        {"held": [1]},
        {"held": [1, 2, 3]},
        {"held": [6, 0]},
        {"held": [-1, 0]},
        {"held": [True, 0]},
        {"held": [1.0, 0]},
    ],
)
def test_answer_about_other_bytes_is_refused(message: object) -> None:
    """A peer that exaggerates is not counted on."""
    with pytest.raises(InputError):
        HoldingsAnswer.from_json(message, [5, 5])


@pytest.mark.parametrize(
    "eta",
    [None, 5, {}, {"p50": 1}, {"p50": -1, "p95": 2}, {"p50": "1", "p95": 2},
     {"p50": True, "p95": 2}, {"p50": float("nan"), "p95": 2}, {"p50": 1, "p95": float("inf")}],
)  # fmt: skip
def test_answer_with_an_impossible_estimate_has_none(eta: object) -> None:
    """What it holds still counts."""
    assert HoldingsAnswer.from_json({"held": [1], "eta_s": eta}, [5]) == HoldingsAnswer((1,), None)


def test_answer_with_an_estimate_that_no_float_holds_is_never() -> None:
    """Whole numbers of JSON have no end."""
    endless = {"held": [1], "eta_s": {"p50": 10**400, "p95": 10**400}}
    assert HoldingsAnswer.from_json(endless, [5]).eta == Eta(ETA_S_MAX, ETA_S_MAX)


def test_question_about_too_many_blobs_is_refused() -> None:
    """Nobody makes us look for more."""
    entry = {"blob": str(BLOB), "size": 1}
    with pytest.raises(InputError):
        HoldingsQuestion.from_json({"blobs": [entry] * (BLOBS_PER_QUESTION_MAX + 1)})


ENTRIES = st.fixed_dictionaries({"blob": st.just(str(BLOB)) | JSON, "size": JSON})
HELD = st.lists(st.integers(-1, 6), max_size=2)
MESSAGES = JSON | st.fixed_dictionaries(
    {"blobs": JSON | st.lists(ENTRIES, max_size=2), "held": JSON | HELD},
    optional={"eta_s": JSON | st.fixed_dictionaries({"p50": JSON, "p95": JSON})},
)


@given(MESSAGES)
def test_question_of_any_shape_is_refused_or_survives_the_wire(message: object) -> None:
    """Whatever a stranger sends: an input error, or a question that is within its limits."""
    try:
        question = HoldingsQuestion.from_json(message)
    except InputError:
        return
    assert all(0 <= size_bytes <= BLOB_SIZE_BYTES_MAX for _, size_bytes in question.blobs)
    assert HoldingsQuestion.from_json(json.loads(json.dumps(question.to_json()))) == question


@given(MESSAGES)
def test_answer_of_any_shape_is_refused_or_within_what_was_asked(message: object) -> None:
    """Whatever a stranger sends: an input error, or no more bytes and seconds than can be."""
    try:
        answer = HoldingsAnswer.from_json(message, [5])
    except InputError:
        return
    [held_bytes] = answer.held_bytes
    assert 0 <= held_bytes <= 5
    assert answer.eta is None or (
        0 <= min(astuple(answer.eta)) <= max(astuple(answer.eta)) <= ETA_S_MAX
    )
