"""
Owns the tests of core.patience.

Knows nothing of sources.
Invariants: waits grow, have a limit, and progress resets them.
Source: core/patience.py.
"""

from __future__ import annotations

from p2pcache.core.patience import (
    FAILURES_IN_A_ROW_MAX,
    FIRST_WAIT_S,
    GIVEN_UP_WAIT_S,
    WAIT_S_MAX,
    Patience,
)
from p2pcache.errors import UpstreamAuthError, UpstreamUnreachableError

SILENT = UpstreamUnreachableError("The hub does not answer; try again later.")
REFUSED = UpstreamAuthError("The hub refuses; check the token.")


def find_wait(patience: Patience, now_s: float) -> float:
    """Measure how long a source may not be asked, to a sixteenth of a second."""
    waits = [n / 16 for n in range(16 * 20)]
    return next(wait for wait in waits if patience.may_ask(now_s + wait))


def test_patience_new_may_ask() -> None:
    """A source without failures is asked at once."""
    patience = Patience()
    assert patience.may_ask(0.0)
    assert not patience.is_given_up()
    assert patience.last_error is None


def test_patience_failures_in_a_row_wait_longer_then_give_up() -> None:
    """Waits double from half a second; the last failure ends hope for a while."""
    patience = Patience()
    waits: list[float] = []
    now_s = 100.0
    for _ in range(FAILURES_IN_A_ROW_MAX):
        assert not patience.is_given_up()
        patience.note_failure(SILENT, now_s=now_s)
        waits.append(find_wait(patience, now_s))
        now_s += waits[-1]
    assert waits == [FIRST_WAIT_S, 1.0, 2.0, 4.0, GIVEN_UP_WAIT_S]
    assert max(waits[:-1]) <= WAIT_S_MAX
    assert patience.is_given_up()
    assert patience.last_error is SILENT


def test_patience_hopeless_error_gives_up_at_once() -> None:
    """What asking again cannot mend is not asked again soon."""
    patience = Patience()
    patience.note_failure(REFUSED, now_s=0.0)
    assert patience.is_given_up()
    assert not patience.may_ask(GIVEN_UP_WAIT_S - 0.1)
    assert patience.may_ask(GIVEN_UP_WAIT_S)


def test_patience_requests_that_fail_together_are_one_failure() -> None:
    """Several requests over one broken link say the same thing once, until the wait is over."""
    patience = Patience()
    for _ in range(2 * FAILURES_IN_A_ROW_MAX):
        patience.note_failure(SILENT, now_s=100.0)
    assert not patience.is_given_up()
    assert find_wait(patience, 100.0) == FIRST_WAIT_S


def test_patience_hopeless_error_during_a_wait_gives_up() -> None:
    """What asking again cannot mend counts whenever it comes."""
    patience = Patience()
    patience.note_failure(SILENT, now_s=100.0)
    patience.note_failure(REFUSED, now_s=100.0)
    assert patience.is_given_up()


def test_patience_progress_starts_anew() -> None:
    """One good byte and the source is as if it had never failed."""
    patience = Patience()
    for n in range(FAILURES_IN_A_ROW_MAX):
        patience.note_failure(SILENT, now_s=100.0 * n)
    patience.note_good()
    assert patience.may_ask(0.0)
    assert not patience.is_given_up()
    patience.note_failure(SILENT, now_s=0.0)
    assert find_wait(patience, 0.0) == FIRST_WAIT_S
