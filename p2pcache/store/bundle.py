"""
Owns the bundle format: what one archive with a whole snapshot looks like, byte for byte.

Knows nothing of files, of the network, and of what is done with the bytes of a blob.
Invariants: every byte of a bundle that is not content follows from its manifest, and the manifest
from what it says; whatever is spelled differently is refused.
Source: docs/reference/bundle-format.md (normative); POSIX pax interchange format.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from blake3 import blake3

from p2pcache.core.chunktable import ChunkTable
from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import CHUNKS_PER_BLOB_MAX
from p2pcache.core.messages import (
    get_list,
    get_text,
    get_whole,
    snapshot_from_json,
    snapshot_to_json,
    table_from_json,
    table_to_json,
)
from p2pcache.core.refs import is_commit, parse_revision
from p2pcache.core.snapshot import FILES_PER_SNAPSHOT_MAX, FileEntry, Snapshot
from p2pcache.errors import BundleCorruptError, InputError

FORMAT_NAME = "p2pcache-bundle"
FORMAT_VERSION = 1
MANIFEST_NAME = "p2pcache-bundle.json"
BLOCK_SIZE_BYTES = 512
# Extended header, its record, the manifest's header.
HEAD_SIZE_BYTES = 3 * BLOCK_SIZE_BYTES
# 100,000 files, and the chunk tables of 2 TB.
MANIFEST_BYTES_MAX = 64 * 1024 * 1024
# What those are together, twice; decoded, a value takes up to a hundred bytes of memory.
MANIFEST_VALUES_MAX = 4_000_000
# Branches and tags that mean one commit; repositories have a few.
REVISIONS_MAX = 1_000
END_SIZE_BYTES = 2 * BLOCK_SIZE_BYTES

# The largest number in 11 octal digits, and the first that needs a record.
_RECORDED_SIZE_BYTES = 8**11
_SIZE_FIELD = slice(124, 136)
_OCTAL = re.compile(rb"[0-7]{11}\0", re.ASCII)
_ID_RECORD = re.compile(rb"76 comment=([0-9a-f]{64})\n\0*", re.ASCII)
_BUNDLE_ID = re.compile(r"[0-9a-f]{64}", re.ASCII)
_VALUE_MARKS = (b",", b"[", b"{")


@dataclass(frozen=True, slots=True)
class Literal:
    """Bytes that follow from the manifest: headers, padding, the end."""

    content: bytes
    what: str


@dataclass(frozen=True, slots=True)
class BundledBlob:
    """The place of one blob: its chunks, in order. `path` is the first file that has it."""

    table: ChunkTable
    path: str


@dataclass(frozen=True, slots=True)
class BundleManifest:
    """What a bundle says of its content. `tables` are those of the distinct blobs, in order."""

    snapshot: Snapshot
    revisions: tuple[str, ...]
    is_public: bool
    tables: tuple[ChunkTable, ...]

    @classmethod
    def of(
        cls,
        snapshot: Snapshot,
        revisions: list[str],
        tables: Mapping[BlobDigest, ChunkTable],
        *,
        is_public: bool,
    ) -> BundleManifest:
        """
        Put together what is to be exported.

        Args:
            snapshot: All files of the commit.
            revisions: Names that mean it, in any order.
            tables: The complete table of every blob.
            is_public: Whether anybody may have it.
        """
        order = [entry.digest for entry in order_blobs(snapshot)]
        names = tuple(sorted({name for name in revisions if not is_commit(name)}))
        return cls(snapshot, names, is_public, tuple(tables[digest] for digest in order))

    def to_bytes(self) -> bytes:
        """
        Return the manifest's bytes.

        Raises:
            InputError: It is larger than readers take.
        """
        message = {
            "format": FORMAT_NAME,
            "version": FORMAT_VERSION,
            "public": self.is_public,
            "revisions": list(self.revisions),
            **snapshot_to_json(self.snapshot),
            "blobs": [_blob_to_json(table) for table in self.tables],
        }
        raw = json.dumps(message, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"
        if _is_too_large(raw) or len(self.revisions) > REVISIONS_MAX:
            raise InputError(
                f"{self.snapshot.id} is too large for one bundle; export its parts from "
                "repositories of their own, or copy the store."
            )
        return raw

    @classmethod
    def from_bytes(cls, raw: bytes) -> BundleManifest:
        """
        Read a manifest.

        Raises:
            InputError: A later release wrote it.
            BundleCorruptError: Anything in it is not as the format wants it.
        """
        try:
            message = _decode(raw)
            if get_text(message, "format") != FORMAT_NAME:
                raise InputError("It is of another format.")
            version = get_whole(message, "version")
            manifest = cls._parse(message) if version == FORMAT_VERSION else None
            if manifest is not None and manifest.to_bytes() != raw:
                raise InputError("It is not written as its content demands.")
        except InputError as error:
            raise BundleCorruptError(
                f"The bundle's manifest, {MANIFEST_NAME}, cannot be: {error} Nothing was taken "
                "from it; ask for the bundle again."
            ) from error
        if manifest is None:
            raise InputError(
                f"The bundle has format {version}, and this release reads {FORMAT_VERSION}; "
                "import it with the release that wrote it."
            )
        return manifest

    @classmethod
    def _parse(cls, message: object) -> BundleManifest:
        is_public = message.get("public") if isinstance(message, dict) else None
        if not isinstance(is_public, bool):
            raise InputError("It does not say whether it is public.")
        revisions = get_list(message, "revisions", length_max=REVISIONS_MAX)
        names = tuple(parse_revision(_as_text(name)) for name in revisions)
        if list(names) != sorted(set(names)) or any(map(is_commit, names)):
            raise InputError("Its revisions are not in order, or name a commit.")
        _check_blob_count(message)
        snapshot = snapshot_from_json(message)
        return cls(snapshot, names, is_public, _read_tables(message, snapshot))

    def iter_parts(self) -> Iterator[Literal | BundledBlob]:
        """Iterate over what follows the head, in order; together it is all of the archive."""
        paths = {entry.digest: entry.path for entry in reversed(self.snapshot.files)}
        for table in self.tables:
            blob, size_bytes, path = table.blob, table.layout.size_bytes, paths[table.blob]
            name = f"blobs/{blob.algorithm}/{blob.hex}"
            yield Literal(header_to_bytes(name, size_bytes), f"the header of {path}")
            yield BundledBlob(table, path)
            if padding := _padding_of(size_bytes):
                yield Literal(padding, f"the padding after {path}")
        yield Literal(bytes(END_SIZE_BYTES), "the end of the archive")

    def measure(self) -> int:
        """Return the size of what follows the head, in bytes."""
        return sum(
            len(part.content) if isinstance(part, Literal) else part.table.layout.size_bytes
            for part in self.iter_parts()
        )


def parse_bundle_id(text: str) -> str:
    """
    Return the text if it is a bundle's id.

    Raises:
        InputError: It is not 64 lower-case hex digits.
    """
    if _BUNDLE_ID.fullmatch(text) is None:
        raise InputError(
            f"{text[:80]!r} is not the id of a bundle; it has 64 lower-case hex digits, as "
            "p2pcache export printed them."
        )
    return text


def bundle_id_of(manifest: bytes) -> str:
    """Return the id of the bundle that has this manifest."""
    return blake3(manifest).hexdigest()


def order_blobs(snapshot: Snapshot) -> list[FileEntry]:
    """Return one file of each distinct blob, in the order of the archive: smallest first."""
    distinct = {entry.digest: entry for entry in snapshot.files}
    return sorted(distinct.values(), key=lambda entry: (entry.size_bytes, str(entry.digest)))


def head_to_bytes(manifest: bytes) -> bytes:
    """Return an archive's first bytes, the manifest and its padding included."""
    head = _make_head(bundle_id_of(manifest), len(manifest))
    return head + manifest + _padding_of(len(manifest))


