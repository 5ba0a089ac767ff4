"""
Owns which hub is asked: the one that a repository is on, or that a path belongs to.

Knows nothing of what the hubs speak.
Invariants: no question about one hub's repository ever reaches another.
Source: design.md §3 (model reference), §8 (chosen by path).
"""

from __future__ import annotations

from p2pcache.core.credentials import Credentials
from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.core.upstream import UpstreamLocation
from p2pcache.hubs.base import ForwardedAnswer, Hub, Resolution

# What begins so is ModelScope's on the local endpoint, and is forwarded there.
MODELSCOPE_PATHS = ("/api/v1/", "/openapi/v1/")


class HubRouter:
    """All hubs as one. Implements Hub."""

    def __init__(self, huggingface: Hub, modelscope: Hub) -> None:
        self._hubs = {"hf": huggingface, "ms": modelscope}

    async def resolve(self, repo: RepoId, revision: str, credentials: Credentials) -> Resolution:
        """Ask what a revision points to. See Hub.resolve."""
        return await self._hubs[repo.hub].resolve(repo, revision, credentials)

    async def list_files(self, snapshot_id: SnapshotId, credentials: Credentials) -> Snapshot:
        """Ask for all files of a commit. See Hub.list_files."""
        return await self._hubs[snapshot_id.repo.hub].list_files(snapshot_id, credentials)

    async def check_access(
        self, snapshot_id: SnapshotId, path: str, credentials: Credentials
    ) -> None:
        """Ask whether the hub would give a file to this caller. See Hub.check_access."""
        await self._hubs[snapshot_id.repo.hub].check_access(snapshot_id, path, credentials)

    def locate(
        self, snapshot_id: SnapshotId, entry: FileEntry, credentials: Credentials
    ) -> UpstreamLocation:
        """Return where the data plane finds a file. See Hub.locate."""
        return self._hubs[snapshot_id.repo.hub].locate(snapshot_id, entry, credentials)

    async def forward(
        self, method: str, raw_path: str, body: bytes, credentials: Credentials
    ) -> ForwardedAnswer:
        """Pass a request on to the hub that its path belongs to. See Hub.forward."""
        name = "ms" if raw_path.startswith(MODELSCOPE_PATHS) else "hf"
        return await self._hubs[name].forward(method, raw_path, body, credentials)
