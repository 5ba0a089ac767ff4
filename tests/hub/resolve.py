"""
Owns the file addresses of the hub: /{repo}/resolve/… and the relative resolve-cache hop.

Knows nothing of how bodies are sent.
Invariants: metadata headers are on the hub's own answer, never on the storage hop.
Source: header dumps of the real hub in public issues (small file 200 or 307, LFS file 302).
"""

from __future__ import annotations

import hashlib
from urllib.parse import quote

from aiohttp import web

from tests.hub.access import open_commit, open_files
from tests.hub.answers import entry_missing, redirect_answer
from tests.hub.body import send_file
from tests.hub.content import HubFile
from tests.hub.repository import Commit, Repository
from tests.hub.state import Call


async def answer_resolve(call: Call) -> web.StreamResponse:
    """Answer HEAD or GET of a file at a revision."""
    repository = open_files(call)
    commit = open_commit(repository, call.target.revision)
    file = _open_entry(call, repository, commit)
    if file.sha256 is not None:
        return _redirect_to_storage(call, repository, commit, file)
    if call.state.switches.small_files_by_redirect:
        return _redirect_to_cache(call, repository, commit, file)
    return await send_file(call, file, _git_headers(call, commit, file))


async def answer_resolve_cache(call: Call) -> web.StreamResponse:
    """Answer the second hop of a small file; here are its metadata headers."""
    repository = open_files(call)
    commit = open_commit(repository, call.target.revision)
    file = _open_entry(call, repository, commit)
    return await send_file(call, file, _git_headers(call, commit, file))


def _open_entry(call: Call, repository: Repository, commit: Commit) -> HubFile:
    """Find the file and note its key in the record."""
    file = commit.files.get(call.target.path)
    if file is None:
        raise entry_missing(commit.sha)
    call.record.key = f"{repository.prefix}/{call.target.path}"
    return file


def _commit_and_etag(call: Call, commit: Commit, etag: str) -> tuple[str, str]:
    """Return what to state as commit and ETag: the truth, unless a fault says otherwise."""
    faults, key = call.state.faults, call.record.key
    if faults.is_changed("commit", key, faults.now.commit_changes_after):
        sha = hashlib.sha1(commit.sha.encode(), usedforsecurity=False).hexdigest()
    else:
        sha = commit.sha
    if faults.is_changed("etag", key, faults.now.etag_changes_after):
        etag = hashlib.sha256(etag.encode()).hexdigest()[: len(etag)]
    return sha, etag


def _git_headers(call: Call, commit: Commit, file: HubFile) -> dict[str, str]:
    """Return the headers of a file that lives in git."""
    sha, etag = _commit_and_etag(call, commit, file.blob_id)
    name = quote(call.target.path.rsplit("/", 1)[-1])
    return {
        "ETag": f'"{etag}"',
        "X-Repo-Commit": sha,
        "Content-Type": "text/plain; charset=utf-8",
        "Content-Disposition": f"inline; filename*=UTF-8''{name}",
        "Cache-Control": "no-cache",
    }


def _redirect_to_storage(
    call: Call, repository: Repository, commit: Commit, file: HubFile
) -> web.Response:
    """Return the 302 of an LFS file with all that clients must read off it."""
    state, switches = call.state, call.state.switches
    sha, etag = _commit_and_etag(call, commit, file.etag)
    path = f"/xet-bridge-us/{repository.oid}/{file.xet_hash}"
    query = state.signer.sign(path, call.record.key, ttl_s=switches.signed_url_ttl_s)
    headers = {
        "X-Repo-Commit": sha,
        "X-Linked-Etag": f'"{etag}"',
        "ETag": f'"{etag}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": "no-cache",
    }
    if not switches.omit_sizes:
        headers["X-Linked-Size"] = str(file.size_bytes)
    if switches.xet:
        auth = f"{state.hub_url}/api/{repository.kind}/{repository.repo_id}/xet-read-token/{sha}"
        reconstruction = f"{state.cdn_url}/v1/reconstructions/{file.xet_hash}"
        headers["X-Xet-Hash"] = file.xet_hash
        headers["Link"] = (
            f'<{auth}>; rel="xet-auth", <{reconstruction}>; rel="xet-reconstruction-info"'
        )
    return redirect_answer(302, f"{state.cdn_url}{path}?{query}", headers)


def _redirect_to_cache(
    call: Call, repository: Repository, commit: Commit, file: HubFile
) -> web.Response:
    """Return the relative 307 that the hub puts before some small files."""
    target = call.target
    path = quote(target.path)
    origin = quote(call.request.raw_path.partition("?")[0], safe="")
    location = (
        f"/api/resolve-cache/{repository.kind}/{repository.repo_id}/{commit.sha}/{path}"
        f"?{origin}=&etag=%22{file.blob_id}%22"
    )
    return redirect_answer(307, location, {})
