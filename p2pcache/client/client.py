"""
Owns the typed, synchronous client of the local daemon: what the command line, a loader or a
scheduler calls.

Knows nothing of aiohttp and of how the daemon works.
Invariants: one method for one verb of the management API; answers are passed on unchanged.
Source: design.md §8 (local endpoint); docs/reference/http-api.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from p2pcache.client.answers import Json
from p2pcache.client.events import EventClient
from p2pcache.client.leasing import LeaseClient
from p2pcache.client.residency import ResidencyClient
from p2pcache.client.waiting import WaitClient
from p2pcache.client.wire import add_choice
from p2pcache.core.refs import ModelReference


class Client(WaitClient, LeaseClient, EventClient, ResidencyClient):
    """
    The local daemon, as seen by a program. Every call opens its own connection and blocks; a
    client may be shared by threads. Every method raises what the daemon raised, and
    DaemonUnreachableError when none answers.
    """

    def pull(
        self,
        model: str,
        revision: str | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        token: str | None = None,
        pin: bool = False,
        workers: Sequence[str] = (),
        path: str | None = None,
        priority: int | None = None,
    ) -> Json:
        """
        Ask for a snapshot and return at once; wait() follows it.

        Args:
            model: A model reference, with or without a revision.
            revision: Given beside the model; `main` if neither names one.
            include: Globs of the files to fetch; () for all, but for the same weights in a second
                format.
            exclude: Globs of the files to leave out.
            token: The caller's token for the hub. It goes into the body, never into a log.
            pin: Protect the snapshot from the start.
            workers: The daemons that are to fetch it: names, ids, `key=value` labels or `*`; () for
                this one.
            path: A folder to put the files in as well, below one that the daemon allows.
            priority: -100 to 100; more is sooner.

        Returns:
            {id, state}, with workers also {workers}.

        Raises:
            InvalidNameError: No such reference can be; nothing was sent.
            PeerNotFoundError, PeerUnreachableError: No such worker, or it does not answer.
            ForbiddenError: A path that is not allowed, or a worker that takes no orders from here.
        """
        body = _body_of(model, revision)
        add_choice(body, include, exclude, token)
        if pin:
            body["pin"] = True
        if workers:
            body["workers"] = list(workers)
        if path is not None:
            body["path"] = path
        if priority is not None:
            body["priority"] = priority
        return self._change("POST", "/downloads", body)

    def download(self, download_id: str) -> Json:
        """Return the state of a download: {id, model, commit, state, bytes_total, …}."""
        return self._get(f"/downloads/{quote(download_id, safe='')}")

    def downloads(self) -> Json:
        """Return {"downloads": […]}: the jobs, oldest first."""
        return self._get("/downloads")

    def pause(self, download_id: str) -> Json:
        """Stop a download until it is resumed; raises JobEndedError if it has ended."""
        return self._change("POST", f"/downloads/{quote(download_id, safe='')}/pause")

    def resume(self, download_id: str, token: str | None = None) -> Json:
        """Let a paused download go on, with another token for the hub if one is given."""
        body: Json = {}
        add_choice(body, (), (), token)
        return self._change("POST", f"/downloads/{quote(download_id, safe='')}/resume", body)

    def cancel(self, download_id: str) -> Json:
        """End a download; what was fetched is kept."""
        return self._change("DELETE", f"/downloads/{quote(download_id, safe='')}")

    def models(self) -> Json:
        """Return {"models": […]}: the snapshots that this store has something of."""
        return self._get("/models")

    def peers(self) -> Json:
        """Return {"peers": […], "unreachable": […]}."""
        return self._get("/peers")

    def status(self) -> Json:
        """Return what the daemon says of itself, recent faults of its sources included."""
        return self._get("/status")

    def storage(self) -> Json:
        """Return the store's folder and its sizes in bytes."""
        return self._get("/storage")

    def pins(self) -> Json:
        """Return {"pins": […]}: what eviction must respect."""
        return self._get("/pins")

    def pin(self, ref: str, replicas: int | None = None) -> Json:
        """
        Protect a snapshot that is here; or let so many daemons fetch and protect it.

        With replicas the answer comes at once: {model, revision, commit, replicas, copies,
        holders: [{name, id, state}]}; pins() says how far they are, under `replicas`.
        """
        body = _body_of(ref, None)
        if replicas is not None:
            body["replicas"] = replicas
        return self._change("POST", "/pins", body)

    def unpin(self, ref: str) -> Json:
        """Protect it no longer; nothing is deleted by that."""
        return self._change("DELETE", "/pins", _body_of(ref, None))


def _body_of(model: str, revision: str | None) -> Json:
    reference = ModelReference.parse(model, revision=revision)
    return {"model": str(reference.repo), "revision": reference.revision}
