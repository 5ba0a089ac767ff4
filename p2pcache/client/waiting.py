"""
Owns waiting: for a model to be here, for a download to end.

Knows nothing of how bytes come here.
Invariants: nothing waits for what cannot come any more: a download that failed is told at once; a
daemon that is restarted is waited for a while; every wait of the daemon is short, so that Ctrl-C
and the end of the time are heeded.
Source: docs/reference/http-api.md (residency, downloads); decision 0024.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from urllib.parse import quote

from p2pcache.client.answers import Json, error_of_download
from p2pcache.client.wire import Wire
from p2pcache.core.refs import ModelReference
from p2pcache.errors import (
    DaemonUnreachableError,
    InputError,
    NotResidentError,
    P2PCacheError,
    WaitTimeoutError,
)

FINAL_STATES = frozenset({"done", "failed", "cancelled"})
# One long poll; a download that failed meanwhile is noticed after it.
POLL_S_MAX = 5.0
# The same after a download that is done and left something out: is it so, or was it just then?
DOUBT_S = 0.5
# Beyond the poll itself: the daemon's disk may be busy with the very download.
ANSWER_GRACE_S = 30.0
# What a daemon needs to be started again by systemd, or as another container.
RESTART_PATIENCE_S = 10.0
RESTART_POLL_S = 0.2
# A download that failed before somebody began to wait is the news for a minute: long enough for
# `pull --detach` and `wait` on two lines of a script, short enough that last week's is none.
FAILURE_FRESH_S = 60.0

OnProgress = Callable[[Json], None]


class WaitClient(Wire):
    """Waiting for one daemon's downloads. Every call opens its own connections and blocks."""

    def wait(
        self,
        target: str,
        on_progress: OnProgress | None = None,
        poll_s: float = 0.2,
        *,
        timeout_s: float | None = None,
        restart_patience_s: float | None = None,
        token: str | None = None,
    ) -> Json:
        """
        Wait until a model is here, or a download has ended. Any thread; holds no lock.

        Args:
            target: A model reference (it has a slash), or the id of a download from pull().
            on_progress: Called in this thread with every state that was seen, the final one
                included: `state`, `bytes_total`, `bytes_done`, and what else a download says.
            poll_s: Seconds between two looks at a download.
            timeout_s: Seconds to wait altogether; None for as long as it takes, 0 for one look.
            restart_patience_s: Seconds that a daemon may be gone; None for 10 s.
            token: The caller's token for the hub, which a daemon that is restarted forgets: it is
                given to a download that waits for it. Of no use when waiting for a model.

        Returns:
            For a model its residency, resident: `path` is its snapshot. For a download the
            download, done.

        Raises:
            InvalidNameError: No such reference can be.
            InputError: A time that is none.
            WaitTimeoutError: The time is over; whatever ran goes on.
            NotResidentError: The download ended, and fetched some files of the model only.
            P2PCacheError: The download failed, by cause; or it was cancelled; or it is paused and
                waits for somebody, as the message says.
            DaemonUnreachableError: The daemon went away and did not return; what was fetched is
                kept.
        """
        if timeout_s is not None and not timeout_s >= 0:
            raise InputError(f"A time of {timeout_s:g} s cannot be waited; name 0 or more seconds.")
        deadline = _Deadline(timeout_s)
        patience_s = RESTART_PATIENCE_S if restart_patience_s is None else restart_patience_s
        patience = _Patience(self, patience_s)
        if "/" in target:
            reference = ModelReference.parse(target)
            return self._wait_for_model(reference, on_progress, deadline, patience)
        return self._follow(target, on_progress, poll_s, deadline, patience, token=token)

    # --- a download ---

    def _follow(
        self,
        download_id: str,
        on_progress: OnProgress | None,
        poll_s: float,
        deadline: _Deadline,
        patience: _Patience,
        *,
        token: str | None,
    ) -> Json:
        path = f"/downloads/{quote(download_id, safe='')}"
        while True:
            try:
                job = patience.get(path)
            except DaemonUnreachableError as error:
                raise DaemonUnreachableError(
                    f"The daemon at {self.url} went away during the download; what was fetched "
                    "is kept: start it again with: p2pcache up, and pull again."
                ) from error
            if on_progress is not None:
                on_progress(job)
            failure = error_of_download(job)
            if failure is not None and job.get("state") == "paused" and token is not None:
                patience.change("POST", f"{path}/resume", {"token": token})
            elif failure is not None:
                raise failure
            if job.get("state") in FINAL_STATES:
                return job
            if deadline.is_over:
                raise deadline.error(str(job.get("model") or download_id), job, job)
            time.sleep(deadline.clip(poll_s))

    # --- a model ---

    def _wait_for_model(
        self,
        reference: ModelReference,
        on_progress: OnProgress | None,
        deadline: _Deadline,
        patience: _Patience,
    ) -> Json:
        watch = _DownloadWatch(reference)
        poll_s = 0.0  # the first look waits for nothing
        while True:
            residency = self._look(patience, reference, poll_s)
            if residency.get("state") == "resident":
                if on_progress is not None:
                    on_progress(_progress_of(residency))
                return residency
            listed = patience.get("/downloads").get("downloads")
            job = watch.note(listed if isinstance(listed, list) else [], residency)
            if on_progress is not None:
                on_progress(job or _progress_of(residency))
            if deadline.is_over:
                raise deadline.error(str(reference), residency, job)
            poll_s = deadline.clip(DOUBT_S if watch.is_doubtful else POLL_S_MAX)

    def _look(self, patience: _Patience, reference: ModelReference, poll_s: float) -> Json:
        """Return the residency, when it is resident or poll_s is over."""
        path = f"/residency/{quote(str(reference), safe='')}"
        if poll_s <= 0:
            return patience.get(path)
        path += f"?wait=resident&timeout={poll_s:.3f}"
        return patience.get(path, timeout_s=poll_s + ANSWER_GRACE_S)


