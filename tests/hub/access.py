"""
Owns who may read what: tokens, private, gated, moved and missing repositories.

Knows nothing of files beyond the commit that a revision names.
Invariants: a private repository and a missing one give the same answers.
Source: the hub's public answers to anonymous and signed-in readers.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.hub.answers import (
    DISABLED,
    INVALID_TOKEN,
    NOT_LOGGED_IN,
    RefusalError,
    error_answer,
    redirect_answer,
)
from tests.hub.repository import Commit, Repository
from tests.hub.state import Call


@dataclass(frozen=True)
class Access:
    """A repository that the caller may see. `is_readable` says whether files are open too."""

    repository: Repository
    is_readable: bool


def check_token(call: Call) -> None:
    """
    Refuse a token that nobody has.

    Raises:
        RefusalError: 401 with the message that clients match on.
    """
    if call.token is not None and not call.state.catalog.is_known_token(call.token):
        raise RefusalError(error_answer(401, INVALID_TOKEN))


def open_repository(call: Call) -> Access:
    """
    Find the repository that the call names and check that the caller may see it.

    Raises:
        RefusalError: A bad token, a moved repository (307), a missing or hidden one.
    """
    check_token(call)
    target, catalog = call.target, call.state.catalog
    repository = catalog.find(target.kind, target.repo_id)
    if repository is None:
        moved = catalog.find_moved(target.kind, target.repo_id)
        if moved is not None:
            query = f"?{call.raw_query}" if call.raw_query else ""
            raise RefusalError(redirect_answer(307, target.raw_path(moved) + query, {}))
    readable = repository is not None and repository.is_readable(call.token)
    if repository is None or (repository.private and not readable):
        if call.token is None:
            raise RefusalError(error_answer(401, NOT_LOGGED_IN))
        raise RefusalError(error_answer(404, "Repository not found", code="RepoNotFound"))
    if repository.repo_id in call.state.switches.disabled:
        raise RefusalError(error_answer(403, DISABLED))
    return Access(repository, readable)


def open_files(call: Call) -> Repository:
    """
    Find the repository and check that the caller may read its files.

    Raises:
        RefusalError: As open_repository, and GatedRepo 401 (anonymous) or 403 (signed in).
    """
    access = open_repository(call)
    if access.is_readable:
        return access.repository
    name = f"Access to {access.repository.prefix} is restricted"
    if call.token is None:
        message = f"{name}. You must have access to it and be authenticated. Please log in."
        raise RefusalError(error_answer(401, message, code="GatedRepo"))
    message = f"{name} and you are not in the authorized list. Visit its page to ask for access."
    raise RefusalError(error_answer(403, message, code="GatedRepo"))


def open_commit(repository: Repository, revision: str) -> Commit:
    """
    Find the commit of a revision.

    Raises:
        RefusalError: 404 RevisionNotFound.
    """
    commit = repository.find_commit(revision)
    if commit is None:
        shown = revision.encode("ascii", "replace").decode().replace("\n", " ").replace("\r", " ")
        message = f"Invalid rev id: {shown}"
        raise RefusalError(error_answer(404, message, code="RevisionNotFound"))
    return commit
