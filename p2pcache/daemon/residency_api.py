"""
Owns the answer to a scheduler's question over HTTP: how much of a snapshot is here, what its
weights are, where the rest is.

Knows nothing of how it is measured; asks the engine and writes JSON.
Invariants: GET asks no hub; what is not proven public is shown to the admin token's holder, and to
whom the hub lets in, alone; field names are the contract's.
Source: docs/reference/http-api.md; design.md §8 (residency).
"""

from __future__ import annotations

import asyncio
import math
import re
import shutil
from collections.abc import Mapping
from urllib.parse import unquote

from aiohttp import web
from multidict import MultiMapping

from p2pcache.core.credentials import Credentials
from p2pcache.core.eviction import Step
from p2pcache.core.holdings import eta_to_json
from p2pcache.core.jobs import PATTERN_CHARS_MAX, PATTERNS_MAX, get_texts
from p2pcache.core.refs import ModelReference
from p2pcache.core.residency import State
from p2pcache.core.weights import RANKS_MAX
from p2pcache.daemon.guard import MANAGEMENT_PREFIX, Guard
from p2pcache.daemon.management import get_optional_text, read_object
from p2pcache.engine.cache import Cache
from p2pcache.engine.residency import Finding
from p2pcache.errors import InputError
from p2pcache.store.lookjson import describe_look, describe_unknown
from p2pcache.store.lookup import Look, Question

# How long an answer may be waited for: proxies and clients give up on a silent request in the end.
WAIT_S_MAX = 600.0
WAIT_S_DEFAULT = 60.0
# Splits that are computed for one question.
SPLITS_MAX = 16
_ADMIN_FORM = re.compile(r" [0-9a-f]{64}\Z", re.ASCII)


class ResidencyApi:
    """The handlers of residency."""

    def __init__(self, cache: Cache, guard: Guard) -> None:
        self._guard = guard
        self._cache = cache

    def add_routes(self, app: web.Application) -> None:
        """Put the handlers in."""
        path = MANAGEMENT_PREFIX + "v1/residency/{reference:.+}"
        app.router.add_get(path, self.residency)
        app.router.add_post(path, self.learn)

    async def residency(self, request: web.Request) -> web.Response:
        """Say how much of a snapshot is here, at once or when it is resident."""
        query = request.query
        reference = ModelReference.parse(unquote(request.match_info["reference"]))
        splits = read_splits(query)
        question = Question(
            reference,
            read_patterns({"include": query.getall("include", [])}, "include"),
            read_patterns({"exclude": query.getall("exclude", [])}, "exclude"),
            with_shapes=bool(splits),
        )
        is_cluster = read_choice(query, "scope", ("local", "cluster")) == "cluster"
        timeout_s = read_wait(query)
        residencies, finding = self._cache.residencies, None
        look = await residencies.look(question)
        may_see = await self._may_see(request, question, look)
        if not may_see and timeout_s:
            await asyncio.sleep(timeout_s)  # as for a model that nobody ever pulls
        elif timeout_s:
            finding = await residencies.wait(question, timeout_s, is_cluster=is_cluster)
            if finding is not None and look is None:
                # Somebody made it known meanwhile, perhaps with rights that this caller has not.
                may_see = await self._may_see(request, question, finding.look)
        elif may_see and look is not None:
            finding = await residencies.judge(question, look, is_cluster=is_cluster)
        return web.json_response(self._describe(reference, finding if may_see else None, splits))

    async def learn(self, request: web.Request) -> web.Response:
        """Ask the hub for a model's commit, files and weight headers; then say the same."""
        message = await read_object(request) if request.can_read_body else {}
        reference = ModelReference.parse(unquote(request.match_info["reference"]))
        question = Question(
            reference, read_patterns(message, "include"), read_patterns(message, "exclude")
        )
        credentials = Credentials(get_optional_text(message, "token"))
        await self._cache.residencies.learn(question, credentials)
        finding = await self._cache.residencies.find(question)
        return web.json_response(self._describe(reference, finding, ()))

    async def _may_see(self, request: web.Request, question: Question, look: Look | None) -> bool:
        """Return whether a caller may know of a snapshot; True also for one that is unknown."""
        if self._guard.is_admin(request):
            return True
        if look is not None and look.facts.public_wall_s is not None:
            # Nobody who asks how much is here waits for a hub: an old word of it stands for this
            # answer, and is asked for anew, for the next one.
            visibility = self._cache.access.visibility
            wall_s = self._cache.context.clock.wall_s()
            if not visibility.is_fresh(wall_s - look.facts.public_wall_s):
                visibility.start_proof(look.snapshot)
            return True
        authorization = request.headers.get("Authorization", "")
        if not authorization or _ADMIN_FORM.search(authorization):
            # Another daemon's admin token is nobody's business, least of all the hub's.
            return look is None
        # Somebody's token for the hub, which says whether it is good for this one.
        credentials = Credentials.from_authorization(authorization)
        snapshot = None if look is None else look.snapshot
        is_shown = await self._cache.access.may_show(question.reference, snapshot, credentials)
        return is_shown or look is None

    def _describe(
        self, reference: ModelReference, finding: Finding | None, splits: tuple[int, ...]
    ) -> dict[str, object]:
        if finding is None:
            free = shutil.disk_usage(self._cache.context.settings.store).free
            return describe_unknown(reference, free)
        missing = finding.look.residency.bytes_missing
        answer = {
            **describe_look(reference, finding.look, finding.disk_free, splits),
            "missing_from_peers": finding.missing_from_peers,
            "missing_from_upstream": missing - finding.missing_from_peers,
            "eta_s": eta_to_json(finding.eta),
            "fits_disk": finding.fits_disk,
        }
        if finding.evictions:
            answer["would_evict"] = [_describe_step(step) for step in finding.evictions]
        if finding.peers is not None:
            answer["peers"] = [
                {
                    "name": peer.name,
                    "id": peer.peer_id,
                    "bytes_local": peer.held_bytes,
                    "eta_s": eta_to_json(peer.eta),
                }
                for peer in finding.peers
            ]
        return answer


