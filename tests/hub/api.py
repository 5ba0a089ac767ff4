"""
Owns the JSON routes of the hub except listings: repository, refs, commits, whoami, Xet token.

Knows nothing of files' bytes.
Invariants: metadata of a gated repository is open to all, its Xet token is not.
Source: the hub's public API; field names as clients read them.
"""

from __future__ import annotations

import time

from aiohttp import web

from tests.hub.access import check_token, open_commit, open_files, open_repository
from tests.hub.answers import NOT_LOGGED_IN, error_answer, json_answer
from tests.hub.listing import page_answer
from tests.hub.repository import Commit, Repository
from tests.hub.state import Call

DEAD_CAS_URL = "http://127.0.0.1:1"  # a port where nobody listens
XET_TOKEN_TTL_S = 3600
COMMITS_PER_PAGE = 50


async def answer_repository(call: Call) -> web.StreamResponse:
    """Answer `GET /api/{kind}/{id}[/revision/{rev}]`."""
    repository = open_repository(call).repository
    commit = open_commit(repository, call.target.revision or "main")
    described = _describe(call, repository, commit)
    wanted = [*call.request.query.getall("expand", []), *call.request.query.getall("expand[]", [])]
    if wanted:
        kept = ["_id", "id", *wanted]
        described = {name: described[name] for name in kept if name in described}
        if "xetEnabled" in wanted:
            described["xetEnabled"] = call.state.switches.xet
    return json_answer(described)


def _describe(call: Call, repository: Repository, commit: Commit) -> dict[str, object]:
    """Return every field of a repository's description."""
    siblings: list[dict[str, object]] = []
    for path, file in commit.files.items():
        sibling: dict[str, object] = {"rfilename": path}
        if call.is_true("blobs"):
            sibling |= {"size": file.size_bytes, "blobId": file.blob_id}
            if file.sha256 is not None:
                sibling["lfs"] = {
                    "sha256": file.sha256,
                    "size": file.size_bytes,
                    "pointerSize": file.pointer_size_bytes,
                }
        siblings.append(sibling)
    siblings += [{"rfilename": name} for name in call.state.switches.extra_names]
    return {
        "_id": repository.oid,
        "id": repository.repo_id,
        "modelId": repository.repo_id,
        "author": repository.repo_id.rpartition("/")[0],
        "sha": commit.sha,
        "lastModified": commit.date,
        "createdAt": next(iter(repository.commits.values())).date,
        "private": repository.private,
        "gated": repository.gated,
        "disabled": False,
        "downloads": 7,
        "likes": 1,
        "tags": ["safetensors", "region:us"],
        "cardData": {},
        "spaces": [],
        "usedStorage": sum(file.size_bytes for file in commit.files.values()),
        "siblings": siblings,
    }


async def answer_refs(call: Call) -> web.StreamResponse:
    """Answer `GET …/refs`."""
    repository = open_repository(call).repository
    groups = {"branches": "heads/", "tags": "tags/", "converts": "convert/"}
    if call.is_true("include_prs"):
        groups["pullRequests"] = "pr/"
    answer: dict[str, list[dict[str, str]]] = {}
    for group, prefix in groups.items():
        answer[group] = [
            {"name": ref.removeprefix(f"refs/{prefix}"), "ref": ref, "targetCommit": sha}
            for ref, sha in repository.refs.items()
            if ref.startswith(f"refs/{prefix}")
        ]
    for entry in answer.get("pullRequests", []):
        entry["name"] = entry["ref"]
    return json_answer(answer)


async def answer_commits(call: Call) -> web.StreamResponse:
    """Answer `GET …/commits/{rev}`, newest first, in pages."""
    repository = open_repository(call).repository
    commit: Commit | None = open_commit(repository, call.target.revision or "main")
    entries: list[dict[str, object]] = []
    while commit is not None:
        entries.append(
            {
                "id": commit.sha,
                "title": commit.title,
                "message": "",
                "date": commit.date,
                "authors": [{"user": "author"}],
            }
        )
        commit = repository.commits[commit.parent] if commit.parent else None
    return page_answer(call, entries, COMMITS_PER_PAGE)


async def answer_auth_check(call: Call) -> web.StreamResponse:
    """Answer `GET …/auth-check`."""
    open_files(call)
    return json_answer("OK")


async def answer_xet_token(call: Call) -> web.StreamResponse:
    """Answer `GET …/xet-read-token/{rev}` with a storage that nobody serves."""
    open_commit(open_files(call), call.target.revision)
    expires_s = int(time.time()) + XET_TOKEN_TTL_S
    token = "xet_fake_token"
    return json_answer(
        {"casUrl": DEAD_CAS_URL, "exp": expires_s, "accessToken": token},
        headers={
            "X-Xet-Cas-Url": DEAD_CAS_URL,
            "X-Xet-Access-Token": token,
            "X-Xet-Token-Expiration": str(expires_s),
        },
    )


async def answer_whoami(call: Call) -> web.StreamResponse:
    """Answer `GET /api/whoami-v2`."""
    check_token(call)
    if call.token is None:
        return error_answer(401, NOT_LOGGED_IN)
    access = {"displayName": "test", "role": "read"}
    return json_answer(
        {
            "type": "user",
            "id": "0" * 24,
            "name": "tester",
            "fullname": "A Tester",
            "isPro": False,
            "orgs": [],
            "auth": {"type": "access_token", "accessToken": access},
        }
    )


async def answer_empty(call: Call) -> web.StreamResponse:
    """Answer telemetry and other best-effort calls."""
    del call
    return json_answer({})


async def answer_other(call: Call) -> web.StreamResponse:
    """Answer addresses that the hub does not have."""
    del call
    return error_answer(404, "Sorry, we can't find the page you are looking for.")
