"""
Owns passing requests on to the hub, and remembering the answers that many callers ask for.

Knows nothing of what a request means, beyond whether its answer may be kept.
Invariants: no Xet signal passes, nor a link past us; an answer is kept for the caller that got it
alone; the memory is bounded; an answer that is too old is given only when the hub does not answer.
Source: docs/reference/hub-dialect.md (metadata).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections import OrderedDict
from dataclasses import dataclass

from aiohttp import web

from p2pcache.core.credentials import Credentials
from p2pcache.core.hubjson import strip_xet
from p2pcache.core.upstream import error_of_answer
from p2pcache.daemon.hf_files import STALE_NOTICE
from p2pcache.daemon.hf_origin import lead_back
from p2pcache.engine.context import Context
from p2pcache.engine.fresh import FreshFlight
from p2pcache.engine.single import SingleFlight
from p2pcache.errors import SourceError, UpstreamProtocolError
from p2pcache.hubs.base import ForwardedAnswer

# Lists of branches and expanded trees have some ten KB; one page of either is below a MB.
KEPT_BYTES_MAX = 32 * 1024 * 1024
KEPT_ANSWER_BYTES_MAX = 4 * 1024 * 1024
_HIDING_CODES = ("RepoNotFound", "GatedRepo")
_KEY = secrets.token_bytes(32)


@dataclass(frozen=True, slots=True)
class Question:
    """A request that the hub is asked: the address without our prefix, in the caller's name."""

    method: str
    address: str
    body: bytes
    credentials: Credentials
    # Where a next page is asked: our own address, by which this client reaches us.
    base: str

    @property
    def key(self) -> bytes:
        """Return what is the same for equal questions of one caller."""
        parts = (self.method.encode(), self.address.encode(), self.body)
        secret = self.credentials.secret_bytes()
        return hmac.digest(_KEY, b"\0".join((*parts, secret)), hashlib.sha256)


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer, and when it was given."""

    answer: ForwardedAnswer
    at_s: float


class Passage:
    """The way to the hub for what is not answered from here. Event loop only."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._flights = SingleFlight()
        self._questions = FreshFlight()
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()
        self._kept_bytes = 0

    async def forward(self, question: Question) -> web.Response:
        """
        Ask the hub and return its answer, whatever it is.

        Raises:
            SourceError: The hub does not answer.
            RepositoryNotFoundError, UpstreamAuthError: It refuses this caller the repository.
        """
        return self._answer(await self._ask(question), question)

    async def share(self, question: Question) -> web.Response:
        """Ask together with whoever asks the same at the same time. Raises as forward()."""
        answer = await self._questions.run(question.key, lambda: self._ask(question))
        return self._answer(answer, question)

    async def recall(
        self, question: Question, *, limit_s: float, allows_stale: bool = True
    ) -> web.Response:
        """
        Return an answer that is not older than a branch's, or the hub's; an older one, marked,
        when the hub does not answer.

        Args:
            question: What is asked for: something that the hub shows to anybody.
            limit_s: When the hub last may have changed its mind; nothing older counts while it
                answers.
            allows_stale: Whether an older one may be given: what it tells is for everybody.

        Raises:
            SourceError: The hub does not answer, and never did.
        """
        kept, now_s = self._kept.get(question.key), self._context.clock.monotonic_s()
        oldest_s = max(limit_s, now_s - self._context.settings.ref_ttl_s)
        if kept is not None and oldest_s < kept.at_s:
            return self._answer(kept.answer, question)
        try:
            answer = await self._flights.run(question.key, lambda: self._ask_to_keep(question))
        except SourceError:
            if kept is None or not allows_stale:
                raise
            response = self._answer(kept.answer, question)
            response.headers["X-HF-Warning"] = STALE_NOTICE
            return response
        return self._answer(answer, question)

    async def close(self) -> None:
        """Stop asking."""
        await self._flights.close()
        await self._questions.close()

    async def _ask(self, question: Question) -> ForwardedAnswer:
        return await self._context.hub.forward(
            question.method, question.address, question.body, question.credentials
        )

    async def _ask_to_keep(self, question: Question) -> ForwardedAnswer:
        answer = await self._ask(question)
        if answer.status >= 500 or answer.status in (408, 425, 429):
            has_token = not question.credentials.is_anonymous
            raise error_of_answer(
                answer.status, answer.headers, "this question", has_token=has_token
            )
        if answer.status == 200 and len(answer.body) <= KEPT_ANSWER_BYTES_MAX:
            self._keep(question.key, answer)
        return answer

    def _keep(self, key: bytes, answer: ForwardedAnswer) -> None:
        before = self._kept.pop(key, None)
        self._kept_bytes -= 0 if before is None else len(before.answer.body)
        self._kept[key] = Kept(answer, self._context.clock.monotonic_s())
        self._kept_bytes += len(answer.body)
        while self._kept_bytes > KEPT_BYTES_MAX:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= len(oldest.answer.body)

    def _answer(self, answer: ForwardedAnswer, question: Question) -> web.Response:
        """Return an answer for this client: without Xet, with links that lead back here."""
        headers = dict(answer.headers)
        link = headers.pop("Link", None)
        hub_url = self._context.settings.hf_upstream
        back = None if link is None else lead_back(link, hub_url=hub_url, base=question.base)
        if back is not None:
            headers["Link"] = back
        is_about_repository = question.address.startswith(
            ("/api/models/", "/api/datasets/", "/api/spaces/")
        )
        code = headers.get("X-Error-Code", "")
        is_no = answer.status in (401, 403, 408, 425, 429) or answer.status >= 500
        if is_about_repository and (is_no or code in _HIDING_CODES):
            # In our words: a repository that is cached here must not be told from a missing one.
            has_token = not question.credentials.is_anonymous
            raise error_of_answer(answer.status, headers, "this repository", has_token=has_token)
        content_type = headers.pop("Content-Type", "application/octet-stream")
        content = answer.body
        if "json" in content_type and content:
            try:
                content = json.dumps(strip_xet(json.loads(content))).encode()
            except (ValueError, RecursionError) as error:
                raise UpstreamProtocolError("The hub's answer is not JSON.") from error
        return web.Response(
            status=answer.status,
            body=content,
            headers=headers,
            content_type=content_type.partition(";")[0].strip(),
        )