class _Deadline:
    """The end of somebody's time."""

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self._end_s = None if timeout_s is None else time.monotonic() + timeout_s

    @property
    def is_over(self) -> bool:
        return self._end_s is not None and time.monotonic() >= self._end_s

    def clip(self, wait_s: float) -> float:
        """Return a time that does not go beyond the end; above 0, so that it is a wait."""
        if self._end_s is None:
            return wait_s
        return max(0.001, min(wait_s, self._end_s - time.monotonic()))

    def error(self, shown: str, state: Json, job: Json | None) -> WaitTimeoutError:
        """Return what to say then: of a state, and the download that goes on, if one does."""
        missing = state.get("bytes_missing")
        if missing is None and isinstance(state.get("bytes_total"), int):
            missing = int(state["bytes_total"]) - int(state.get("bytes_done") or 0)
        left = f" ({missing:,} bytes are missing)" if isinstance(missing, int) and missing else ""
        if job is None:
            then = f"nothing is fetching it, either; start it with: p2pcache pull {shown}"
        elif job.get("state") == "paused":
            then = f"its download is paused: p2pcache jobs --resume {job.get('id')}"
        else:
            then = "the download goes on: wait again, or look with: p2pcache status"
        return WaitTimeoutError(f"{shown} is not here after {self._timeout_s:g} s{left}; {then}")


class _Patience:
    """Asking a daemon that may be restarted meanwhile, perhaps at another port."""

    def __init__(self, wire: Wire, patience_s: float) -> None:
        self._wire = wire
        self._patience_s = patience_s
        self._has_answered = False

    def get(self, path: str, *, timeout_s: float | None = None) -> Json:
        """Return an answer; one that never came before is not waited for."""
        gone_s: float | None = None
        while True:
            try:
                answer = self._wire._get(path, timeout_s=timeout_s)
            except DaemonUnreachableError:
                now_s = time.monotonic()
                gone_s = now_s if gone_s is None else gone_s
                if not self._has_answered or now_s - gone_s >= self._patience_s:
                    raise
                time.sleep(RESTART_POLL_S)
                with contextlib.suppress(DaemonUnreachableError):
                    self._wire = self._wire._find_again(Wire)
            else:
                self._has_answered = True
                return answer

    def change(self, method: str, path: str, body: Json) -> None:
        """Change something; one that was there a moment ago is not waited for."""
        self._wire._change(method, path, body)


class _DownloadWatch:
    """What the downloads of one model mean for whoever waits for it."""

    def __init__(self, reference: ModelReference) -> None:
        self._reference = reference
        self._began_wall_s = time.time()
        self._running: set[str] = set()
        self._done_seen = 0

    @property
    def is_doubtful(self) -> bool:
        return self._done_seen > 0

    def note(self, jobs: list[Json], residency: Json) -> Json | None:
        """
        Return the download that is bringing the model; None if none is.

        Raises:
            P2PCacheError: The last one failed or was cancelled, or waits for somebody, and none
                runs.
            NotResidentError: The last one is done, and was for some of the files.
        """
        ours = [job for job in jobs if self._is_ours(job, residency)]
        running = [job for job in ours if job.get("state") not in FINAL_STATES]
        self._running |= {str(job.get("id")) for job in running}
        stuck: P2PCacheError | None = None
        for job in reversed(running):
            self._done_seen = 0
            failure = error_of_download(job)
            if failure is None:
                return job
            stuck = stuck or failure
        if stuck is not None:
            raise stuck
        if not ours or not self._is_news(ours[-1]):
            return None
        failure = error_of_download(ours[-1])
        if failure is not None:
            raise failure
        if residency.get("state") == "absent":
            return None  # removed since; somebody may pull it again
        # It may have ended between the two questions, so it is believed the second time.
        self._done_seen += 1
        if self._done_seen > 1:
            raise _explain_part(self._reference, residency)
        return None

    def _is_ours(self, job: Json, residency: Json) -> bool:
        # What other machines fetch on order is listed here as well.
        if job.get("model") != str(self._reference.repo) or job.get("workers"):
            return False
        commit = residency.get("commit")
        return job.get("revision") in (self._reference.revision, commit) or (
            commit is not None and job.get("commit") == commit
        )

    def _is_news(self, job: Json) -> bool:
        ended_wall_s = job.get("ended_at")
        if str(job.get("id")) in self._running or not isinstance(ended_wall_s, int | float):
            return True
        return ended_wall_s > self._began_wall_s - FAILURE_FRESH_S


def _progress_of(residency: Json) -> Json:
    """Return a residency with the names that a download has."""
    return {**residency, "bytes_done": residency.get("bytes_local")}


def _explain_part(reference: ModelReference, residency: Json) -> P2PCacheError:
    missing = residency.get("bytes_missing")
    left = f"{missing:,} bytes of it are" if isinstance(missing, int) else "some of it is"
    return NotResidentError(
        f"The download of {reference} is done, and {left} not here: it was for some of the files. "
        f"Wait for such a download by its id, or fetch the rest with: p2pcache pull {reference}"
    )
