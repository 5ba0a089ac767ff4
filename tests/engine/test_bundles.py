"""
Owns the tests of engine.bundles, bundleimport and intake: a snapshot out of one store and into
another that no hub answers.

Knows nothing of HTTP.
Invariants: whatever is done to a bundle, no wrong byte gets a name; no descriptor is left open.
Source: docs/reference/bundle-format.md.
"""

from __future__ import annotations

import asyncio
import os
import stat
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import Layout
from p2pcache.core.refs import ModelReference
from p2pcache.core.residency import State
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.core.verify import verify_chunk
from p2pcache.engine import bundleimport, bundles
from p2pcache.engine.bundleimport import ImportOrder
from p2pcache.engine.bundles import BundleExport, Bundles
from p2pcache.errors import (
    BlobCorruptError,
    BundleCorruptError,
    DaemonBusyError,
    InputError,
    NotFoundError,
    P2PCacheError,
    ProtectedError,
    StoreFullError,
    UpstreamUnreachableError,
)
from p2pcache.store.bundle import HEAD_SIZE_BYTES, BundleManifest, bundle_id_of
from tests.engine.archives import (
    export_archive,
    flip,
    forge,
    import_archive,
    manifest_of,
    place_of,
    reader_of,
    relist,
)
from tests.engine.conftest import (
    CHUNK_BYTES,
    FILES,
    GATED,
    MODEL_BYTES,
    PRIVATE,
    REPO,
    TOKEN,
    WEIGHTS,
    MakeCache,
)
from tests.engine.engine import Engine, eventually, let_run, list_open_files
from tests.engine.fakepeer import sha256_name
from tests.engine.test_shelf import flip_byte
from tests.hub import Hub, Repository
from tests.tensorfiles import make_safetensors

NAME = "pytorch_model.bin"
BLOB = sha256_name(WEIGHTS)
NO_HUB = "http://127.0.0.1:9"


@pytest.fixture
async def archive(engine: Engine) -> bytes:
    """A bundle of the public model."""
    await engine.pull(REPO)
    return await export_archive(engine, REPO)


@pytest.fixture
async def other(make_cache: MakeCache) -> Engine:
    """An engine beyond the gap: no hub, no peers."""
    return await make_cache("b", hub_url=NO_HUB)


async def measure(engine: Engine, repo: str = REPO) -> State | None:
    """Return the residency of what `main` is."""
    row = await engine.cache.librarian.find_cached(ModelReference.parse(repo))
    if row is None:
        return None
    return (await engine.cache.measure(list(row.snapshot.files))).state


def list_published(engine: Engine) -> dict[str, bytes]:
    """Return every file that has a name in the store."""
    store = engine.context.store
    return {str(blob): store.path_of(blob).read_bytes() for blob, _ in store.iter_blobs()}


def list_partial(engine: Engine) -> list[str]:
    """Return what is being filled."""
    return sorted(os.listdir(engine.root / "partial"))


def read_snapshot(engine: Engine, archive: bytes) -> dict[str, bytes]:
    """Return the files of the tree that offline programs read."""
    folder = engine.context.tree.snapshot_path(manifest_of(archive).snapshot.id)
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# --- out ---


async def test_export_twice_is_the_same_and_says_nothing_of_the_machine(
    engine: Engine, archive: bytes
) -> None:
    """Equal snapshots give equal bundles, without paths, tokens or ids of the daemon."""
    assert await export_archive(engine, REPO) == archive
    settings, home = engine.context.settings, engine.context.home
    for secret in (str(engine.root), settings.peer_id, home.admin_token, "127.0.0.1", TOKEN):
        assert secret.encode() not in archive
    manifest = manifest_of(archive)
    assert manifest.is_public
    assert manifest.revisions == ("main",)
    assert {e.path for e in manifest.snapshot.files} == set(FILES)


async def test_export_of_what_is_not_here_says_to_pull(engine: Engine) -> None:
    """An unknown model, one of which a file is missing, and one whose file was removed."""
    with pytest.raises(NotFoundError, match="p2pcache pull org/model"):
        await export_archive(engine, REPO)
    await engine.pull(REPO, include=("config.json",))
    with pytest.raises(
        NotFoundError, match=r"missing; pull all of it first: p2pcache pull org/model"
    ):
        await export_archive(engine, REPO)
    await engine.pull(REPO)
    engine.context.store.path_of(BLOB).unlink()
    with pytest.raises(NotFoundError, match=NAME):
        await export_archive(engine, REPO)
    assert list_open_files(engine.root / "blobs") == []


