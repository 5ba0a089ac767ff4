"""
Owns the hub's second face: the same repositories as ModelScope would serve them.

Knows nothing of Hugging Face's answers.
Invariants: every JSON answer is in the envelope; all refusals are 404, as the real hub's are; a
file that lives in git is sent whole, whatever range was asked for.
Source: source of modelscope 1.40 and modelscope-hub 0.5; public answers of the real hub.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime

from aiohttp import web

from tests.hub.answers import RefusalError, json_answer, redirect_answer
from tests.hub.body import send_file
from tests.hub.content import HubFile
from tests.hub.ms_target import FIRST_BRANCH
from tests.hub.repository import Commit, Repository
from tests.hub.state import Call

NOT_FOUND, NO_ACCESS, WRONG_TOKEN = 10010205001, 10010200001, 10010103009
PAGE_ENTRIES_MAX = 500
_SHA256S: dict[str, str] = {}


def wrap(content: object) -> web.Response:
    """Return a good answer."""
    envelope = {
        "Code": 200,
        "Data": content,
        "Message": "success",
        "RequestId": secrets.token_hex(16),
        "Success": True,
    }
    return json_answer(envelope)


def refuse(status: int, code: int, message: str) -> web.Response:
    """Return a refusal; with status 200 it is one that only the envelope shows."""
    envelope = {
        "Code": code,
        "Message": message,
        "RequestId": secrets.token_hex(16),
        "Success": False,
    }
    return json_answer(envelope, status=status)


async def answer_modelscope(call: Call) -> web.StreamResponse:
    """Answer one request to ModelScope's API."""
    faults = call.state.faults.now
    if faults.business_failure and faults.is_route_hit(call.target.route):
        return refuse(200, 10010010001, "system is busy, please try again later")
    answer = _ANSWERS.get(call.target.route)
    if call.request.method == "POST" and call.target.route == "ms-login":
        return await _answer_login(call)
    if answer is None or call.request.method not in ("GET", "HEAD"):
        return web.Response(status=404, text="404 page not found")
    return await answer(call)


def token_of(call: Call) -> str | None:
    """Return the token of a caller: a bearer's, or that in the session cookie."""
    if call.token is not None:
        return call.token
    return call.request.cookies.get("m_session_id")


async def _answer_login(call: Call) -> web.StreamResponse:
    body = await call.request.json()
    if not call.state.catalog.is_known_token(str(body.get("AccessToken"))):
        return refuse(400, WRONG_TOKEN, "AccessToken is invalid or expired")
    return wrap({"Username": "tester", "Email": "", "AccessToken": "git_token"})


async def _answer_info(call: Call) -> web.StreamResponse:
    repository = _open(call)
    first = next(iter(repository.commits.values()))
    owner, _, name = repository.repo_id.rpartition("/")
    return wrap(
        {
            "Id": int(repository.oid[:7], 16),
            "Path": owner,
            "Name": name,
            "Type": 1,
            "Visibility": 1 if repository.private else 5,
            "CreatedTime": _seconds(first.date),
            "Revision": FIRST_BRANCH,
            "License": "Apache License 2.0",
        }
    )


async def _answer_revisions(call: Call) -> web.StreamResponse:
    repository = _open(call)
    groups: dict[str, list[dict[str, object]]] = {"Branches": [], "Tags": []}
    for ref, sha in repository.refs.items():
        for group, prefix in (("Branches", "refs/heads/"), ("Tags", "refs/tags/")):
            if ref.startswith(prefix):
                name = ref.removeprefix(prefix)
                is_first = group == "Branches" and name == "main"
                entry = {
                    "Revision": FIRST_BRANCH if is_first else name,
                    "CreatedAt": _seconds(repository.commits[sha].date),
                    "IsActive": True,
                }
                groups[group].append(entry)
    return wrap({"RevisionMap": groups})


async def _answer_commits(call: Call) -> web.StreamResponse:
    """Answer the newest commit of a ref; an unknown one has none, which is no error."""
    if not call.state.switches.names_commits:
        return web.Response(status=404, text="404 page not found")
    commit = _find_commit(call, _open(call))
    if commit is None:
        return wrap({"Commit": None, "TotalCount": 0})
    named = {"Id": commit.sha, "ShortId": commit.sha[:8], "Title": commit.title}
    return wrap({"Commit": [named], "TotalCount": 1})


async def _answer_files(call: Call) -> web.StreamResponse:
    """Answer `repo/files`: no pages, and nothing after the limit; an unknown revision is empty."""
    commit = _find_commit(call, _open(call))
    if commit is None:
        return wrap({"Files": None, "IsVisual": 0, "LatestCommitter": None})
    entries = _list(call, commit)[: call.state.switches.listing_entries_max]
    return wrap({"Files": entries, "IsVisual": 0, "LatestCommitter": _committer(commit)})


