"""
Owns the typed, synchronous client of the local daemon: what the command line, a loader or a
scheduler calls.

Knows nothing of aiohttp and of how the daemon works; it imports fast and uses no proxy.
Invariants: the admin token goes to a loopback address only; an error of the daemon is raised as
the class that it was there, so exit codes by cause survive the hop; answers have a size limit.
Source: design.md §7 and §8 (local endpoint); docs/reference/http-api.md.
"""

from __future__ import annotations

import errno
import ipaddress
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from p2pcache.core.credentials import Credentials
from p2pcache.core.refs import ModelReference
from p2pcache.discovery.address import parse_host_port
from p2pcache.errors import (
    ConfigError,
    DaemonError,
    DaemonUnreachableError,
    ForbiddenError,
    InputError,
    InvalidRangeError,
    NotFoundError,
    P2PCacheError,
    SourceError,
    StoreError,
    UpstreamRateLimitedError,
    UpstreamUnreachableError,
)

Json = dict[str, Any]

# What store.home and config say as well, and a test compares: importing them would cost every
# command more time than it takes to run.
LOCAL_DEFAULT = "127.0.0.1:7277"
ENDPOINT_NAME = "daemon.json"
LOCK_NAME = "lock"
TOKEN_NAME = "admin-token"  # noqa: S105
API_PREFIX = "/_p2pcache/v1"
FINAL_STATES = frozenset({"done", "failed", "cancelled"})
# The daemon asks the hub at most twice for one answer, 8 s each, and may wait for its disk.
REQUEST_TIMEOUT_S = 60.0
# A listing of a hundred thousand snapshots; more is not what a daemon of ours says.
ANSWER_BYTES_MAX = 64 * 1024 * 1024
_SMALL_FILE_BYTES_MAX = 4_096
_ADMIN_TOKEN = re.compile(r"[0-9a-f]{64}", re.ASCII)

# Fields that a class insists on and that bodies do not carry.
_FIELDS_BY_CODE: dict[str, dict[str, Any]] = {
    "ChunkMismatch": {"chunk_index": -1, "peer_id": ""},
    "BlobCorrupt": {"path": ""},
    "ChunkNotYet": {"retry_after_s": 0.0},
}
_CLASS_BY_STATUS: dict[int, type[P2PCacheError]] = {
    401: ForbiddenError,
    403: ForbiddenError,
    404: NotFoundError,
    416: InvalidRangeError,
    429: UpstreamRateLimitedError,
    502: SourceError,
    503: DaemonError,
    504: UpstreamUnreachableError,
    507: StoreError,
}