async def test_export_of_what_is_not_public_needs_the_admin(engine: Engine) -> None:
    """Who cannot show the admin token is told what they are told of an unknown model."""
    await engine.pull(PRIVATE, token=TOKEN)
    with pytest.raises(NotFoundError, match="is not here; pull it first"):
        await export_archive(engine, PRIVATE, is_admin=False)
    assert not manifest_of(await export_archive(engine, PRIVATE)).is_public
    await engine.pull(REPO)
    assert manifest_of(await export_archive(engine, REPO, is_admin=False)).is_public


async def test_export_goes_on_when_files_are_removed(engine: Engine, archive: bytes) -> None:
    """What was opened before the first byte is read to its end, whatever becomes of the names."""
    received = b""
    async with exporting(engine) as export:
        async for content in export.iter_bytes():
            received += content
            for blob in list(engine.context.store.iter_blobs()):
                engine.context.store.discard(blob[0], partial_only=False)
    assert received == archive
    assert list_open_files(engine.root / "blobs") == []


async def test_export_keeps_its_snapshot_from_eviction(engine: Engine, archive: bytes) -> None:
    """Whoever wants room gets it elsewhere, until the last byte is out."""
    snapshot_id = manifest_of(archive).snapshot.id
    async with exporting(engine):
        with pytest.raises(ProtectedError):
            await engine.cache.space.remove(snapshot_id)
    await engine.cache.space.remove(snapshot_id)


def exporting(engine: Engine) -> AbstractAsyncContextManager[BundleExport]:
    """Open the public model."""
    return Bundles(engine.cache).exporting(ModelReference.parse(REPO), is_admin=False)


async def receive(export: BundleExport, into: bytearray) -> None:
    """Read an export to its end, or until it is broken off."""
    async for content in export.iter_bytes():
        into.extend(content)