async def _answer_tree(call: Call) -> web.StreamResponse:
    """Answer `repo/tree`, in pages."""
    commit = _find_commit(call, _open(call))
    query = call.request.query
    page, size = int(query.get("PageNumber", 1)), int(query.get("PageSize", 50))
    size = min(size, PAGE_ENTRIES_MAX)
    entries = [] if commit is None else _list(call, commit)
    part = entries[(page - 1) * size : page * size]
    committer = None if commit is None else _committer(commit)
    return wrap({"Files": part, "LatestCommitter": committer, "TotalCount": len(entries)})


async def _answer_file(call: Call) -> web.StreamResponse:
    """Answer a file: one that lives in git at once, another by a redirect to storage."""
    repository = _open(call, wants_files=True)
    commit = _find_commit(call, repository)
    file = None if commit is None else commit.files.get(call.target.path)
    if file is None:
        raise RefusalError(_refuse_head(call, NOT_FOUND, "file not found"))
    call.record.key = f"{repository.prefix}/{call.target.path}"
    headers = {"ETag": f'"{file.blob_id}"', "X-Linked-ETag": sha256_of(file)}
    if file.sha256 is None or call.request.method == "HEAD":
        return await send_file(call, file, headers, honours_range=False)
    path = f"/xet-bridge-us/{repository.oid}/{file.xet_hash}"
    ttl_s = call.state.switches.signed_url_ttl_s
    query = call.state.signer.sign(path, call.record.key, ttl_s=ttl_s)
    return redirect_answer(302, f"{call.state.cdn_url}{path}?{query}", {})


_ANSWERS: Mapping[str, Callable[[Call], Awaitable[web.StreamResponse]]] = {
    "ms-info": _answer_info,
    "ms-revisions": _answer_revisions,
    "ms-commits": _answer_commits,
    "ms-files": _answer_files,
    "ms-tree": _answer_tree,
    "ms-file": _answer_file,
}


def sha256_of(file: HubFile) -> str:
    """Return the digest that listings show, of files in git too; computed once."""
    if file.sha256 is not None:
        return file.sha256
    known = _SHA256S.get(file.blob_id)
    if known is None:
        with file.open_reader() as read:
            known = hashlib.sha256(read(0, file.size_bytes)).hexdigest()
        _SHA256S[file.blob_id] = known
    return known


def _open(call: Call, *, wants_files: bool = False) -> Repository:
    """Find the repository, if the caller may see it (and read it, for files)."""
    target, catalog = call.target, call.state.catalog
    repository = catalog.find(target.kind, target.repo_id)
    if repository is None:
        raise RefusalError(_refuse_head(call, NOT_FOUND, "record not found"))
    is_readable = repository.is_readable(token_of(call))
    if not is_readable and (repository.private or wants_files):
        raise RefusalError(_refuse_head(call, NO_ACCESS, "no access to the repository"))
    return repository


def _refuse_head(call: Call, code: int, message: str) -> web.Response:
    """Return the 404 of a refusal, without an envelope for HEAD."""
    if call.request.method == "HEAD":
        return web.Response(status=404)
    return refuse(404, code, message)


def _find_commit(call: Call, repository: Repository) -> Commit | None:
    revision = call.target.revision
    found = repository.find_commit(revision)
    if found is None and revision == FIRST_BRANCH:
        return repository.find_commit("main")
    return found


def _list(call: Call, commit: Commit) -> list[dict[str, object]]:
    folder = f"{call.target.path}/" if call.target.path else ""
    is_deep = call.is_true("Recursive")
    listed: dict[str, dict[str, object]] = {}
    for path, file in commit.files.items():
        if not path.startswith(folder):
            continue
        inside = path[len(folder) :].split("/")
        for depth in range(1, len(inside) if is_deep else min(2, len(inside))):
            above = folder + "/".join(inside[:depth])
            listed.setdefault(above, _entry(above, commit, None))
        if is_deep or len(inside) == 1:
            listed[path] = _entry(path, commit, file)
    return list(listed.values())


def _entry(path: str, commit: Commit, file: HubFile | None) -> dict[str, object]:
    return {
        "Path": path,
        "Name": path.rpartition("/")[2],
        "Type": "tree" if file is None else "blob",
        "Size": 0 if file is None else file.size_bytes,
        "Sha256": "" if file is None else sha256_of(file),
        "IsLFS": file is not None and file.sha256 is not None,
        "InCheck": False,
        "Mode": "16384" if file is None else "33188",
        "Revision": commit.sha,
        "CommitMessage": commit.title,
        "CommittedDate": _seconds(commit.date),
    }


def _committer(commit: Commit) -> dict[str, object]:
    """Return the newest commit, whose id real listings leave empty."""
    return {"Id": "", "ShortId": commit.sha[:8], "Title": commit.title, "CommitterName": "author"}


def _seconds(date: str) -> int:
    return int(datetime.fromisoformat(date).timestamp())