def _describe_step(step: Step) -> dict[str, object]:
    return {"what": step.what.value, "name": step.name, "bytes": step.own_bytes}


# --- parameters ---


def read_choice(query: MultiMapping[str], name: str, choices: tuple[str, ...]) -> str | None:
    """
    Return a parameter that has few values, None when it is absent.

    Raises:
        InputError: Another value.
    """
    value = query.get(name)
    if value is not None and value not in choices:
        raise InputError(f"{name}={value[:40]!r} is not known; use {' or '.join(choices)}.")
    return value


def read_wait(query: MultiMapping[str]) -> float:
    """
    Return for how many seconds a caller waits; 0 for not at all.

    Raises:
        InputError: No number of seconds, or nothing to wait for.
    """
    wait = read_choice(query, "wait", (State.RESIDENT.value,))
    text = query.get("timeout")
    if wait is None:
        if text is not None:
            raise InputError("'timeout' goes with wait=resident.")
        return 0.0
    try:
        timeout_s = WAIT_S_DEFAULT if text is None else float(text)
    except ValueError:
        timeout_s = math.nan
    if not 0 < timeout_s <= WAIT_S_MAX:
        raise InputError(f"'timeout' is a number of seconds above 0, {WAIT_S_MAX:g} at most.")
    return timeout_s


def read_patterns(message: Mapping[str, object], name: str) -> tuple[str, ...]:
    """
    Return globs over paths.

    Raises:
        InputError: They are none, or too many.
    """
    return get_texts(message, name, count_max=PATTERNS_MAX, chars_max=PATTERN_CHARS_MAX)


def read_splits(query: MultiMapping[str]) -> tuple[int, ...]:
    """
    Return the numbers of ranks that a caller wants bytes for: tp=8, or tp=4,8.

    Raises:
        InputError: Something else, or too many.
    """
    texts = [text for value in query.getall("tp", []) for text in value.split(",")]
    ranks = {int(t) if t.isascii() and t.isdigit() and len(t) < 5 else 0 for t in texts}
    if len(ranks) > SPLITS_MAX or not all(1 <= n <= RANKS_MAX for n in ranks):
        raise InputError(f"'tp' is a number of ranks from 1 to {RANKS_MAX}, for example tp=8.")
    return tuple(sorted(ranks))