async def test_export_of_more_files_than_descriptors_opens_the_rest_later(
    engine: Engine, archive: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest stay open, the others wait for their turn; one that is gone then is named."""
    monkeypatch.setattr(bundles, "OPEN_FILES_MAX", 1)
    assert await export_archive(engine, REPO) == archive
    small = next(e for e in manifest_of(archive).snapshot.files if e.path == "config.json")
    async with exporting(engine) as export:
        assert len(list_open_files(engine.root / "blobs")) == 1
        engine.context.store.discard(small.digest, partial_only=False)
        with pytest.raises(NotFoundError, match=r"config\.json was removed"):
            await receive(export, bytearray())


async def test_export_of_a_damaged_chunk_breaks_off(engine: Engine, archive: bytes) -> None:
    """A byte that changed under an unchanged stamp is not exported, and nobody is given it."""
    path = engine.context.store.path_of(BLOB)
    flip_byte(path, 5 * CHUNK_BYTES, keeps_time=True)
    received = bytearray()
    async with exporting(engine) as export:
        with pytest.raises(BlobCorruptError, match="Chunk 5"):
            await receive(export, received)
    assert archive.startswith(received)
    assert len(received) == place_of(archive, NAME) + 5 * CHUNK_BYTES
    fault = engine.context.blame.faults[-1]
    assert fault.reason == "damaged here"
    assert f"Chunk 5 of {NAME}" in fault.detail
    assert await engine.cache.shelf.describe(BLOB) is None
    assert await engine.read(REPO, NAME) == WEIGHTS


async def test_exports_and_imports_at_once_are_few(
    engine: Engine, archive: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes memory and a thread; one too many of a kind is told to come back."""
    monkeypatch.setattr(bundles, "EXPORTS_AT_ONCE_MAX", 1)
    monkeypatch.setattr(bundles, "IMPORTS_AT_ONCE_MAX", 1)
    running, reference = Bundles(engine.cache), ModelReference.parse(REPO)
    is_waiting = asyncio.Event()

    async def wait() -> bytes:
        is_waiting.set()
        await asyncio.Event().wait()
        return b""

    async with running.exporting(reference, is_admin=True):
        with pytest.raises(DaemonBusyError, match="1 exports run already"):
            async with running.exporting(reference, is_admin=True):
                pytest.fail("one too many")
        importing = asyncio.create_task(running.take_in(ImportOrder(), wait))
        await asyncio.wait_for(is_waiting.wait(), 10.0)
        with pytest.raises(DaemonBusyError, match="1 imports run already"):
            await running.take_in(ImportOrder(), reader_of(archive))
        importing.cancel()
        await asyncio.gather(importing, return_exceptions=True)
    assert (await running.take_in(ImportOrder(), reader_of(archive))).written_bytes == 0


# --- in ---


async def test_import_without_a_hub_makes_the_model_resident(archive: bytes, other: Engine) -> None:
    """Every file is here, proven, linked, public; `main` and the commit mean it."""
    imported = await import_archive(other, archive, bundle_id=bundle_id_of_archive(archive))
    assert imported.written_bytes == MODEL_BYTES
    assert imported.is_public
    assert await measure(other) is State.RESIDENT
    assert read_snapshot(other, archive) == FILES
    commit = imported.snapshot_id.commit
    refs = other.context.tree.repo_path(imported.snapshot_id.repo) / "refs"
    assert {path.name: path.read_text() for path in refs.iterdir()} == {"main": commit}
    assert await other.read(REPO, NAME) == WEIGHTS
    assert await other.read(f"{REPO}@{commit}", "config.json") == FILES["config.json"]
    row = await other.cache.librarian.find_cached(ModelReference.parse(REPO))
    assert row is not None
    assert row.is_confirmed is False
    assert list_partial(other) == []
    assert stat.S_IMODE(other.context.store.path_of(BLOB).stat().st_mode) == 0o444
    assert (await other.cache.shelf.describe(BLOB)) is not None


def bundle_id_of_archive(archive: bytes) -> str:
    """Return the id that export prints."""
    return bundle_id_of(manifest_of(archive).to_bytes())


async def test_imported_model_exports_to_the_same_bundle(archive: bytes, other: Engine) -> None:
    """Nothing is lost on the way: the second hop is the first one, byte for byte."""
    await import_archive(other, archive)
    assert await export_archive(other, REPO, is_admin=False) == archive


async def test_import_again_writes_nothing(archive: bytes, other: Engine) -> None:
    """What is here is compared and kept."""
    await import_archive(other, archive)
    inode = other.context.store.path_of(BLOB).stat().st_ino
    assert (await import_archive(other, archive)).written_bytes == 0
    assert other.context.store.path_of(BLOB).stat().st_ino == inode


async def test_import_of_a_changed_copy_of_what_is_here_is_refused(
    archive: bytes, other: Engine
) -> None:
    """Also bytes that are not needed must be right: a bundle is right or it is not."""
    await import_archive(other, archive)
    place = place_of(archive, NAME) + 3 * CHUNK_BYTES
    with pytest.raises(BundleCorruptError, match=f"{NAME}, chunk 3 of 20"):
        await import_archive(other, flip(archive, place))
    wrong = Random(5).randbytes(len(WEIGHTS))
    with pytest.raises(BundleCorruptError, match=f"{NAME} in the bundle is not sha256"):
        await import_archive(other, forge(archive, {NAME: wrong}))
    assert await other.read(REPO, NAME) == WEIGHTS


async def test_import_of_a_changed_chunk_names_it_and_goes_on_later(
    archive: bytes, other: Engine
) -> None:
    """Nothing of the file gets a name; the chunks before are used by the next import."""
    bad = 13
    place = place_of(archive, NAME) + bad * CHUNK_BYTES + 99
    said = f"{NAME}, chunk {bad} of 20 \\(bytes {bad * CHUNK_BYTES}-{(bad + 1) * CHUNK_BYTES - 1}"
    with pytest.raises(BundleCorruptError, match=said):
        await import_archive(other, flip(archive, place))
    assert str(BLOB) not in list_published(other)
    assert list_partial(other) == [f"sha256-{BLOB.hex}", f"sha256-{BLOB.hex}.have"]
    again = await import_archive(other, archive)
    assert again.written_bytes == len(WEIGHTS) - bad * CHUNK_BYTES
    assert await other.read(REPO, NAME) == WEIGHTS


async def test_import_of_a_forged_list_does_not_stand_in_the_true_ones_way(
    archive: bytes, other: Engine
) -> None:
    """A commit's list that nothing bore out is forgotten with the bundle that claimed it."""
    forged = relist(archive, NAME)
    with pytest.raises(BundleCorruptError, match="chunk"):
        await import_archive(other, flip(forged, place_of(forged, NAME)))
    assert (await import_archive(other, archive)).written_bytes > 0
    assert await other.read(REPO, NAME) == WEIGHTS


async def test_import_of_a_forged_file_is_refused_and_not_kept(
    archive: bytes, other: Engine
) -> None:
    """Tables and id that fit wrong bytes do not help: the hub's own digest decides."""
    wrong = bytearray(WEIGHTS)
    wrong[0] ^= 1
    forged = forge(archive, {NAME: bytes(wrong)})
    with pytest.raises(BundleCorruptError, match=f"{NAME} in the bundle is not sha256"):
        await import_archive(other, forged, bundle_id=bundle_id_of_archive(forged))
    assert str(BLOB) not in list_published(other)
    # Nothing of it is believed by whoever continues.
    assert (await import_archive(other, archive)).written_bytes == len(WEIGHTS)
    assert await other.read(REPO, NAME) == WEIGHTS


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.sampled_from(["flip", "end", "cut", "insert", "zero", "append"]),
    st.integers(0, 1 << 40),
    st.integers(1, 5 * CHUNK_BYTES),
    st.randoms(use_true_random=False),
)
async def test_import_of_any_changed_bundle_is_refused(
    archive: bytes, other: Engine, how: str, place: int, length: int, chance: Random
) -> None:
    """A byte changed, put in or cut out, anywhere: refused by name, and no wrong byte has one."""
    place %= len(archive)
    before, after = archive[:place], archive[place:]
    changed = {
        "flip": flip(archive, place),
        "end": before,
        "cut": before + after[length:],
        "insert": before + chance.randbytes(length) + after,
        "zero": before + bytes(len(after[:length])) + after[length:],
        "append": archive + bytes(length),
    }[how]
    if changed == archive:
        return
    with pytest.raises(BundleCorruptError, match=r"bundle|manifest|p2pcache-bundle\.json"):
        await import_archive(other, changed)
    truth = {str(entry.digest): FILES[entry.path] for entry in manifest_of(archive).snapshot.files}
    for name, content in list_published(other).items():
        assert content == truth[name]
    assert list_open_files(other.root / "partial") == []
    # So that the next one is written again; what is in partial stays, as after a crash.
    for blob, _stamp in list(other.context.store.iter_blobs()):
        other.context.store.discard(blob, partial_only=False)


