"""
Owns the list of a repository's branches and tags, as the hub's clients read it.

Knows nothing of where the commits come from.
Invariants: what is pinned here is said here: a list never names another commit for a branch than
HEAD, GET and the file list do.
Source: docs/reference/hub-dialect.md (refs).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_RELEASE = re.compile(r"v?\d+(?:\.\d+)*(?:[-+.\w]*)", re.ASCII)
_GROUPS = {"refs/convert/": "converts", "refs/pr/": "pullRequests"}


def list_refs(commits: Mapping[str, str], *, with_pull_requests: bool) -> dict[str, object]:
    """
    Return the list that can be made of what was asked for before.

    Nobody can tell a tag from a branch by its name alone: what looks like a release is a tag.

    Args:
        commits: Commit by revision, as callers named it.
        with_pull_requests: Whether the caller wants these, too.
    """
    groups: dict[str, list[dict[str, str]]] = {"branches": [], "converts": [], "tags": []}
    if with_pull_requests:
        groups["pullRequests"] = []
    for revision, commit in sorted(commits.items()):
        group, name, ref = "branches", revision.removeprefix("refs/heads/"), ""
        for prefix, named in _GROUPS.items():
            if revision.startswith(prefix):
                # The hub calls a pull request by its whole name, a conversion by the last part.
                group, ref = named, revision
                name = revision if named == "pullRequests" else revision.removeprefix(prefix)
        if revision.startswith("refs/tags/") or _RELEASE.fullmatch(revision):
            name = revision.removeprefix("refs/tags/")
            group, ref = "tags", f"refs/tags/{name}"
        if group in groups:
            entry = {"name": name, "ref": ref or f"refs/heads/{name}", "targetCommit": commit}
            groups[group].append(entry)
    return dict(groups)


def pin_refs(listed: object, commits: Mapping[str, str]) -> object:
    """Return a hub's list with the commits that are pinned here in place of its own."""
    if not isinstance(listed, dict):
        return listed
    return {
        group: [_pin_entry(entry, commits) for entry in entries]
        if isinstance(entries, list)
        else entries
        for group, entries in listed.items()
    }


def _pin_entry(entry: object, commits: Mapping[str, str]) -> object:
    if not isinstance(entry, dict):
        return entry
    for name in (entry.get("name"), entry.get("ref")):
        if isinstance(name, str) and name in commits:
            return {**entry, "targetCommit": commits[name]}
    return entry
