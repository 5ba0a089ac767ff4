"""
Owns the tests of the bundle format: what is written, and that nothing else is read.

Knows nothing of engines.
Invariants: whatever is done to an archive, the answer is an error of ours or the same content.
Source: docs/reference/bundle-format.md.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcache.core.chunktable import ChunkTable, Standing
from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import CHUNK_SIZE_BYTES, Layout
from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.core.verify import digest_of
from p2pcache.errors import BundleCorruptError, InputError, P2PCacheError
from p2pcache.store import bundle
from p2pcache.store.bundle import (
    HEAD_SIZE_BYTES,
    MANIFEST_NAME,
    BundledBlob,
    BundleManifest,
    Literal,
    bundle_id_of,
    head_to_bytes,
    header_to_bytes,
    manifest_span,
    order_blobs,
    parse_bundle_id,
    read_head,
    read_manifest,
)
from tests.samples import COMMIT, OTHER_COMMIT, Sample, make_sample

GIB = 1024**3
SAMPLES = [make_sample(0), make_sample(700), make_sample(5_000), make_sample(512, seed=1)]
PATHS = ["config.json", "sub folder/ünïcode, [1].bin", "empty", "weights.bin"]
Message = dict[str, Any]


def table_of(sample: Sample, layout: Layout | None = None) -> ChunkTable:
    """Return the complete table of a sample, in any layout."""
    layout = layout or sample.layout
    table = ChunkTable(sample.blob, layout, Standing.PROVEN)
    for index in range(layout.chunk_count):
        offset, length = layout.span_of(index, index)
        table.set(index, digest_of(sample.content[offset : offset + length]))
    return table


def make_manifest(*, is_public: bool = True) -> BundleManifest:
    """Return the manifest of four files; one of them is cut at boundaries of its own."""
    entries = [
        FileEntry(path, len(sample.content), sample.blob, COMMIT)
        for path, sample in zip(PATHS, SAMPLES, strict=True)
    ]
    snapshot = Snapshot.of(SnapshotId(RepoId("hf", "models", "org/name"), OTHER_COMMIT), entries)
    layouts = {SAMPLES[2].blob: Layout.of_starts(5_000, [0, 96, 3_000, 4_999])}
    tables = {s.blob: table_of(s, layouts.get(s.blob)) for s in SAMPLES}
    return BundleManifest.of(snapshot, ["v1", "main", COMMIT], tables, is_public=is_public)


def write_archive(manifest: BundleManifest, samples: list[Sample]) -> bytes:
    """Return a whole bundle."""
    contents = {sample.blob: sample.content for sample in samples}
    parts = [
        part.content if isinstance(part, Literal) else contents[part.table.blob]
        for part in manifest.iter_parts()
    ]
    return head_to_bytes(manifest.to_bytes()) + b"".join(parts)


def read_archive_head(archive: bytes) -> BundleManifest:
    """Read head and manifest as a reader of a stream does."""
    bundle_id, size_bytes = read_head(archive[:HEAD_SIZE_BYTES])
    end = HEAD_SIZE_BYTES + manifest_span(size_bytes)
    return read_manifest(archive[HEAD_SIZE_BYTES:end], size_bytes, bundle_id)


def forge(message: object) -> bytes:
    """Return a head with a manifest of any content, under an id that is right."""
    raw = json.dumps(message, separators=(",", ":")).encode() + b"\n"
    return head_to_bytes(raw)


def message_of(manifest: BundleManifest) -> Message:
    """Return the decoded manifest."""
    decoded: Message = json.loads(manifest.to_bytes())
    return decoded


MANIFEST = make_manifest()
ARCHIVE = write_archive(MANIFEST, SAMPLES)


def test_archive_is_a_tar_that_others_read(tmp_path: Path) -> None:
    """Python's tarfile and the system's tar list the members, in order, with their bytes."""
    with tarfile.open(fileobj=io.BytesIO(ARCHIVE), mode="r|") as archive:
        found = [(m.name, m.isreg(), _read(archive, m)) for m in archive]
        assert archive.pax_headers == {}
    expected = [
        (f"blobs/sha256/{s.blob.hex}", True, s.content)
        for s in sorted(SAMPLES, key=lambda s: (len(s.content), s.blob.hex))
    ]
    assert found == [(MANIFEST_NAME, True, MANIFEST.to_bytes()), *expected]
    path = tmp_path / "bundle.tar"
    path.write_bytes(ARCHIVE)
    listed = subprocess.run(["tar", "tf", path], capture_output=True, text=True, check=True)
    assert listed.stdout.splitlines() == [name for name, _, _ in found]
    assert listed.stderr == ""


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None
    return file.read()


@pytest.mark.parametrize("size_bytes", [0, 1, 8 * GIB - 1, 8 * GIB, 9 * GIB + 5, 4096 * GIB])
def test_header_of_any_size_is_what_others_read(size_bytes: int) -> None:
    """From 8 GiB on the size stands in an extended header, as POSIX has it."""
    name = f"blobs/sha256/{'ab' * 32}"
    header = header_to_bytes(name, size_bytes)
    assert len(header) == (512 if size_bytes < 8 * GIB else 1536)
    with tarfile.open(fileobj=io.BytesIO(header + bytes(1024)), mode="r|") as archive:
        member = archive.next()
    assert member is not None
    assert (member.name, member.size, member.mode) == (name, size_bytes, 0o644)
    assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")


def test_manifest_written_and_read_is_the_same() -> None:
    """What was exported is what is imported: list, names, visibility, tables, layouts."""
    found = read_archive_head(ARCHIVE)
    assert found.snapshot == MANIFEST.snapshot
    assert found.revisions == ("main", "v1")
    assert found.is_public is True
    assert [t.layout.to_spans() for t in found.tables] == [
        t.layout.to_spans() for t in MANIFEST.tables
    ]
    assert [list(t) for t in found.tables] == [list(t) for t in MANIFEST.tables]
    assert {t.standing for t in found.tables} == {Standing.CLAIMED}
    assert make_manifest(is_public=False).to_bytes() != MANIFEST.to_bytes()


def test_id_is_the_blake3_of_the_manifest() -> None:
    """The id stands in the head, and is the digest of exactly the manifest's bytes."""
    raw = MANIFEST.to_bytes()
    assert bundle_id_of(raw) == blake3(raw).hexdigest()
    assert read_head(ARCHIVE[:HEAD_SIZE_BYTES]) == (blake3(raw).hexdigest(), len(raw))
    assert parse_bundle_id(bundle_id_of(raw)) == bundle_id_of(raw)
    for bad in ("", "a" * 63, "A" * 64, "g" * 64, "a" * 65, "a" * 63 + "\n"):
        with pytest.raises(InputError, match="64 lower-case hex digits"):
            parse_bundle_id(bad)


