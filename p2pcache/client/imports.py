"""
Owns the client's verbs for imports: adopt a cache, watch a folder, follow, stop.

Knows nothing of what a cache looks like.
Invariants: one method for one verb of the management API; answers are passed on unchanged.
Source: docs/reference/http-api.md ("Imports").
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from p2pcache.client.answers import Json, error_of_answer
from p2pcache.client.wire import Wire
from p2pcache.errors import DaemonUnreachableError, P2PCacheError

# A folder on a sleeping disk or a slow network takes long to be looked into.
POLL_S = 0.2
_FINAL_STATES = frozenset({"done", "failed", "cancelled"})


class ImportClient(Wire):
    """The imports of one daemon. Every call opens its own connection and blocks."""

    def start(self, path: Path, *, is_watch: bool = False, is_public: bool = False) -> Json:
        """
        Ask for a folder to be adopted and return at once; wait() follows it.

        Args:
            path: An absolute path, as the daemon sees it.
            is_watch: Look at it again and again.
            is_public: Anybody may have what the hub cannot be asked about.

        Returns:
            {id, state}.
        """
        body: Json = {"path": str(path)}
        if is_watch:
            body["watch"] = True
        if is_public:
            body["public"] = True
        return self._change("POST", "/imports", body)

    def list_all(self) -> Json:
        """Return {"imports": […]}: jobs and watches."""
        return self._get("/imports")

    def get(self, import_id: str) -> Json:
        """Return how far an import is."""
        return self._get(f"/imports/{quote(import_id, safe='')}")

    def stop(self, import_id: str) -> Json:
        """End an import or a watch; what was imported is kept."""
        return self._change("DELETE", f"/imports/{quote(import_id, safe='')}")

    def wait(
        self,
        import_id: str,
        on_progress: Callable[[Json], None] | None = None,
        poll_s: float = POLL_S,
    ) -> Json:
        """
        Follow an import to its end, or a watch to the end of its first look.

        Args:
            import_id: From start().
            on_progress: Called with every state that was seen, the final one included.
            poll_s: How long to wait between two looks.

        Returns:
            The import, done.

        Raises:
            P2PCacheError: It failed, by cause; or it was cancelled.
            DaemonUnreachableError: The daemon went away; what was imported is kept.
        """
        while True:
            try:
                job = self.get(import_id)
            except DaemonUnreachableError as error:
                raise DaemonUnreachableError(
                    f"The daemon at {self.url} went away during the import; what was imported is "
                    "kept: start it again with: p2pcache up, and import again."
                ) from error
            if on_progress is not None:
                on_progress(job)
            if job.get("state") in _FINAL_STATES:
                _check_done(job)
                return job
            time.sleep(poll_s)


def _check_done(job: Json) -> None:
    if job.get("state") == "done":
        return
    error = job.get("error")
    if isinstance(error, dict):
        raise error_of_answer(500, error)
    raise P2PCacheError(
        f"The import of {job.get('path')} ended as {job.get('state')}; what was imported is kept: "
        "import it again to go on."
    )