class Client:
    """
    The local daemon, as seen by a program. Every call opens its own connection and blocks; a
    client may be shared by threads. Every method raises what the daemon raised, and
    DaemonUnreachableError when none answers.
    """

    def __init__(
        self,
        local: str | None = None,
        store: Path | None = None,
        *,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> None:
        """
        Find the endpoint; nothing is connected to yet.

        Args:
            local: HOST:PORT or http://HOST:PORT. Else P2PCACHE_LOCAL, else what the daemon left
                in its store, else 127.0.0.1:7277.
            store: The daemon's store. Else P2PCACHE_STORE, else the one that the daemon names.
            timeout_s: How long one answer may take.

        Raises:
            ConfigError: An endpoint that is no loopback address.
            DaemonUnreachableError: No daemon runs on the store that was named.
        """
        self._store = find_named_store(store)
        self._host, self._port = find_endpoint(local, store)
        # Whose token may be shown when reading: only that of a store whose daemon is asked for
        # certain, since it was named or its word led here.
        was_led = local is None and not os.environ.get("P2PCACHE_LOCAL", "").strip()
        self._token_store = self._store or (default_store() if was_led else None)
        self._timeout_s = timeout_s
        shown_host = f"[{self._host}]" if ":" in self._host else self._host
        # As HF_ENDPOINT takes it.
        self.url = f"http://{shown_host}:{self._port}"

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

    def _get(self, path: str) -> Json:
        token = self._find_admin_token()
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return self._request("GET", path, None, headers)

    def _find_admin_token(self) -> str | None:
        """Return the daemon's token if it can be read: its holder is shown what is private."""
        if self._token_store is None:
            return None
        text = _try_read(self._token_store / TOKEN_NAME).strip()
        return text if _ADMIN_TOKEN.fullmatch(text) else None

    def _change(self, method: str, path: str, body: Json | None = None) -> Json:
        headers = {"Authorization": f"Bearer {self._load_admin_token()}", "X-P2PCache": "1"}
        return self._request(method, path, body, headers)

    def _load_admin_token(self) -> str:
        """
        Read the token of the store that was named, else of the one that the daemon names.

        Raises:
            ForbiddenError: This user may not read it, or there is none.
        """
        store = self._store
        if store is None:
            named = self.status().get("store")
            store = Path(named) if isinstance(named, str) and named else default_store()
        path = store / TOKEN_NAME
        text = _try_read(path).strip()
        if not _ADMIN_TOKEN.fullmatch(text):
            self._check_answers()  # without a daemon that is the news, not the token
        if not _ADMIN_TOKEN.fullmatch(text):
            raise ForbiddenError(
                f"No admin token can be read in {path}; run this as the daemon's user, "
                "or name the daemon's store with --store DIR."
            )
        return text

    def _check_answers(self) -> None:
        import socket

        try:
            socket.create_connection((self._host, self._port), self._timeout_s).close()
        except OSError as error:
            raise self._unreachable() from error

    def _request(self, method: str, path: str, body: Json | None, headers: dict[str, str]) -> Json:
        import http.client

        content = None if body is None else json.dumps(body).encode()
        if content is not None:
            headers = {**headers, "Content-Type": "application/json"}
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        try:
            connection.request(method, API_PREFIX + path, content, headers)
            response = connection.getresponse()
            answer = response.read(ANSWER_BYTES_MAX + 1)
        except TimeoutError as error:
            raise DaemonUnreachableError(
                f"The daemon at {self.url} did not answer within {self._timeout_s:g} s; "
                "look at its log, or start it again with: p2pcache up"
            ) from error
        except http.client.HTTPException as error:
            # A daemon that ended in between, before its answer or inside it.
            if isinstance(error, http.client.RemoteDisconnected | http.client.IncompleteRead):
                raise self._unreachable() from error
            raise self._not_ours() from error
        except OSError as error:
            if error.errno not in (errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE):
                raise self._unreachable(f" ({error.strerror or error})") from error
            raise self._unreachable() from error
        finally:
            connection.close()
        # What a sized read leaves open: the connection ended before the length that was promised.
        if response.length and len(answer) <= ANSWER_BYTES_MAX:
            raise self._unreachable()
        return self._read(response.status, answer)

    def _read(self, status: int, answer: bytes) -> Json:
        """Return the decoded answer, or raise the error that it holds."""
        if len(answer) > ANSWER_BYTES_MAX:
            raise self._not_ours()
        try:
            decoded = json.loads(answer) if answer.strip() else {}
        except (ValueError, RecursionError) as error:
            raise self._not_ours(status) from error
        if not isinstance(decoded, dict):
            raise self._not_ours(status)
        if status >= 400:
            if not isinstance(decoded.get("error"), str):
                raise self._not_ours(status)
            if decoded["error"] == "MissingToken":
                raise ForbiddenError(
                    f"The daemon at {self.url} has another store than the one whose admin token "
                    "was shown; name the daemon's store with --store DIR."
                )
            raise error_of_answer(status, decoded)
        if status >= 300:
            raise self._not_ours(status)
        return decoded

    def _unreachable(self, reason: str = "") -> DaemonUnreachableError:
        return DaemonUnreachableError(
            f"No daemon answers at {self.url}{reason}; start one with: p2pcache up"
        )

    def _not_ours(self, status: int | None = None) -> DaemonError:
        shown = "" if status is None else f" (status {status})"
        return DaemonError(
            f"What answers at {self.url} is no p2pcache daemon of this release{shown}; "
            "name the daemon's endpoint with --local HOST:PORT."
        )


def default_store() -> Path:
    """Return the store of a user who named none; the same as config.default_store()."""
    import platformdirs

    return platformdirs.user_cache_path("p2pcache")


def find_named_store(store: Path | None = None) -> Path | None:
    """Return the store that was given, else P2PCACHE_STORE; None if neither was."""
    named = os.environ.get("P2PCACHE_STORE", "").strip()
    if store is None and not named:
        return None
    return Path(named if store is None else store).expanduser().absolute()


def find_endpoint(local: str | None = None, store: Path | None = None) -> tuple[str, int]:
    """
    Return the daemon's host and port: as given, else P2PCACHE_LOCAL, else what the daemon left in
    its store, else the default. Port 0, which means any to a daemon, names none here.

    Raises:
        ConfigError: An endpoint that was given and is no loopback address.
        DaemonUnreachableError: No daemon runs on the store that was named.
    """
    for text, origin in ((local, "--local"), (os.environ.get("P2PCACHE_LOCAL"), "P2PCACHE_LOCAL")):
        if text is not None and text.strip() and not text.rstrip("/").endswith(":0"):
            try:
                return _parse_local(text)
            except InputError as error:
                raise ConfigError(f"{origin}: {error}") from error
    named = find_named_store(store)
    folder = named or default_store()
    try:
        left = json.loads(_try_read(folder / ENDPOINT_NAME))
        address = _parse_local(str(left["local"]))
    except (ValueError, TypeError, KeyError, RecursionError, InputError):
        # No daemon, or one that was killed while it wrote: nothing that a caller could mend.
        address = None
    if address is not None and not _is_abandoned(folder):
        return address
    if named is not None:
        raise DaemonUnreachableError(
            f"No daemon runs on the store {named}; start one with: p2pcache up --store {named}"
        )
    return _parse_local(LOCAL_DEFAULT)


def _is_abandoned(store: Path) -> bool:
    """
    Return whether no daemon holds the store, though one was there: it was killed.

    Whoever listens on its port now is somebody else, and must not be sent our tokens.
    """
    import fcntl

    try:
        fd = os.open(store / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(fd)


def error_of_answer(status: int, answer: Json) -> P2PCacheError:
    """
    Return the error that `{"error", "message"}` says, as the class that the daemon raised.

    Args:
        status: Of the answer; decides where a newer daemon names a class that is unknown here.
        answer: The decoded body.
    """
    code, message = str(answer.get("error", "")), str(answer.get("message", ""))
    message = message or f"The daemon answered {code or status} without a reason; see its log."
    known = {cls.__name__.removesuffix("Error"): cls for cls in _iter_classes(P2PCacheError)}
    fallback = InputError if 400 <= status < 500 else P2PCacheError
    cls = known.get(code, _CLASS_BY_STATUS.get(status, fallback))
    return cls(message, **_FIELDS_BY_CODE.get(code, {}))


def error_of_download(job: Json) -> P2PCacheError | None:
    """Return why a download ended without its snapshot; None while it has not."""
    shown = str(job.get("model") or job.get("id") or "it")
    if job.get("state") == "cancelled":
        return P2PCacheError(
            f"The download of {shown} was cancelled; what was fetched is kept: pull it again to "
            "go on."
        )
    if job.get("state") != "failed":
        return None
    error = job.get("error")
    if not isinstance(error, dict):
        error = {"message": f"The download of {shown} failed ({error}); see the daemon's log."}
    return error_of_answer(500, error)


def _iter_classes(base: type[P2PCacheError]) -> Iterator[type[P2PCacheError]]:
    yield base
    for cls in base.__subclasses__():
        yield from _iter_classes(cls)


def _body_of(model: str, revision: str | None) -> Json:
    reference = ModelReference.parse(model, revision=revision)
    return {"model": str(reference.repo), "revision": reference.revision}


def _parse_local(text: str) -> tuple[str, int]:
    """
    Read HOST:PORT or http://HOST:PORT.

    Raises:
        InputError: Another form, or not a loopback address: the admin token would leave.
    """
    host, port = parse_host_port(text.strip().removeprefix("http://").rstrip("/"))
    if host.lower().rstrip(".") == "localhost":
        return "127.0.0.1", port
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise InputError(
            f"{host[:80]!r} is not a loopback address; a daemon answers on its own machine alone, "
            f"for example at {LOCAL_DEFAULT}."
        )
    return host, port


def _try_read(path: Path) -> str:
    """Return the text of a small file; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_SMALL_FILE_BYTES_MAX).decode("ascii", "replace")
    except OSError:
        return ""