def test_parts_are_all_of_the_archive_after_the_head() -> None:
    """What measure() says is what is written; blobs come once, smallest first."""
    raw = MANIFEST.to_bytes()
    assert len(ARCHIVE) == len(head_to_bytes(raw)) + MANIFEST.measure()
    blobs = [p for p in MANIFEST.iter_parts() if isinstance(p, BundledBlob)]
    sizes = [part.table.layout.size_bytes for part in blobs]
    assert sizes == sorted(sizes)
    assert [part.table.blob for part in blobs] == [
        entry.digest for entry in order_blobs(MANIFEST.snapshot)
    ]
    assert len(ARCHIVE) % 512 == 0


def test_blob_of_two_files_is_there_once_under_the_first_path() -> None:
    """Equal contents are carried once, and errors name the file that comes first."""
    sample = make_sample(900)
    entries = [FileEntry(path, 900, sample.blob, COMMIT) for path in ("b", "a")]
    snapshot = Snapshot.of(SnapshotId(RepoId("hf", "datasets", "d"), COMMIT), entries)
    manifest = BundleManifest.of(snapshot, [], {sample.blob: table_of(sample)}, is_public=False)
    blobs = [p for p in manifest.iter_parts() if isinstance(p, BundledBlob)]
    assert [part.path for part in blobs] == ["a"]
    assert read_archive_head(write_archive(manifest, [sample])).to_bytes() == manifest.to_bytes()


def test_snapshot_without_files_makes_a_bundle() -> None:
    """An empty repository is one too."""
    snapshot = Snapshot.of(SnapshotId(RepoId("hf", "models", "org/name"), COMMIT), [])
    manifest = BundleManifest.of(snapshot, ["main"], {}, is_public=True)
    archive = write_archive(manifest, [])
    assert read_archive_head(archive).snapshot == snapshot
    assert [type(part) for part in manifest.iter_parts()] == [Literal]


@given(st.integers(0, HEAD_SIZE_BYTES + len(MANIFEST.to_bytes()) - 1), st.integers(1, 255))
def test_head_or_manifest_with_a_changed_byte_is_refused(place: int, change: int) -> None:
    """Any changed byte before the first blob is noticed, and the manifest is named."""
    changed = bytearray(ARCHIVE)
    changed[place] ^= change
    with pytest.raises(BundleCorruptError, match=MANIFEST_NAME):
        read_archive_head(bytes(changed))


