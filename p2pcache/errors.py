"""
Owns the whole error hierarchy: who is to blame, the process exit code and the HTTP status.

Knows nothing of how errors are shown; str(error) is one sentence that ends in a next step.
Invariants: *missing* and *invalid* never share a class; programmer errors are not in this tree.
Source: design.md §8 and the table in docs/reference/errors.md.
"""

from __future__ import annotations

from typing import ClassVar


class P2PCacheError(Exception):
    """Base of everything that p2pcache raises on purpose."""

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    @property
    def code(self) -> str:
        """Return the stable name of the error, as it appears in JSON bodies: `BlobNotFound`."""
        return type(self).__name__.removesuffix("Error")


class InputError(P2PCacheError):
    """The caller asked for something malformed; asking again changes nothing."""

    exit_code = 2
    http_status = 400


class InvalidDigestError(InputError):
    """Text that is not a blob or chunk digest."""


class InvalidNameError(InputError):
    """A repository, revision or path that no hub could have."""


class InvalidRangeError(InputError):
    """A byte range outside the file, or one that cannot be read."""

    http_status = 416

    def __init__(self, message: str, *, size_bytes: int | None = None) -> None:
        super().__init__(message)
        self.size_bytes = size_bytes


class TooLargeForClientError(InputError):
    """A file that this release of the client refuses to fetch over plain HTTP."""

    http_status = 413


class ProtectedError(InputError):
    """A snapshot that cannot go: it is pinned, leased, or in use right now."""

    http_status = 409


class ForbiddenError(InputError):
    """The caller may not do this: wrong Host or Origin, or no admin token."""

    http_status = 403


class MissingTokenError(ForbiddenError):
    """A change of the daemon's state without its admin token."""

    http_status = 401


class WaitTimeoutError(P2PCacheError):
    """Somebody's time to wait is over; what was waited for goes on."""

    exit_code = 124
    http_status = 504
    retryable = True


class CommandNotFoundError(InputError):
    """A command to run that is not there; shells end with the same code."""

    exit_code = 127


class CommandRefusedError(InputError):
    """A command to run that the system will not run: a folder, no program, no permission."""

    exit_code = 126


class ConfigError(P2PCacheError):
    """A setting that cannot work: a port in use, an unreadable file."""

    exit_code = 3


class NotFoundError(P2PCacheError):
    """What was asked for does not exist, as far as whoever knows can tell."""

    exit_code = 10
    http_status = 404


class RepositoryNotFoundError(NotFoundError):
    """The hub knows no such repository, or does not show it to this caller."""


class RevisionNotFoundError(NotFoundError):
    """The repository has no such branch, tag or commit."""


class EntryNotFoundError(NotFoundError):
    """The commit has no such file."""

    def __init__(self, message: str, *, commit: str = "") -> None:
        super().__init__(message)
        self.commit = commit


class BlobNotFoundError(NotFoundError):
    """A blob or chunk that this store does not hold."""


class ChunkNotYetError(NotFoundError):
    """Chunks that are on their way here."""

    http_status = 425
    retryable = True

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class OtherLayoutError(InputError):
    """A run in chunk boundaries that this release does not use."""

    http_status = 409


class PeerNotFoundError(NotFoundError):
    """No peer of that name is known."""


class JobNotFoundError(NotFoundError):
    """No download or import with that id."""


class JobEndedError(InputError):
    """A download that has ended, and cannot be paused or resumed."""

    http_status = 409


class NotResidentError(NotFoundError):
    """A snapshot of which some files were fetched, and nobody fetches the others."""


class NoSourceError(NotFoundError):
    """Nobody who was asked could give the bytes."""

    http_status = 503
    retryable = True

    def __init__(self, message: str, *, tried: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.tried = tried


class IntegrityError(P2PCacheError):
    """Bytes that are not what their digest says."""

    exit_code = 11
    http_status = 502


class ChunkMismatchError(IntegrityError):
    """A chunk whose bytes do not have the digest that was promised."""

    def __init__(self, message: str, *, chunk_index: int, peer_id: str) -> None:
        super().__init__(message)
        self.chunk_index = chunk_index
        self.peer_id = peer_id


class BlobCorruptError(IntegrityError):
    """A whole file, here on this disk, that is not what its name says."""

    http_status = 500

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(message)
        self.path = path


class BundleCorruptError(IntegrityError):
    """A bundle that is not what it says it is: damaged or changed on its way, or cut off."""

    http_status = 400


class SourceError(P2PCacheError):
    """A peer or the upstream did not do its part."""

    exit_code = 12
    http_status = 502
    retryable = True


class PeerUnreachableError(SourceError):
    """A peer that does not answer."""


class PeerProtocolError(SourceError):
    """A peer that answers something the protocol does not allow."""


class PeerGoneError(PeerUnreachableError):
    """An address of a peer at which nobody listens any more."""


class PeerRefusedError(SourceError):
    """A peer that does not have, or will not give, what was asked."""


class PeerBusyError(PeerRefusedError):
    """A peer that has what was asked and cannot give it now."""


class PeerDamagedError(SourceError):
    """A peer that found its own copy damaged when it was asked for it."""


class UpstreamUnreachableError(SourceError):
    """The hub does not answer, or answers that it cannot serve now."""

    http_status = 504


class UpstreamProtocolError(SourceError):
    """The hub answered something that cannot be right."""


class UpstreamFailedError(UpstreamProtocolError):
    """The hub says that it failed, in an answer whose status says that it did not."""

    def __init__(self, message: str, *, answer: bytes = b"") -> None:
        super().__init__(message)
        self.answer = answer


class UpstreamAuthError(SourceError):
    """The hub wants another token, or none helps."""

    http_status = 401
    retryable = False


class GatedRepositoryError(UpstreamAuthError):
    """The repository exists, and its owner has not let this caller in."""

    http_status = 403


class UpstreamRateLimitedError(SourceError):
    """The hub asked us to slow down."""

    http_status = 429

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StoreError(P2PCacheError):
    """This machine's disk or index is the problem."""

    exit_code = 13
    http_status = 507


class StoreFullError(StoreError):
    """Not enough room for what was asked."""


class StoreLockedError(StoreError):
    """Another daemon owns this store."""


class IndexCorruptError(StoreError):
    """The index cannot be read; it can be rebuilt."""


class SchemaTooNewError(StoreError):
    """The store was written by a later release."""


class DaemonError(P2PCacheError):
    """The local daemon is the problem."""

    exit_code = 14
    http_status = 503


class DaemonBusyError(DaemonError):
    """More is asked at once than the daemon gives; ask again soon."""

    retryable = True


class DaemonUnreachableError(DaemonError):
    """No daemon answers at the local endpoint."""