def is_begun(head: bytes) -> bool:
    """Return whether a few bytes are those that every bundle begins with."""
    block = _make_head("0" * 64, 0)[:BLOCK_SIZE_BYTES]
    return bool(head) and block.startswith(head[:BLOCK_SIZE_BYTES])


def read_head(head: bytes) -> tuple[str, int]:
    """
    Read the first HEAD_SIZE_BYTES of an archive.

    Returns:
        (the bundle's id, the manifest's size in bytes).

    Raises:
        BundleCorruptError: They are not a bundle's.
    """
    record = _ID_RECORD.fullmatch(head[BLOCK_SIZE_BYTES : 2 * BLOCK_SIZE_BYTES])
    digits = head[2 * BLOCK_SIZE_BYTES :][_SIZE_FIELD]
    if record is not None and _OCTAL.fullmatch(digits) is not None:
        bundle_id, size_bytes = record[1].decode(), int(digits[:-1], 8)
        if size_bytes <= MANIFEST_BYTES_MAX and _make_head(bundle_id, size_bytes) == head:
            return bundle_id, size_bytes
    raise BundleCorruptError(
        f"This is no bundle of this release, or its head before {MANIFEST_NAME} is damaged; "
        "bundles are made by p2pcache export."
    )


def manifest_span(size_bytes: int) -> int:
    """Return the manifest's bytes with their padding."""
    return size_bytes + len(_padding_of(size_bytes))


def read_manifest(span: bytes, size_bytes: int, bundle_id: str) -> BundleManifest:
    """
    Read a manifest and its padding, as they follow a head.

    Raises:
        BundleCorruptError: They are not what the head says, or the manifest cannot be.
        InputError: A later release wrote it.
    """
    manifest = span[:size_bytes]
    if bundle_id_of(manifest) != bundle_id or span[size_bytes:] != _padding_of(size_bytes):
        raise BundleCorruptError(
            f"The bundle's manifest, {MANIFEST_NAME}, was changed: it is not the one that the "
            "bundle's id names. Nothing was taken from it; ask for the bundle again."
        )
    return BundleManifest.from_bytes(manifest)


