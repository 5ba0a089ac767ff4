"""
Owns the messages that daemons exchange: their JSON forms, read with bounds.

Knows nothing of HTTP. Every reader takes decoded JSON of any shape and either returns a value
within its limits or raises InputError.
Invariants: to_json and from_json are inverse; unknown fields are ignored (newer peers).
Source: docs/reference/peer-protocol.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from p2pcache.core.bitfield import Bitfield
from p2pcache.core.chunktable import ChunkTable, Standing
from p2pcache.core.digest import BlobDigest, ChunkDigest
from p2pcache.core.layout import CHUNKS_PER_BLOB_MAX, FIXED_LAYOUT, Layout, LayoutId
from p2pcache.core.refs import RepoId, SnapshotId, parse_commit
from p2pcache.core.snapshot import FILES_PER_SNAPSHOT_MAX, FileEntry, Snapshot
from p2pcache.errors import InputError

Json = dict[str, object]

PROTOCOL_VERSION = 1
# Blobs in one exchange: more files than a daemon fetches at once, by far.
ENTRIES_PER_EXCHANGE_MAX = 10_000
# 64 MiB: a listing of 100,000 files, or bitfields of 10,000 large blobs.
MESSAGE_BYTES_MAX = 64 * 1024 * 1024
# What a stranger may make us hold for one request: 10,000 entries of small blobs fit.
EXCHANGE_BYTES_MAX = 8 * 1024 * 1024
NAME_CHARS_MAX = 64
# Of how many others one entry may tell: the owners of a blob, and as many again.
CREW_WORDS_MAX = 24
# What was true longer ago is no news; also keeps the number small.
CREW_AGE_MS_MAX = 60_000
# Not all zeros: have-records write the hub so, whose chunks are doubted last.
_PEER_ID = re.compile(r"(?!0{32})[0-9a-f]{32}", re.ASCII)
_PEER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


def get_text(message: object, key: str, *, chars_max: int = 4096) -> str:
    """
    Return a text field of a decoded JSON object.

    Raises:
        InputError: Not an object, no such field, not text, or too long.
    """
    value = message.get(key) if isinstance(message, dict) else None
    if not isinstance(value, str) or len(value) > chars_max:
        raise InputError(f"A message lacks the text field {key!r}; both sides need one release.")
    return value


def get_whole(message: object, key: str, *, maximum: int = 1 << 62) -> int:
    """
    Return a whole number >= 0 of a decoded JSON object.

    Raises:
        InputError: Not an object, no such field, not a whole number, negative or too large.
    """
    value = message.get(key) if isinstance(message, dict) else None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= maximum:
        raise InputError(f"A message lacks the number {key!r}; both sides need one release.")
    return value


def get_list(message: object, key: str, *, length_max: int) -> list[object]:
    """
    Return a list field of a decoded JSON object.

    Raises:
        InputError: Not an object, no such field, not a list, or too long.
    """
    value = message.get(key) if isinstance(message, dict) else None
    if not isinstance(value, list) or len(value) > length_max:
        raise InputError(f"A message lacks the list {key!r}, or it is too long.")
    return value


def _get_flag(message: object, key: str) -> bool:
    return isinstance(message, dict) and message.get(key) is True


def is_peer_name(text: str) -> bool:
    """Return whether a text can name a peer in logs, tables and URLs."""
    return _PEER_NAME.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Hello:
    """Who a daemon is. `capabilities` lets later releases negotiate."""

    peer_id: str
    name: str
    version: str
    capabilities: tuple[str, ...] = ()

    def to_json(self) -> Json:
        """Return the message of GET /v1/hello."""
        return {
            "id": self.peer_id,
            "name": self.name,
            "version": self.version,
            "protocol": PROTOCOL_VERSION,
            "capabilities": list(self.capabilities),
        }

    @classmethod
    def from_json(cls, message: object) -> Hello:
        """
        Read the message of GET /v1/hello.

        Raises:
            InputError: Malformed, or another major protocol.
        """
        if get_whole(message, "protocol") != PROTOCOL_VERSION:
            raise InputError("That peer speaks another protocol; run one release everywhere.")
        capabilities = get_list(message, "capabilities", length_max=64)
        return cls(
            _parse_peer_id(get_text(message, "id")),
            _parse_peer_name(get_text(message, "name")),
            _parse_version(get_text(message, "version", chars_max=NAME_CHARS_MAX)),
            tuple(c for c in capabilities if isinstance(c, str) and len(c) <= NAME_CHARS_MAX),
        )


def _parse_peer_id(text: str) -> str:
    if _PEER_ID.fullmatch(text) is None:
        raise InputError("A peer id has 32 lower-case hex digits, not all of them zeros.")
    return text


def _parse_version(text: str) -> str:
    # Shown in tables and logs: no escape sequences for somebody's terminal.
    if not (text.isascii() and text.isprintable()):
        raise InputError("A peer's version is printable text.")
    return text


def _parse_peer_name(text: str) -> str:
    if not is_peer_name(text):
        raise InputError("A peer name has letters, digits, '.', '_' and '-', 64 at most.")
    return text


def _get_layout_id(message: object) -> LayoutId:
    has_count = isinstance(message, dict) and message.get("count") is not None
    count = get_whole(message, "count") if has_count else None
    return LayoutId.parse(get_whole(message, "size"), get_text(message, "layout"), count)


@dataclass(frozen=True, slots=True)
class CrewWord:
    """
    What the speaker knows of another member: what that had received, and whether it could ask
    the hub, `age_ms` ago.
    """

    peer_id: str
    received_bytes: int
    age_ms: int
    can_fetch_upstream: bool

    def to_json(self) -> list[object]:
        """Return one word of an entry."""
        return [self.peer_id, self.received_bytes, self.age_ms, self.can_fetch_upstream]

    @classmethod
    def from_json(cls, message: object) -> CrewWord:
        """
        Read one word of an entry.

        Raises:
            InputError: Malformed.
        """
        if not isinstance(message, list) or len(message) != 4:
            raise InputError("A word on a member has an id, its bytes, their age and a flag.")
        fields = dict(zip(("id", "received", "age", "upstream"), message, strict=True))
        return cls(
            _parse_peer_id(get_text(fields, "id")),
            get_whole(fields, "received"),
            get_whole(fields, "age", maximum=CREW_AGE_MS_MAX),
            _get_flag(fields, "upstream"),
        )


@dataclass(frozen=True, slots=True)
class SwarmEntry:
    """
    What one daemon says of one blob.

    `inflight` are the chunks that it fetches from upstream right now; `received_bytes` moves
    while it makes progress, so that a slow member is told from a dead one. `crew` tells of the
    blob's owners, to those who do not talk to them. `is_hub_only`: it takes nothing from peers,
    and will bring all that it lacks from upstream.
    """

    blob: BlobDigest
    layout: LayoutId
    have: Bitfield
    inflight: Bitfield
    is_fetching: bool = False
    can_fetch_upstream: bool = False
    received_bytes: int = 0
    crew: tuple[CrewWord, ...] = ()
    is_hub_only: bool = False

    def says_as_much(self, earlier: SwarmEntry) -> bool:
        """Return whether nothing has changed but the bytes received and the word on owners."""
        return (
            self.have == earlier.have
            and self.inflight == earlier.inflight
            and self.is_fetching == earlier.is_fetching
            and self.can_fetch_upstream == earlier.can_fetch_upstream
            and self.is_hub_only == earlier.is_hub_only
            and self.layout == earlier.layout
        )

    def is_uncut(self) -> bool:
        """Return whether the speaker is about to fetch, and does not know yet where to cut."""
        has_none = not self.have and not self.inflight
        return self.is_fetching and has_none and self.layout.name == FIXED_LAYOUT

    def to_json(self) -> Json:
        """Return one entry of an exchange."""
        crew = {"crew": [word.to_json() for word in self.crew]} if self.crew else {}
        return {
            "blob": str(self.blob),
            "size": self.layout.size_bytes,
            "layout": self.layout.name,
            "count": self.layout.chunk_count,
            "have": self.have.to_wire(),
            "inflight": self.inflight.to_wire(),
            "fetching": self.is_fetching,
            "upstream": self.can_fetch_upstream,
            "received": self.received_bytes,
            "hub_only": self.is_hub_only,
            **crew,
        }

    @classmethod
    def from_json(cls, message: object) -> SwarmEntry:
        """
        Read one entry of an exchange.

        Raises:
            InputError: Malformed, or a layout that this release does not know.
        """
        layout = _get_layout_id(message)
        count = layout.chunk_count
        wire_max = 4 * (count // 24 + 2)
        return cls(
            BlobDigest.parse(get_text(message, "blob")),
            layout,
            Bitfield.from_wire(get_text(message, "have", chars_max=wire_max), count),
            Bitfield.from_wire(get_text(message, "inflight", chars_max=wire_max), count),
            _get_flag(message, "fetching"),
            _get_flag(message, "upstream"),
            get_whole(message, "received"),
            _get_crew(message),
            _get_flag(message, "hub_only"),
        )


def _get_crew(message: object) -> tuple[CrewWord, ...]:
    if not isinstance(message, dict) or "crew" not in message:
        return ()
    words = get_list(message, "crew", length_max=CREW_WORDS_MAX)
    return tuple(CrewWord.from_json(word) for word in words)


@dataclass(frozen=True, slots=True)
class Exchange:
    """
    One side of POST /v1/swarm: who speaks, the port it listens on, what it says of which blobs.

    `is_banned`: the speaker has banned whom it speaks to, and takes no chunk of it.
    """

    hello: Hello
    port: int
    entries: tuple[SwarmEntry, ...]
    is_banned: bool = False

    def to_json(self) -> Json:
        """Return the message."""
        return {
            **self.hello.to_json(),
            "port": self.port,
            "blobs": [entry.to_json() for entry in self.entries],
            "banned": self.is_banned,
        }

    @classmethod
    def from_json(cls, message: object) -> Exchange:
        """
        Read one; entries that this release cannot read are left out.

        Raises:
            InputError: Malformed as a whole.
        """
        entries = []
        for raw in get_list(message, "blobs", length_max=ENTRIES_PER_EXCHANGE_MAX):
            try:
                entries.append(SwarmEntry.from_json(raw))
            except InputError:
                continue
        port = get_whole(message, "port", maximum=65535)
        is_banned = _get_flag(message, "banned")
        return cls(Hello.from_json(message), port, tuple(entries), is_banned)


def _get_layout(message: object) -> Layout:
    size_bytes, name = get_whole(message, "size"), get_text(message, "layout")
    if name == FIXED_LAYOUT:
        return Layout(size_bytes)
    spans: list[tuple[int, int]] = []
    for span in get_list(message, "spans", length_max=CHUNKS_PER_BLOB_MAX):
        numbers = span if isinstance(span, list) else []
        if len(numbers) != 2 or not all(type(number) is int for number in numbers):
            raise InputError("A layout's spans are pairs of whole numbers.")
        spans.append((numbers[0], numbers[1]))
    layout = Layout.from_spans(size_bytes, spans)
    if layout.name != name:
        raise InputError("A layout's boundaries do not fit its name.")
    return layout


def table_to_json(table: ChunkTable) -> Json:
    """Return the message of GET /v1/blobs/{digest}/table."""
    return {
        "blob": str(table.blob),
        "size": table.layout.size_bytes,
        "layout": table.layout.name,
        "spans": [list(span) for span in table.layout.to_spans()],
        "standing": table.standing.value,
        "chunks": [None if digest is None else str(digest) for digest in table],
    }


def table_from_json(message: object) -> ChunkTable:
    """
    Read a chunk table. What came from a peer is at most *claimed*, whatever it says itself.

    Raises:
        InputError: Malformed, or the list does not fit the size.
    """
    layout = _get_layout(message)
    table = ChunkTable(BlobDigest.parse(get_text(message, "blob")), layout, Standing.CLAIMED)
    chunks = get_list(message, "chunks", length_max=layout.chunk_count)
    if len(chunks) != layout.chunk_count:
        raise InputError("A chunk table has one digest for each chunk.")
    for index, text in enumerate(chunks):
        if isinstance(text, str):
            table.set(index, ChunkDigest.parse(text))
    return table


def snapshot_to_json(snapshot: Snapshot) -> Json:
    """Return the message of GET /v1/snapshots/{hub}/{repo}/{commit}."""
    repo = snapshot.id.repo
    return {
        "hub": repo.hub,
        "kind": repo.kind,
        "repo": repo.name,
        "commit": snapshot.id.commit,
        "files": [
            {
                "path": entry.path,
                "size": entry.size_bytes,
                "digest": str(entry.digest),
                "tree_oid": entry.tree_oid,
            }
            for entry in snapshot.files
        ],
    }


def snapshot_from_json(message: object) -> Snapshot:
    """
    Read a file list.

    Raises:
        InputError: Malformed, or not a possible snapshot.
    """
    repo = RepoId.of(get_text(message, "hub"), get_text(message, "kind"), get_text(message, "repo"))
    files = get_list(message, "files", length_max=FILES_PER_SNAPSHOT_MAX)
    return Snapshot.of(
        SnapshotId(repo, parse_commit(get_text(message, "commit"))),
        [
            FileEntry(
                get_text(raw, "path"),
                get_whole(raw, "size"),
                BlobDigest.parse(get_text(raw, "digest")),
                parse_commit(get_text(raw, "tree_oid")),
            )
            for raw in files
        ],
    )