def test_manifest_that_is_another_valid_one_is_refused() -> None:
    """A digit that became another digit makes a manifest that could be: the id tells."""
    raw = MANIFEST.to_bytes()
    place = raw.index(b'"chunks":["') + len(b'"chunks":["')
    digit = b"1" if raw[place : place + 1] == b"0" else b"0"
    changed = raw[:place] + digit + raw[place + 1 :]
    BundleManifest.from_bytes(changed)
    with pytest.raises(BundleCorruptError, match="not the one that the bundle's id names"):
        read_archive_head(ARCHIVE.replace(raw, changed))


@given(st.binary(max_size=2 * HEAD_SIZE_BYTES))
def test_head_of_anything_is_refused(content: bytes) -> None:
    """What is no bundle is refused in one sentence."""
    with pytest.raises(BundleCorruptError, match="no bundle"):
        read_head(content[:HEAD_SIZE_BYTES])


def test_head_that_declares_a_huge_manifest_is_refused() -> None:
    """A reader reserves nothing for what a head declares beyond the limit."""
    head = bundle._make_head("a" * 64, bundle.MANIFEST_BYTES_MAX + 1)
    with pytest.raises(BundleCorruptError, match="head"):
        read_head(head)
    assert read_head(bundle._make_head("a" * 64, bundle.MANIFEST_BYTES_MAX))[0] == "a" * 64


def set_at(*keys: str | int) -> Callable[[Message, object], None]:
    """Return a function that replaces the value at a place in a message."""

    def change(message: Message, value: object) -> None:
        at: Any = message
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = value

    return change


SPANS_BOMB = [[1, 1 << 20]] * 4_000
BAD_VALUES: list[tuple[tuple[str | int, ...], object]] = [
    (("format",), "zip"),
    (("version",), "1"),
    (("version",), True),
    (("public",), 1),
    (("public",), None),
    (("revisions",), ["v1", "main"]),
    (("revisions",), ["main", "main"]),
    (("revisions",), ["../main"]),
    (("revisions",), [COMMIT]),
    (("revisions",), [3]),
    (("revisions",), "main"),
    (("hub",), "elsewhere"),
    (("kind",), "folders"),
    (("repo",), "../../etc"),
    (("repo",), "/etc"),
    (("commit",), "main"),
    (("files", 0, "path"), "../escape"),
    (("files", 0, "path"), "/absolute"),
    (("files", 0, "path"), "a/../b"),
    (("files", 0, "path"), "a\x00b"),
    (("files", 0, "path"), ""),
    (("files", 0, "path"), "empty"),
    (("files", 0, "path"), "zzz"),
    (("files", 0, "path"), "empty/below-a-file"),
    (("files", 0, "path"), "\ud800"),
    (("files", 0, "size"), -1),
    (("files", 0, "size"), 1 << 62),
    (("files", 0, "size"), 5.0),
    (("files", 0, "size"), True),
    (("files", 0, "digest"), "sha256:../../x"),
    (("files", 0, "digest"), "md5:" + "a" * 32),
    (("files", 0, "tree_oid"), "x"),
    (("files", 0, "extra"), 1),
    (("files", 0), 7),
    (("files",), {}),
    (("blobs",), []),
    (("blobs", 0), None),
    (("blobs", 1, "blob"), "sha256:" + "a" * 64),
    (("blobs", 1, "size"), 1 << 41),
    (("blobs", 1, "size"), 511),
    (("blobs", 1, "layout"), "tensor-123456789"),
    (("blobs", 1, "layout"), "fixed-8m"),
    (("blobs", 1, "spans"), [[512, 1]]),
    (("blobs", 3, "spans"), SPANS_BOMB),
    (("blobs", 3, "spans"), [[5_000, -1]]),
    (("blobs", 3, "spans"), [[5_000, 1 << 40]]),
    (("blobs", 3, "spans"), [[1, 5_000]]),
    (("blobs", 3, "spans"), [[0, 4]]),
    (("blobs", 3, "spans"), [["96", 4]]),
    (("blobs", 3, "spans"), [[96]]),
    (("blobs", 3, "spans"), []),
    (("blobs", 3, "chunks"), []),
    (("blobs", 3, "chunks", 0), None),
    (("blobs", 3, "chunks", 0), "A" * 64),
    (("blobs", 3, "standing"), "proven"),
    (("more",), 1),
]