async def test_import_of_another_id_stores_nothing(archive: bytes, other: Engine) -> None:
    """The id that a person was told is compared before anything is taken."""
    with pytest.raises(BundleCorruptError, match="nothing was taken"):
        await import_archive(other, archive, bundle_id="0" * 64)
    assert await measure(other) is None
    assert list_published(other) == {}
    assert list_partial(other) == []


async def test_import_of_another_list_of_a_known_commit_is_refused(
    engine: Engine, archive: bytes, other: Engine
) -> None:
    """A commit has one list: what the hub said, or what was imported before, stands."""
    manifest = manifest_of(archive)
    entry = manifest.snapshot.get_file("empty.txt")
    listed = (
        *(e for e in manifest.snapshot.files if e is not entry),
        FileEntry("other.txt", entry.size_bytes, entry.digest, entry.tree_oid),
    )
    changed = Snapshot.of(manifest.snapshot.id, listed)
    for store, said in ((engine, "the hub gave"), (other, "is known here")):
        await import_archive(store, archive)
        await store.context.index.call(
            lambda index: index.catalogue.put_snapshot(
                changed, is_confirmed=False, about=None, wall_s=0.0
            )
        )
        if store is other:
            with pytest.raises(BundleCorruptError, match=said):
                await import_archive(store, archive)
        else:
            await import_archive(store, archive)  # what the hub said was not replaced
    lying = await export_lying(engine, changed, archive)
    with pytest.raises(BundleCorruptError, match="the hub gave"):
        await import_archive(engine, lying)


async def export_lying(engine: Engine, snapshot: Snapshot, archive: bytes) -> bytes:
    """Return a bundle that is right in itself, of another list of files."""
    manifest = manifest_of(archive)
    tables = {table.blob: table for table in manifest.tables}
    made = BundleManifest.of(snapshot, ["main"], tables, is_public=True)
    files = {blob: os.open(engine.context.store.path_of(blob), os.O_RDONLY) for blob in tables}
    content = bytearray()
    await receive(BundleExport(engine.cache, made, files), content)
    for fd in files.values():
        os.close(fd)
    return bytes(content)


