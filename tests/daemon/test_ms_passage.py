"""
Owns the tests of daemon.ms_passage.

Knows nothing of requests.
Invariants: none of its own.
Source: docs/reference/modelscope-dialect.md.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from p2pcache.clock import SystemClock
from p2pcache.core.credentials import ANONYMOUS
from p2pcache.daemon.ms_passage import ModelScopePassage
from p2pcache.engine.context import Context
from p2pcache.errors import SourceError
from p2pcache.hubs.base import ForwardedAnswer

PATH = "/api/v1/models/org/model"
NO_LIMIT_S = float("-inf")


class BusyHub:
    """A hub that gives one answer, whatever it is asked."""

    def __init__(self, status: int) -> None:
        self._answer = ForwardedAnswer(status, {"Retry-After": "1"}, b"{}")

    async def forward(self, *_: object) -> ForwardedAnswer:
        """Answer."""
        return self._answer


@pytest.mark.parametrize("status", [408, 425, 429, 500, 503])
async def test_no_answer_of_a_busy_hub_is_taken_for_its_word(status: int) -> None:
    """Whoever asks for what is public and here is answered from here, not told to slow down."""
    context = SimpleNamespace(
        hub=BusyHub(status), clock=SystemClock(), settings=SimpleNamespace(ref_ttl_s=60.0)
    )
    passage = ModelScopePassage(cast("Context", context))
    try:
        with pytest.raises(SourceError):
            await passage.recall(PATH, ANONYMOUS, limit_s=NO_LIMIT_S)
    finally:
        await passage.close()
