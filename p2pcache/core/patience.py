"""
Owns how often a source that fails is asked again, and when hope ends.

Knows nothing of what failed, but whether asking again can help.
Invariants: waits grow from half a second to eight; any progress starts the count anew; a source
given up is tried again now and then, so that a fetch kept alive by others can return to it.
Source: exponential backoff; docs/explanation/scheduling.md.
"""

from __future__ import annotations

from p2pcache.errors import P2PCacheError

FAILURES_IN_A_ROW_MAX = 5
FIRST_WAIT_S = 0.5
WAIT_S_MAX = 8.0
GIVEN_UP_WAIT_S = 15.0


class Patience:
    """Failures in a row of one source."""

    def __init__(self) -> None:
        self.last_error: P2PCacheError | None = None
        self._failures = 0
        self._ask_again_s = 0.0
        self._is_given_up = False

    def may_ask(self, now_s: float) -> bool:
        """Return whether the source may be asked now."""
        return now_s >= self._ask_again_s

    def is_given_up(self) -> bool:
        """Return whether the source has failed for good, as far as we can tell."""
        return self._is_given_up

    def note_good(self) -> None:
        """Start the count anew."""
        self._failures = 0
        self._is_given_up = False
        self._ask_again_s = 0.0

    def note_failure(self, error: P2PCacheError, *, now_s: float) -> None:
        """Count a failure; one that asking again cannot mend ends hope at once."""
        self.last_error = error
        if error.retryable and now_s < self._ask_again_s:
            return  # several requests failed together: one failure
        self._failures += 1
        if not error.retryable or self._failures >= FAILURES_IN_A_ROW_MAX:
            self._is_given_up = True
            self._ask_again_s = now_s + GIVEN_UP_WAIT_S
        else:
            self._ask_again_s = now_s + min(WAIT_S_MAX, FIRST_WAIT_S * 2 ** (self._failures - 1))
