"""
Owns listings: the tree of a commit, single paths of it, and pages of any list.

Knows nothing of files' bytes.
Invariants: the next page's address is absolute and keeps every parameter of the first.
Source: the hub's public API (tree, paths-info, Link rel="next").
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Sequence
from urllib.parse import urlencode

from aiohttp import web

from tests.hub.access import Access, open_commit, open_repository
from tests.hub.answers import entry_missing, error_answer, json_answer
from tests.hub.content import HubFile, git_sha1
from tests.hub.repository import Commit
from tests.hub.state import Call

Entry = dict[str, object]
HIDDEN_XET_HASH = "*" * 64
PATHS_MAX = 1000


async def answer_tree(call: Call) -> web.StreamResponse:
    """Answer `GET …/tree/{rev}[/{path}]`."""
    access = open_repository(call)
    if call.state.switches.tree_missing:
        return error_answer(404, "Not Found")
    commit = open_commit(access.repository, call.target.revision)
    folder = call.target.path.strip("/")
    inside = f"{folder}/" if folder else ""
    if folder and not any(path.startswith(inside) for path in commit.files):
        raise entry_missing(commit.sha)
    below = [path for path in commit.files if path.startswith(inside)]
    is_recursive, is_expanded = call.is_true("recursive"), call.is_true("expand")
    folders = _find_folders(below, inside)
    if not is_recursive:
        below = [path for path in below if "/" not in path.removeprefix(inside)]
        folders = [path for path in folders if "/" not in path.removeprefix(inside)]
    entries = [_folder_entry(path, commit, is_expanded) for path in folders]
    entries += [_file_entry(call, access, commit, path, is_expanded) for path in below]
    for name in call.state.switches.extra_names:
        entries.append({"type": "file", "oid": git_sha1(b""), "size": 0, "path": name})
    state = call.state
    return page_answer(call, entries, state.page_size_expanded if is_expanded else state.page_size)


async def answer_paths(call: Call) -> web.StreamResponse:
    """Answer `POST …/paths-info/{rev}` with a form or JSON body; unknown paths are left out."""
    access = open_repository(call)
    commit = open_commit(access.repository, call.target.revision)
    if call.request.content_type == "application/json":
        sent = await call.request.json()
        paths, is_expanded = list(sent.get("paths", [])), bool(sent.get("expand"))
    else:
        form = await call.request.post()
        paths = [str(path) for path in form.getall("paths", [])]
        is_expanded = str(form.get("expand", "")).lower() == "true"
    if len(paths) > PATHS_MAX:
        return error_answer(400, f"Too many paths, at most {PATHS_MAX}")
    entries: list[Entry] = []
    for path in paths:
        if path in commit.files:
            entries.append(_file_entry(call, access, commit, path, is_expanded))
        elif path in _find_folders(commit.files, ""):
            entries.append(_folder_entry(path, commit, is_expanded))
    return json_answer(entries)


def page_answer(call: Call, entries: Sequence[object], page_size: int) -> web.Response:
    """Answer with the page that the cursor asks for and the address of the next one."""
    query = call.request.query
    limit = query.get("limit", "")
    if limit.isdecimal() and int(limit) > 0:
        page_size = min(int(limit), page_size)
    try:
        start = int(base64.urlsafe_b64decode(query.get("cursor", "")).removeprefix(b"from:") or 0)
    except (ValueError, binascii.Error):
        return error_answer(400, "Invalid cursor")
    stop = start + page_size
    headers = {"X-Total-Count": str(len(entries))}
    if stop < len(entries):
        kept = [(name, value) for name, value in query.items() if name != "cursor"]
        cursor = base64.urlsafe_b64encode(b"from:%d" % stop).decode()
        raw_path = call.request.raw_path.partition("?")[0]
        address = f"{call.state.hub_url}{raw_path}?{urlencode([*kept, ('cursor', cursor)])}"
        headers["Link"] = f'<{address}>; rel="next"'
    return json_answer(entries[start:stop], headers=headers)


def _find_folders(paths: Iterable[str], inside: str) -> list[str]:
    """Return every folder below `inside` that holds one of the paths, in order."""
    folders = set()
    for path in paths:
        parts = path.removeprefix(inside).split("/")[:-1]
        folders |= {inside + "/".join(parts[: depth + 1]) for depth in range(len(parts))}
    return sorted(folders)


def _folder_entry(path: str, commit: Commit, is_expanded: bool) -> Entry:
    """Return a folder as listings show it."""
    entry: Entry = {"type": "directory", "oid": git_sha1(path.encode()), "size": 0, "path": path}
    if is_expanded:
        entry["lastCommit"] = _last_commit(commit)
    return entry


def _file_entry(call: Call, access: Access, commit: Commit, path: str, is_expanded: bool) -> Entry:
    """Return a file as listings show it."""
    file: HubFile = commit.files[path]
    switches = call.state.switches
    sized: Entry = {} if switches.omit_sizes else {"size": file.size_bytes}
    entry: Entry = {"type": "file", "oid": file.blob_id, **sized, "path": path}
    if file.sha256 is not None:
        entry["lfs"] = {"oid": file.sha256, **sized, "pointerSize": file.pointer_size_bytes}
        if switches.xet:
            entry["xetHash"] = file.xet_hash if access.is_readable else HIDDEN_XET_HASH
    if is_expanded:
        entry["lastCommit"] = _last_commit(commit)
        entry["securityFileStatus"] = {
            "status": "safe",
            "avScan": {"status": "safe"},
            "pickleImportScan": None,
        }
    return entry


def _last_commit(commit: Commit) -> dict[str, str]:
    """Return the commit as listings show it."""
    return {"id": commit.sha, "title": commit.title, "date": commit.date}