def header_to_bytes(name: str, size_bytes: int) -> bytes:
    """Return the header of a member; with its extended header if the size needs one."""
    if size_bytes < _RECORDED_SIZE_BYTES:
        return _make_header(name, size_bytes)
    return _make_extended(name, "size", str(size_bytes)) + _make_header(name, 0)


def _make_head(bundle_id: str, manifest_size_bytes: int) -> bytes:
    extended = _make_extended(MANIFEST_NAME, "comment", bundle_id)
    return extended + _make_header(MANIFEST_NAME, manifest_size_bytes)


def _make_extended(name: str, keyword: str, value: str) -> bytes:
    """Return an extended header with one record, which counts its own length."""
    rest = len(f" {keyword}={value}\n")
    length = rest
    while length != rest + len(str(length)):
        length = rest + len(str(length))
    record = f"{length} {keyword}={value}\n".encode()
    base = name.rpartition("/")[2]
    header = _make_header(f"PaxHeaders/{base}", len(record), typeflag=b"x")
    return header + record + _padding_of(len(record))


def _make_header(name: str, size_bytes: int, *, typeflag: bytes = b"0") -> bytes:
    block = b"".join(
        (
            name.encode("ascii").ljust(100, b"\0"),
            b"0000644\0" + 2 * b"0000000\0",
            b"%011o\0" % size_bytes,
            b"00000000000\0",
            b" " * 8,
            typeflag,
            bytes(100),
            b"ustar\x0000",
            bytes(64),
            2 * b"0000000\0",
        )
    ).ljust(BLOCK_SIZE_BYTES, b"\0")
    checksum = b"%06o\0 " % sum(block)
    return block[:148] + checksum + block[156:]


def _padding_of(size_bytes: int) -> bytes:
    return bytes(-size_bytes % BLOCK_SIZE_BYTES)


# --- the manifest's parts ---


def _is_too_large(raw: bytes) -> bool:
    if len(raw) > MANIFEST_BYTES_MAX:
        return True
    # Counted before decoding: a list of nothing but empty lists takes twenty times its text.
    return sum(map(raw.count, _VALUE_MARKS)) > MANIFEST_VALUES_MAX


def _decode(raw: bytes) -> object:
    if _is_too_large(raw):
        raise InputError(f"It has more than {MANIFEST_VALUES_MAX:,} values.")
    try:
        return json.loads(raw.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise InputError("It is not JSON.") from error


def _as_text(value: object) -> str:
    if not isinstance(value, str):
        raise InputError("Its revisions are texts.")
    return value


def _blob_to_json(table: ChunkTable) -> dict[str, object]:
    message = table_to_json(table)
    del message["standing"]  # what the writer knew; the reader finds out by itself
    return message


def _check_blob_count(message: object) -> None:
    """Insist on one blob for each distinct content, before a list of any length is looked into."""
    files = get_list(message, "files", length_max=FILES_PER_SNAPSHOT_MAX)
    blobs = get_list(message, "blobs", length_max=FILES_PER_SNAPSHOT_MAX)
    digests = {str(raw.get("digest")) for raw in files if isinstance(raw, dict)}
    if len(blobs) != len(digests):
        raise InputError(f"It has {len(blobs)} blobs for files of {len(digests)}.")


def _read_tables(message: object, snapshot: Snapshot) -> tuple[ChunkTable, ...]:
    wanted = order_blobs(snapshot)
    blobs = get_list(message, "blobs", length_max=FILES_PER_SNAPSHOT_MAX)
    assert len(blobs) == len(wanted), "the count was looked at"
    return tuple(_read_table(raw, entry) for raw, entry in zip(blobs, wanted, strict=True))


def _read_table(raw: object, entry: FileEntry) -> ChunkTable:
    _check_count(raw)
    try:
        table = table_from_json(raw)
    except InputError as error:
        raise InputError(f"The chunks of {entry.path}: {error}") from error
    if table.blob != entry.digest or table.layout.size_bytes != entry.size_bytes:
        raise InputError(f"The blob of {entry.path} is not in its place.")
    if not table.is_complete():
        raise InputError(f"A chunk of {entry.path} has no digest.")
    return table


def _check_count(raw: object) -> None:
    """Insist on as many digests as spans declare chunks, before anything is made for those."""
    spans = get_list(raw, "spans", length_max=CHUNKS_PER_BLOB_MAX)
    chunks = get_list(raw, "chunks", length_max=CHUNKS_PER_BLOB_MAX)
    declared = 0
    for span in spans:
        count = span[1] if isinstance(span, list) and len(span) == 2 else None
        if type(count) is not int or not 0 < count <= len(chunks) - declared:
            raise InputError("A layout declares other chunks than it has digests for.")
        declared += count
