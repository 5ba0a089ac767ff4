"""
Owns the Hub boundary: what the engine asks of a model hub, as a client.

Knows nothing of bulk bytes: locate() says where they are, the data plane fetches them.
Invariants: a token is sent to the configured hub alone; nothing is cached here.
Source: design.md §5, step ③.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from p2pcache.core.credentials import Credentials
from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.core.upstream import UpstreamLocation

# What a hub counts apart: questions about repositories, and about (or for) files.
RequestKind = Literal["api", "resolve"]


class Gate(Protocol):
    """What a hub client asks before every request, since all of this machine's count together."""

    async def admit(self, kind: RequestKind, *, wait_s_max: float) -> None:
        """
        Return when a request may be sent.

        Raises:
            UpstreamRateLimitedError: Not within `wait_s_max`; it says when.
        """
        ...

    def note_answer(self, kind: RequestKind, status: int, headers: Mapping[str, str]) -> None:
        """Take in what an answer says of the hub's limits, whatever it says besides."""
        ...


class OpenGate:
    """The gate of a hub client that has the hub for itself. Implements Gate."""

    async def admit(self, kind: RequestKind, *, wait_s_max: float) -> None:
        """Let everything pass."""

    def note_answer(self, kind: RequestKind, status: int, headers: Mapping[str, str]) -> None:
        """Learn nothing."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a revision points to, and the hub's own description of the repository."""

    commit: str
    about: dict[str, object]


@dataclass(frozen=True, slots=True)
class ForwardedAnswer:
    """A hub's answer that is passed on: status, chosen headers, decoded JSON or raw body."""

    status: int
    headers: dict[str, str]
    body: bytes


class Hub(Protocol):
    """One model hub. All methods may run at once."""

    async def resolve(self, repo: RepoId, revision: str, credentials: Credentials) -> Resolution:
        """
        Ask what a revision points to.

        Raises:
            RepositoryNotFoundError, RevisionNotFoundError: The hub says so.
            UpstreamUnreachableError: The hub does not answer.
            UpstreamAuthError, UpstreamRateLimitedError, UpstreamProtocolError: See there.
        """
        ...

    async def list_files(self, snapshot_id: SnapshotId, credentials: Credentials) -> Snapshot:
        """Ask for all files of a commit. Raises as resolve()."""
        ...

    async def check_access(
        self, snapshot_id: SnapshotId, path: str, credentials: Credentials
    ) -> None:
        """
        Ask whether the hub would give a file to this caller. Returns if so.

        Raises:
            UpstreamAuthError, NotFoundError: The hub refuses.
            UpstreamUnreachableError: Nobody can tell.
        """
        ...

    def locate(
        self, snapshot_id: SnapshotId, entry: FileEntry, credentials: Credentials
    ) -> UpstreamLocation:
        """Return where the data plane finds a file. Asks nobody."""
        ...

    async def forward(
        self, method: str, raw_path: str, body: bytes, credentials: Credentials
    ) -> ForwardedAnswer:
        """Pass a request on and return the answer, redirects followed. Raises as resolve()."""
        ...
