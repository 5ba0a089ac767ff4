"""
Owns answering questions about repositories in the Hugging Face dialect.

Knows nothing of files' bytes.
Invariants: info, tree and paths agree with what HEAD and GET say, since all come from one list;
nothing of a repository that is not public is answered without asking the hub in the caller's name.
Source: docs/reference/hub-dialect.md (metadata).
"""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from urllib.parse import parse_qs, quote, urlencode

from aiohttp import web

from p2pcache.core.hubrefs import list_refs, pin_refs
from p2pcache.daemon.hf_files import STALE_NOTICE
from p2pcache.daemon.hf_listing import (
    cut_page,
    describe_repository,
    find_paths,
    has_folder,
    list_tree,
)
from p2pcache.daemon.hf_passage import Passage, Question
from p2pcache.daemon.hf_path import ApiAddress
from p2pcache.daemon.interim import hold
from p2pcache.engine.cache import Cache
from p2pcache.engine.librarian import Resolved
from p2pcache.errors import (
    EntryNotFoundError,
    InputError,
    NotFoundError,
    RepositoryNotFoundError,
    SourceError,
    UpstreamAuthError,
)

_YES = ("true", "1")
# What is answered from a file list; `refs` and `commits` are the hub's to know.
LISTED_ACTIONS = ("info", "revision", "tree", "paths-info")
RECALLED_ACTIONS = ("refs", "commits")


class HubMetadata:
    """The questions of the dialect. Event loop only."""

    def __init__(self, cache: Cache, passage: Passage) -> None:
        self._cache = cache
        self._passage = passage

    async def serve(
        self, request: web.Request, address: ApiAddress, question: Question
    ) -> web.Response:
        """Answer from the cached snapshot where that is the whole truth; else ask the hub."""
        if address.action == "xet-read-token":
            raise NotFoundError(
                "Xet is not served here; unset stale listings by removing the cache's 'trees' "
                "folder, or set HF_HUB_DISABLE_XET=1."
            )
        if address.action in LISTED_ACTIONS:
            return await hold(request, self._answer_listed(address, question))
        if address.action in RECALLED_ACTIONS:
            return await hold(request, self._recall(address, question))
        return await hold(request, self._passage.forward(question))

    # --- what the hub alone knows ---

    async def _recall(self, address: ApiAddress, question: Question) -> web.Response:
        """Answer with what the hub said of late; while it is away, with what is known here."""
        repo = address.reference.repo
        librarian, credentials = self._cache.librarian, question.credentials
        public = dict(await librarian.list_public_branches(repo))
        if not public and not credentials.is_anonymous:
            # Most ask about files too, and what is heard then is enough for this.
            row = await librarian.settle(repo, credentials)
            if row is None or not await self._cache.access.may_list(row.snapshot, credentials):
                return await self._passage.share(question)
            public = dict(await librarian.list_public_branches(repo))
        try:
            limit_s = self._cache.access.visibility.find_limit_s(repo)
            response = await self._passage.recall(
                question, limit_s=limit_s, allows_stale=bool(public)
            )
        except UpstreamAuthError:
            # The hub did answer. What it refuses to this token may be refused to all by now.
            await self._cache.access.note_refused(repo, question.credentials)
            raise
        except SourceError:
            if address.action != "refs" or not public:
                raise
            wants_all = parse_query(question.address).get("include_prs", [""])[0].lower() in _YES
            listed: object = list_refs(public, with_pull_requests=wants_all)
            return web.json_response(listed, headers=_headers(is_stale=True))
        content = response.body
        if address.action == "refs" and response.status == 200 and isinstance(content, bytes):
            pins = await self._cache.librarian.list_pins(repo)
            if pins and content:
                response.body = json.dumps(pin_refs(json.loads(content), pins)).encode()
        return response

    # --- what a file list tells ---

    async def _answer_listed(self, address: ApiAddress, question: Question) -> web.Response:
        query, paths = parse_query(question.address), None
        is_expanded = _wants_more(query)
        if address.action == "paths-info":
            paths, is_expanded = read_paths(question.body)
            form = [("paths", path) for path in paths] + [("expand", str(is_expanded).lower())]
            question = replace(question, body=urlencode(form).encode())
        resolved = await self._cache.librarian.resolve(address.reference, question.credentials)
        access, snapshot = self._cache.access, resolved.snapshot
        if not await access.may_list(snapshot, question.credentials):
            try:
                return await self._passage.share(self._at_commit(address, question, resolved))
            except (RepositoryNotFoundError, UpstreamAuthError) as error:
                access.note_hidden(snapshot, question.credentials, error)
                raise
        if is_expanded:
            try:
                # Whether it is public was just asked, if that was not known.
                asked = self._at_commit(address, question, resolved)
                return await self._passage.recall(asked, limit_s=float("-inf"))
            except UpstreamAuthError:
                raise  # the hub did answer
            except SourceError:
                if "cursor" in query:
                    raise  # pages of two lists would be one list with gaps
        return self._answer_from_snapshot(address, question, resolved, paths)

    def _at_commit(self, address: ApiAddress, question: Question, resolved: Resolved) -> Question:
        """Ask the hub for the commit that is answered everywhere else, not for the branch."""
        reference, commit = address.reference, resolved.snapshot.id.commit
        _, mark, rest = question.address.partition("?")
        stem = f"/api/{reference.repo.kind}/{reference.repo.name}"
        if address.action in ("info", "revision"):
            path = f"{stem}/revision/{commit}"
        else:
            below = f"/{quote(address.path, safe='')}" if address.path else ""
            path = f"{stem}/{address.action}/{commit}{below}"
        return replace(question, address=path + mark + rest)

    def _answer_from_snapshot(
        self,
        address: ApiAddress,
        question: Question,
        resolved: Resolved,
        paths: list[str] | None,
    ) -> web.Response:
        snapshot, query = resolved.snapshot, parse_query(question.address)
        headers = _headers(is_stale=resolved.is_stale)
        headers["X-Repo-Commit"] = snapshot.id.commit
        if paths is not None:
            return web.json_response(find_paths(snapshot, paths), headers=headers)
        if address.action in ("info", "revision"):
            with_blobs = query.get("blobs", [""])[0].lower() in _YES
            about = describe_repository(resolved.row, with_blobs=with_blobs)
            return web.json_response(about, headers=headers)
        if not has_folder(snapshot, address.path):
            raise EntryNotFoundError(
                f"{snapshot.id} has no folder {address.path!r}.", commit=snapshot.id.commit
            )
        recursive = query.get("recursive", [""])[0].lower() in _YES
        entries = list_tree(snapshot, address.path, recursive=recursive)
        page, cursor = cut_page(entries, query)
        if cursor is not None:
            kept = {name: values[0] for name, values in query.items() if name != "cursor"}
            path = question.address.partition("?")[0]
            following = f"{question.base}{path}?{urlencode({**kept, 'cursor': cursor})}"
            headers["Link"] = f'<{following}>; rel="next"'
        return web.json_response(page, headers=headers)