@pytest.mark.parametrize(("place", "value"), BAD_VALUES, ids=lambda v: str(v)[:40])
def test_manifest_with_a_forged_value_is_refused(
    place: tuple[str | int, ...], value: object
) -> None:
    """A manifest under a right id is refused for what it says: names, sizes, layouts, extras."""
    message = message_of(MANIFEST)
    set_at(*place)(message, value)
    with pytest.raises(BundleCorruptError, match=MANIFEST_NAME):
        read_archive_head(forge(message))


def test_manifest_of_a_later_version_is_no_damage() -> None:
    """A newer format is told from a broken one, and the sentence says what to do."""
    message = {**message_of(MANIFEST), "version": 2, "blobs": "in another way"}
    with pytest.raises(InputError, match="release that wrote it"):
        read_archive_head(forge(message))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"version":' + b"9" * 5_000 + b"}",
        MANIFEST.to_bytes().decode().encode("utf-16"),
        MANIFEST.to_bytes()[:-1],
        MANIFEST.to_bytes() + b"\n",
        b" " + MANIFEST.to_bytes(),
        MANIFEST.to_bytes().replace(b'"version":1', b'"version":1,"version":1'),
        MANIFEST.to_bytes().replace(b'"version":1', b'"version":1.0'),
        MANIFEST.to_bytes().replace(b'"main"', b'"ma\\u0069n"'),
    ],
    ids=range(14),
)
def test_manifest_in_another_spelling_is_refused(raw: bytes) -> None:
    """Equal content in other bytes is another bundle, which nobody writes."""
    with pytest.raises(BundleCorruptError, match=MANIFEST_NAME):
        read_archive_head(head_to_bytes(raw))


def test_manifest_of_too_many_values_is_refused_before_decoding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A list of nothing but lists would take twenty times its text in memory."""
    monkeypatch.setattr("json.loads", pytest.fail)
    raw = b"[" + b"[]," * (bundle.MANIFEST_VALUES_MAX // 2) + b"[]]"
    with pytest.raises(BundleCorruptError, match="values"):
        BundleManifest.from_bytes(raw)


def test_manifest_too_large_to_be_read_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no reader takes is refused at export, not at import."""
    monkeypatch.setattr(bundle, "MANIFEST_BYTES_MAX", 100)
    with pytest.raises(InputError, match="too large"):
        MANIFEST.to_bytes()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
PLACES = st.sampled_from(
    [
        ("revisions",),
        ("repo",),
        ("files",),
        ("files", 0),
        ("files", 0, "path"),
        ("files", 1, "size"),
        ("files", 2, "digest"),
        ("blobs",),
        ("blobs", 2),
        ("blobs", 3, "layout"),
        ("blobs", 3, "spans"),
        ("blobs", 3, "spans", 0),
        ("blobs", 3, "chunks"),
        ("blobs", 3, "chunks", 2),
    ]
)


@settings(max_examples=300)
@given(PLACES, JSON)
def test_manifest_with_any_value_anywhere_is_refused_or_whole(
    place: tuple[str | int, ...], value: object
) -> None:
    """Whatever stands in a manifest: an error of ours, or a manifest that writes the same bytes."""
    message = message_of(MANIFEST)
    set_at(*place)(message, value)
    archive = forge(message)
    try:
        found = read_archive_head(archive)
    except P2PCacheError:
        return
    assert head_to_bytes(found.to_bytes()) == archive


def test_table_of_a_large_blob_is_small_to_refuse() -> None:
    """A blob that claims 4 TiB with one digest costs nothing but the sentence."""
    message = message_of(MANIFEST)
    message["files"][0]["size"] = message["blobs"][1]["size"] = CHUNK_SIZE_BYTES << 20
    with pytest.raises(BundleCorruptError, match=MANIFEST_NAME):
        read_archive_head(forge(message))


def test_blob_names_are_built_from_parsed_digests_alone() -> None:
    """No text of a manifest reaches a member's name: only hex that was parsed."""
    headers = [p.content for p in MANIFEST.iter_parts() if isinstance(p, Literal)]
    names = [h[:100].rstrip(b"\0").decode() for h in headers if h.startswith(b"blobs/")]
    assert len(names) == len(SAMPLES)
    for name in names:
        _, algorithm, digits = name.split("/")
        BlobDigest.parse(f"{algorithm}:{digits}")


def test_manifest_with_other_blobs_than_files_is_refused_before_either_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """60,000 files without a blob cost a count, not a parse."""
    message = json.loads(MANIFEST.to_bytes())
    message["blobs"] = []
    monkeypatch.setattr(bundle, "snapshot_from_json", pytest.fail)
    raw = json.dumps(message, separators=(",", ":")).encode() + b"\n"
    with pytest.raises(BundleCorruptError, match="has 0 blobs for files of"):
        BundleManifest.from_bytes(raw)