@pytest.mark.parametrize(
    ("repo", "is_public", "expected"),
    [(REPO, None, True), (REPO, False, False), (GATED, None, False), (GATED, True, True)],
)
async def test_import_is_as_public_as_the_bundle_or_the_operator_says(
    engine: Engine, other: Engine, repo: str, is_public: bool | None, expected: bool
) -> None:
    """Restricted content is for the daemon's user alone, whatever other content is."""
    await engine.pull(repo, token=TOKEN)
    imported = await import_archive(other, await export_archive(engine, repo), is_public=is_public)
    assert imported.is_public is expected
    blob = next(e.digest for e in imported.manifest.snapshot.files if e.path == NAME)
    mode = stat.S_IMODE(other.context.store.path_of(blob).stat().st_mode)
    assert mode == (0o444 if expected else 0o400)
    assert (await other.cache.shelf.describe(blob) is not None) is expected
    assert await measure(other, repo) is State.RESIDENT
    folder = other.context.tree.snapshot_path(imported.snapshot_id)
    assert (folder / NAME).stat().st_size == len(FILES[NAME]) + (6 if repo == GATED else 0)
    if expected:
        assert len(await other.read(repo, NAME)) == (folder / NAME).stat().st_size
    else:
        with pytest.raises(UpstreamUnreachableError):
            await other.read(repo, NAME)


async def test_import_that_does_not_fit_is_refused_before_the_first_byte(
    archive: bytes, make_cache: MakeCache
) -> None:
    """The refusal has the numbers, and nothing was written."""
    small = await make_cache("c", hub_url=NO_HUB, quota_bytes=100_000)
    with pytest.raises(StoreFullError, match="a quota of 100,000"):
        await import_archive(small, archive)
    assert await measure(small) is None
    assert list_partial(small) == []
    assert list_published(small) == {}


async def test_import_evicts_what_nobody_needs_and_is_not_evicted(
    engine: Engine, archive: bytes, make_cache: MakeCache
) -> None:
    """Room is made as for a download; what is being imported is not what makes it."""
    await engine.pull(GATED, token=TOKEN)
    gated = await export_archive(engine, GATED)
    small = await make_cache("c", hub_url=NO_HUB, quota_bytes=MODEL_BYTES + 200_000)
    await import_archive(small, gated)
    await import_archive(small, archive)
    assert await measure(small) is State.RESIDENT
    assert await measure(small, GATED) is None


async def test_import_goes_on_from_what_a_fetch_left(archive: bytes, other: Engine) -> None:
    """Chunks that are here, from whomever, are used if they are right, and replaced if not."""
    other.keep_chunks(WEIGHTS, [0, 4, 5])
    wrong = bytearray(WEIGHTS)
    wrong[7 * CHUNK_BYTES] ^= 1
    layout = Layout(len(WEIGHTS))
    partial = other.context.store.open_partial(BLOB, layout)
    offset, length = layout.span_of(7, 7)
    view = memoryview(wrong)[offset : offset + length]
    partial.put(verify_chunk(BLOB, layout, 7, view, expected=None, source_id="x"), "ab" * 16)
    partial.close()
    # And one that changed on the disk since.
    path = other.root / "partial" / f"sha256-{BLOB.hex}"
    with path.open("r+b") as file:
        file.seek(4 * CHUNK_BYTES)
        file.write(b"\x00\x01\x02")
    imported = await import_archive(other, archive)
    assert imported.written_bytes == MODEL_BYTES - 2 * CHUNK_BYTES
    assert await other.read(REPO, NAME) == WEIGHTS


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no bundle"),
        (b"hello\n", "is no bundle"),
        (b"\x1f\x8b\x08" + bytes(400), "is no bundle"),
        (b"PaxHeaders/other" + bytes(900), "is no bundle"),
        (None, "was cut off"),
    ],
)
async def test_import_of_a_small_file_says_what_it_is_not(
    archive: bytes, other: Engine, content: bytes | None, said: str
) -> None:
    """Only what begins as a bundle can have been cut off."""
    for length in (10, 511, 512, 600, HEAD_SIZE_BYTES - 1) if content is None else (1000,):
        with pytest.raises(BundleCorruptError, match=said):
            await import_archive(other, archive[:length] if content is None else content)


