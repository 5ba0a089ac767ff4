"""
Owns the control routes under /_hub/: reading counts, setting faults, moving refs.

Knows nothing of the hub's own protocol; control requests are never counted or hindered.
Invariants: a bad control request changes nothing and says why with 400.
Source: none; the tests' own protocol, the same over HTTP as in process.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web

from tests.hub.answers import json_answer
from tests.hub.repository import KINDS, Kind, Repository, Source
from tests.hub.state import HubState

PREFIX = "/_hub/"


class Controlled(Protocol):
    """What the control routes need of a hub."""

    state: HubState

    async def set_listening(self, *, hub: bool = True, cdn: bool = True) -> None:
        """Open or close the listeners, cutting their connections."""
        ...


async def answer_control(hub: Controlled, request: web.Request) -> web.StreamResponse:
    """Answer one control request."""
    name = request.path.removeprefix(PREFIX)
    if request.method == "GET" and name == "stats":
        return json_answer(hub.state.stats.as_json())
    action = ACTIONS.get(name)
    if request.method != "POST" or action is None:
        return json_answer({"error": f"no control route {request.method} {name}"}, status=404)
    try:
        text = await request.text()
        return json_answer(await action(hub, json.loads(text) if text else {}))
    except (ValueError, KeyError, TypeError) as error:
        return json_answer({"error": f"{type(error).__name__}: {error}"}, status=400)


async def _reset(hub: Controlled, body: Mapping[str, Any]) -> object:
    """Forget the counts."""
    del body
    hub.state.stats.reset()
    return {}


async def _set_faults(hub: Controlled, body: Mapping[str, Any]) -> object:
    """Replace the switches by those the hub was started with plus the body's."""
    hub.state.faults.set_over_base(body)
    return {}


async def _set_ref(hub: Controlled, body: Mapping[str, Any]) -> object:
    """Move a ref to a known revision: {repo_id, [kind], ref, revision}."""
    repository = _get_repository(hub, body)
    sha = repository.get_commit(body["revision"]).sha
    repository.set_ref(body["ref"], sha)
    return {"sha": sha}


async def _add_commit(hub: Controlled, body: Mapping[str, Any]) -> object:
    """
    Commit files: {repo_id, [kind], files, [branch], [base], [remove], [title]}.

    Each file is {"text": …}, {"base64": …} or {"path": file on this machine}.
    """
    repository = hub.state.catalog.find(_kind(body), body["repo_id"])
    files = {path: _read_source(source) for path, source in body["files"].items()}
    options = {name: body[name] for name in ("branch", "base", "remove", "title") if name in body}
    if repository is None:
        repository = Repository(body["repo_id"], kind=_kind(body))
        hub.state.catalog.add(repository)
    return {"sha": repository.add_commit(files, **options).sha}


async def _rename(hub: Controlled, body: Mapping[str, Any]) -> object:
    """Give a repository another id: {repo_id, [kind], new_id}."""
    hub.state.catalog.rename(_kind(body), body["repo_id"], body["new_id"])
    return {}


async def _delete(hub: Controlled, body: Mapping[str, Any]) -> object:
    """Forget a repository: {repo_id, [kind]}."""
    hub.state.catalog.remove(_kind(body), body["repo_id"])
    return {}


async def _set_rights(hub: Controlled, body: Mapping[str, Any]) -> object:
    """Say who may read a repository: {repo_id, [kind], [private], [gated], [tokens]}."""
    repository = _get_repository(hub, body)
    repository.private = bool(body.get("private", False))
    repository.gated = "auto" if body.get("gated", False) else False
    repository.tokens = frozenset(body.get("tokens", ()))
    return {}


async def _set_tokens(hub: Controlled, body: Mapping[str, Any]) -> object:
    """Say which tokens are somebody's: {tokens}."""
    hub.state.catalog.set_tokens(body["tokens"])
    return {}


async def _listen(hub: Controlled, body: Mapping[str, Any]) -> object:
    """Open or close the listeners: {hub, cdn}."""
    await hub.set_listening(hub=bool(body.get("hub", True)), cdn=bool(body.get("cdn", True)))
    return {}


def _read_source(described: Mapping[str, str]) -> Source:
    """Return the content that a control body describes."""
    if "path" in described:
        return Path(described["path"])
    if "base64" in described:
        return base64.b64decode(described["base64"])
    return described["text"].encode()


def _kind(body: Mapping[str, Any]) -> Kind:
    """Return the kind that a control body names."""
    return KINDS[KINDS.index(body.get("kind", "models"))]


def _get_repository(hub: Controlled, body: Mapping[str, Any]) -> Repository:
    """Return the repository that a control body names."""
    repository = hub.state.catalog.find(_kind(body), body["repo_id"])
    if repository is None:
        raise KeyError(body["repo_id"])
    return repository


Action = Callable[[Controlled, Mapping[str, Any]], Awaitable[object]]
ACTIONS: Mapping[str, Action] = {
    "reset": _reset,
    "faults": _set_faults,
    "refs": _set_ref,
    "commits": _add_commit,
    "renames": _rename,
    "deletions": _delete,
    "rights": _set_rights,
    "tokens": _set_tokens,
    "listen": _listen,
}
