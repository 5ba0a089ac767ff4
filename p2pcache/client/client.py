"""
Owns the typed, synchronous client of the local daemon: what the command line, a loader or a
scheduler calls.

Knows nothing of aiohttp and of how the daemon works.
Invariants: one method for one verb of the management API; answers are passed on unchanged.
Source: design.md §8 (local endpoint); docs/reference/http-api.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from urllib.parse import quote

from p2pcache.client.answers import Json, error_of_download
from p2pcache.client.wire import Wire
from p2pcache.core.credentials import Credentials
from p2pcache.core.refs import ModelReference
from p2pcache.errors import DaemonUnreachableError

FINAL_STATES = frozenset({"done", "failed", "cancelled"})


class Client(Wire):
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
    ) -> Json:
        """
        Ask for a snapshot and return at once; wait() follows it.

        Args:
            model: A model reference, with or without a revision.
            revision: Given beside the model; `main` if neither names one.
            include: Globs of the files to fetch; () for all.
            exclude: Globs of the files to leave out.
            token: The caller's token for the hub. It goes into the body, never into a log.
            pin: Protect the snapshot from the start.

        Returns:
            {id, state}.

        Raises:
            InvalidNameError: No such reference can be; nothing was sent.
        """
        body = _body_of(model, revision)
        if include:
            body["include"] = list(include)
        if exclude:
            body["exclude"] = list(exclude)
        if token is not None:
            Credentials(token)  # refuses what cannot be sent on, before it is sent to anybody
            body["token"] = token
        if pin:
            body["pin"] = True
        return self._change("POST", "/downloads", body)

    def download(self, download_id: str) -> Json:
        """Return the state of a download: {id, model, commit, state, bytes_total, …}."""
        return self._get(f"/downloads/{quote(download_id, safe='')}")

    def cancel(self, download_id: str) -> Json:
        """End a download; what was fetched is kept."""
        return self._change("DELETE", f"/downloads/{quote(download_id, safe='')}")

    def wait(
        self,
        download_id: str,
        on_progress: Callable[[Json], None] | None = None,
        poll_s: float = 0.2,
    ) -> Json:
        """
        Follow a download to its end.

        Args:
            download_id: From pull().
            on_progress: Called with every state that was seen, the final one included.
            poll_s: How long to wait between two looks.

        Returns:
            The download, done; `path` is its snapshot.

        Raises:
            P2PCacheError: It failed, by cause; or it was cancelled.
            DaemonUnreachableError: The daemon went away; what was fetched is kept.
        """
        while True:
            try:
                job = self.download(download_id)
            except DaemonUnreachableError as error:
                raise DaemonUnreachableError(
                    f"The daemon at {self.url} went away during the download; what was fetched "
                    "is kept: start it again with: p2pcache up, and pull again."
                ) from error
            if on_progress is not None:
                on_progress(job)
            if job.get("state") in FINAL_STATES:
                failure = error_of_download(job)
                if failure is not None:
                    raise failure
                return job
            time.sleep(poll_s)

    def residency(self, ref: str) -> Json:
        """Return how much of a snapshot is here; see design.md §8 for the fields."""
        return self._get(f"/residency/{quote(str(ModelReference.parse(ref)), safe='')}")

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

    def pin(self, ref: str) -> Json:
        """Protect a snapshot that is here."""
        return self._change("POST", "/pins", _body_of(ref, None))

    def unpin(self, ref: str) -> Json:
        """Protect it no longer; nothing is deleted by that."""
        return self._change("DELETE", "/pins", _body_of(ref, None))


def _body_of(model: str, revision: str | None) -> Json:
    reference = ModelReference.parse(model, revision=revision)
    return {"model": str(reference.repo), "revision": reference.revision}