def parse_query(address: str) -> dict[str, list[str]]:
    """Return the query of an address."""
    return parse_qs(address.partition("?")[2])


def _wants_more(query: dict[str, list[str]]) -> bool:
    """Return whether a caller asks for what a file list does not tell."""
    expand = query.get("expand", query.get("expand[]", []))
    if "securityStatus" in query:
        return True
    return bool(expand) and [value.lower() for value in expand] not in (["false"], ["0"])


def read_paths(body: bytes) -> tuple[list[str], bool]:
    """
    Return the paths that a paths-info asks for, and whether it wants more than a list tells.

    Raises:
        InputError: Neither a form nor JSON with `paths`.
    """
    text = body.decode("utf-8", "replace")
    if text.lstrip().startswith("{"):
        try:
            sent = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError("The body is not JSON; send paths=… as a form.") from error
        paths = sent.get("paths", [])
        paths = [paths] if isinstance(paths, str) else paths
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise InputError("'paths' has to be a list of texts.")
        return paths, str(sent.get("expand", "")).lower() in _YES
    form = parse_qs(text, keep_blank_values=True)
    return form.get("paths", []), form.get("expand", [""])[0].lower() in _YES


def _headers(*, is_stale: bool) -> dict[str, str]:
    headers = {"X-Request-Id": secrets.token_hex(8)}
    if is_stale:
        headers["X-HF-Warning"] = STALE_NOTICE
    return headers