async def test_import_keeps_who_gave_each_chunk(archive: bytes, other: Engine) -> None:
    """An import that was cut off leaves the bundle's id as the source, for later blame."""
    with pytest.raises(BundleCorruptError, match=f"ends in chunk 3 of {NAME}"):
        await import_archive(other, archive[: place_of(archive, NAME) + 3 * CHUNK_BYTES + 5])
    partial = other.context.store.open_partial(BLOB, Layout(len(WEIGHTS)))
    assert set(partial.snapshot().sources.values()) == {bundle_id_of_archive(archive)[:32]}
    partial.close()


async def test_fetch_goes_on_from_what_an_import_left(
    archive: bytes, make_cache: MakeCache
) -> None:
    """A bundle that was cut off saves the download what it brought."""
    importer = await make_cache("c")
    with pytest.raises(BundleCorruptError, match="cut off"):
        await import_archive(importer, archive[: place_of(archive, NAME) + 9 * CHUNK_BYTES])
    job = await importer.pull(REPO)
    assert importer.downloads.count_bytes(job)["upstream"] == len(WEIGHTS) - 9 * CHUNK_BYTES
    assert await importer.read(REPO, NAME) == WEIGHTS


async def test_fetch_heals_what_a_forged_bundle_left(archive: bytes, make_cache: MakeCache) -> None:
    """Wrong chunks under right tables, cut off before the proof: the fetch finds them out."""
    importer = await make_cache("c")
    wrong = bytes([WEIGHTS[0] ^ 1]) + WEIGHTS[1:]
    forged = forge(archive, {NAME: wrong})
    with pytest.raises(BundleCorruptError, match="cut off"):
        await import_archive(importer, forged[: place_of(forged, NAME) + 9 * CHUNK_BYTES])
    await importer.pull(REPO)
    assert await importer.read(REPO, NAME) == WEIGHTS
    fault = importer.context.blame.faults[-1]
    assert (fault.source_id, fault.reason) == (bundle_id_of_archive(forged)[:32], "wrong bytes")


async def test_file_with_tensors_keeps_its_boundaries(make_cache: MakeCache) -> None:
    """A layout of its own crosses the gap, so that peers on both sides cut alike."""
    chance = Random(4)
    tensors = {
        f"t{n}": ("U8", [size], chance.randbytes(size)) for n, size in enumerate([40_000, 9])
    }
    content = make_safetensors(tensors)
    async with Hub([Repository("org/tensors", {"model.safetensors": content})]) as running:
        first = await make_cache("c", hub_url=running.url)
        await first.pull("org/tensors")
        archive = await export_archive(first, "org/tensors")
    layout = manifest_of(archive).tables[-1].layout
    assert layout.to_spans() != []
    second = await make_cache("d", hub_url=NO_HUB)
    await import_archive(second, archive)
    assert await second.read("org/tensors", "model.safetensors") == content
    row = await second.cache.shelf.find_row(sha256_name(content))
    assert row is not None
    assert row.table is not None
    assert row.table.layout.to_spans() == layout.to_spans()


async def test_import_moves_the_branch(engine: Engine, archive: bytes, other: Engine) -> None:
    """The newest import says what `main` is, for offline programs too."""
    await import_archive(other, archive)
    manifest = manifest_of(archive)
    later = Snapshot.of(
        type(manifest.snapshot.id)(manifest.snapshot.id.repo, "e" * 40), manifest.snapshot.files
    )
    imported = await import_archive(other, await export_lying(engine, later, archive))
    assert imported.snapshot_id.commit == "e" * 40
    assert imported.written_bytes == 0
    row = await other.cache.librarian.find_cached(ModelReference.parse(REPO))
    assert row is not None
    assert row.snapshot.id.commit == "e" * 40
    refs = other.context.tree.repo_path(later.id.repo) / "refs"
    assert (refs / "main").read_text() == "e" * 40


