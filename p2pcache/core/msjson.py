"""
Owns reading ModelScope's JSON: the envelope, commits, file lists.

Knows nothing of HTTP.
Invariants: a listing is read whole or refused; every file of it has a SHA-256, or nothing of it is
believed.
Source: docs/reference/modelscope-dialect.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import BLOB_SIZE_BYTES_MAX
from p2pcache.core.lfs import make_pointer_oid
from p2pcache.core.messages import get_text, get_whole
from p2pcache.core.refs import is_commit, parse_path
from p2pcache.core.snapshot import FileEntry
from p2pcache.errors import InputError, UpstreamProtocolError

# What the hub calls a repository that it has not, or does not show; and a revision without files.
CODE_NOT_FOUND = 10010205001
CODE_NO_ACCESS = 10010200001
CODE_NO_TREE = 10990101004
_MESSAGE_CHARS_MAX = 300


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every JSON answer of the hub is wrapped in."""

    is_success: bool
    code: int
    message: str
    content: object


@dataclass(frozen=True, slots=True)
class FileList:
    """One listing: what it says of files, of folders, and of the newest commit in it."""

    items: tuple[dict[str, object], ...]
    commit: str | None

    @property
    def folders(self) -> list[str]:
        """
        Return the paths of the folders.

        Raises:
            UpstreamProtocolError: One that cannot be.
        """
        try:
            return [parse_path(_path_of(item)) for item in self.items if _is_folder(item)]
        except InputError as error:
            raise UpstreamProtocolError(
                f"The hub lists a folder that cannot be stored safely: {error}"
            ) from error


def read_envelope(answer: object) -> Envelope | None:
    """Read the envelope of a decoded answer; None when it has none."""
    if not isinstance(answer, dict) or "Code" not in answer:
        return None
    code, message = answer.get("Code"), answer.get("Message")
    said = "".join(c for c in message if c.isprintable()) if isinstance(message, str) else ""
    is_good = isinstance(code, int) and not isinstance(code, bool)
    return Envelope(
        answer.get("Success") is not False,
        code if is_good and isinstance(code, int) else 0,
        said[:_MESSAGE_CHARS_MAX],
        answer.get("Data"),
    )


def find_commit(content: object) -> str | None:
    """
    Return the newest commit of a list of commits, None for an empty list: the hub's way to say
    that it has no such revision.

    Raises:
        UpstreamProtocolError: It is no such list.
    """
    commits = content.get("Commit") if isinstance(content, dict) else content
    if commits is None or commits == []:
        return None
    first = commits[0] if isinstance(commits, list) else None
    commit = first.get("Id") if isinstance(first, dict) else None
    if not isinstance(commit, str) or not is_commit(commit):
        raise UpstreamProtocolError(
            "The hub named no valid commit; check that the address is ModelScope's."
        )
    return commit


def read_files(content: object) -> FileList:
    """
    Read one listing, as it stands in the envelope; `null` is an empty one.

    Raises:
        UpstreamProtocolError: It is none.
    """
    items = content.get("Files") if isinstance(content, dict) else content
    if items is None:
        items = []
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise UpstreamProtocolError(
            "The hub listed no files; check that the address is ModelScope's."
        )
    latest = content.get("LatestCommitter") if isinstance(content, dict) else None
    commit = latest.get("Id") if isinstance(latest, dict) else None
    return FileList(tuple(items), commit if isinstance(commit, str) and is_commit(commit) else None)


def read_entries(items: Iterable[dict[str, object]]) -> list[FileEntry]:
    """
    Read the files of a listing: `Path`, `Size`, `Sha256`.

    Raises:
        UpstreamProtocolError: An entry that cannot be, or that nobody could check.
    """
    return [_read_entry(item) for item in items if not _is_folder(item)]


def name_listing(entries: Iterable[FileEntry]) -> str:
    """
    Return the name of a state of a repository whose hub names no commit: 40 hex digits that the
    same files always give.
    """
    digest = hashlib.sha1(usedforsecurity=False)
    for entry in sorted(entries, key=lambda entry: entry.path):
        digest.update(f"{entry.path}\0{entry.size_bytes}\0{entry.digest}\n".encode())
    return digest.hexdigest()


def _read_entry(item: dict[str, object]) -> FileEntry:
    try:
        path = parse_path(_path_of(item))
        said = item.get("Sha256")
        if not isinstance(said, str) or not said:
            raise InputError(f"{path[:120]!r} has no Sha256, so that nobody can check its bytes.")
        digest = BlobDigest("sha256", said.lower())
        size_bytes = get_whole(item, "Size", maximum=BLOB_SIZE_BYTES_MAX)
        return FileEntry(path, size_bytes, digest, make_pointer_oid(digest, size_bytes))
    except InputError as error:
        raise UpstreamProtocolError(
            f"The hub lists a file that cannot be stored safely: {error}"
        ) from error


def _path_of(item: dict[str, object]) -> str:
    return get_text(item, "Path" if item.get("Path") else "Name")


def _is_folder(item: dict[str, object]) -> bool:
    return item.get("Type") == "tree"