async def test_import_that_falls_silent_ends(
    archive: bytes, other: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe whose other end died does not hold a blob for ever."""
    monkeypatch.setattr(bundleimport, "SILENCE_S_MAX", 0.05)
    read_some = reader_of(archive[: place_of(archive, NAME) + 2 * CHUNK_BYTES])

    async def read_then_hang() -> bytes:
        return await read_some() or await asyncio.Event().wait()  # type: ignore[return-value]

    with pytest.raises(InputError, match="import it again"):
        await Bundles(other.cache).take_in(ImportOrder(), read_then_hang)
    assert not other.cache.claims.is_held(BLOB)


async def test_import_cancelled_leaves_what_it_wrote(archive: bytes, other: Engine) -> None:
    """A caller that goes away costs nothing of what was written."""
    read_some = reader_of(archive[: place_of(archive, NAME) + 9 * CHUNK_BYTES])
    is_waiting = asyncio.Event()

    async def read_then_hang() -> bytes:
        piece = await read_some()
        if not piece:
            is_waiting.set()
            await asyncio.Event().wait()
        return piece

    task = asyncio.create_task(Bundles(other.cache).take_in(ImportOrder(), read_then_hang))
    await asyncio.wait_for(is_waiting.wait(), 10.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list_open_files(other.root / "partial") == []
    imported = await import_archive(other, archive)
    assert imported.written_bytes == len(WEIGHTS) - 9 * CHUNK_BYTES


async def test_import_and_fetch_of_one_blob_take_turns(
    archive: bytes, make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two never fill one file: a reader waits for the import, and then needs no hub."""
    importer = await make_cache("c")
    half = place_of(archive, NAME) + 9 * CHUNK_BYTES
    first, second = reader_of(archive[:half]), reader_of(archive[half:])
    is_waiting, may_go_on = asyncio.Event(), asyncio.Event()

    async def read_with_a_pause() -> bytes:
        piece = await first()
        if not piece:
            is_waiting.set()
            await may_go_on.wait()
            piece = await second()
        return piece

    taking = asyncio.create_task(Bundles(importer.cache).take_in(ImportOrder(), read_with_a_pause))
    await asyncio.wait_for(is_waiting.wait(), 10.0)
    claims, waits = importer.cache.claims, []
    for name in ("wait_free", "_wait_unused"):
        real = getattr(claims, name)

        async def note_wait(blob: BlobDigest, name: str = name, real: Any = real) -> None:
            waits.append((name, claims.is_held(blob)))
            await real(blob)

        monkeypatch.setattr(claims, name, note_wait)
    reading = asyncio.create_task(importer.read(REPO, NAME))
    joining = asyncio.create_task(import_archive(importer, archive))
    both = {("wait_free", True), ("_wait_unused", True)}
    await eventually(lambda: set(waits) >= both, "reader and second import wait")
    await let_run()
    assert importer.cache.fetches.find(BLOB) is None
    may_go_on.set()
    assert await reading == WEIGHTS
    assert (await taking).written_bytes == MODEL_BYTES
    assert (await joining).written_bytes == 0
    assert importer.context.bytes_counted["upstream", "in"] == 0


async def test_import_waits_for_a_fetch_under_way(
    archive: bytes, make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a download brings meanwhile is compared, not written."""
    importer = await make_cache("c")
    active = await importer.start_fetch(REPO, NAME)
    imported = await import_archive(importer, archive)
    assert active.is_done
    assert imported.written_bytes == MODEL_BYTES - len(WEIGHTS)
    assert await measure(importer) is State.RESIDENT


async def test_import_gives_up_on_a_fetch_that_takes_long(
    archive: bytes, other: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream cannot wait for ever; the sentence says what to do."""
    monkeypatch.setattr("p2pcache.engine.claims.CLAIM_WAIT_S", 0.05)
    async with other.cache.claims.hold(BLOB):
        with pytest.raises(DaemonBusyError, match="downloaded"):
            await import_archive(other, archive)
    assert (await import_archive(other, archive)).written_bytes == len(WEIGHTS)


async def test_import_into_a_full_disk_goes_on_later(
    archive: bytes, other: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fills up in the middle is one sentence; nothing that was written is lost."""
    real, left = os.pwrite, [40]

    def pwrite(fd: int, content: bytes, offset: int) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return real(fd, content, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(StoreFullError):
        await import_archive(other, archive)
    monkeypatch.setattr(os, "pwrite", real)
    imported = await import_archive(other, archive)
    assert 0 < imported.written_bytes < MODEL_BYTES
    assert read_snapshot(other, archive) == FILES


async def test_errors_of_an_import_are_ours(archive: bytes, other: Engine, tmp_path: Path) -> None:
    """An empty stream, text, another archive: refused in a sentence."""
    for content in (b"", b"hello\n" * 1000, bytes(100_000), b"PK\x03\x04" + bytes(5000)):
        with pytest.raises(P2PCacheError, match="bundle"):
            await import_archive(other, content)
    await eventually(lambda: list_partial(other) == [], "nothing is left")
