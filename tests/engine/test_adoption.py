"""
Owns the tests of adopting a cache: lists, visibility, names, jobs, watches.

Knows nothing of how single files are placed (tests/store/test_adopt.py).
Invariants: a cache of another program is never changed.
Source: engine/adoption.py, engine/adopter.py; docs/how-to/adopt-a-cache.md.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import stat
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from p2pcache.clock import ManualClock
from p2pcache.core.credentials import ANONYMOUS
from p2pcache.core.refs import ModelReference
from p2pcache.core.residency import State
from p2pcache.engine import adoption as adoption_module
from p2pcache.engine.adoption import Adoptions
from p2pcache.engine.adoptionjob import (
    FINAL_STATES,
    AdoptionJob,
    AdoptionOrder,
    AdoptionState,
    FileWatch,
)
from p2pcache.errors import InputError, JobNotFoundError, StoreError
from p2pcache.store.index import Index
from p2pcache.store.rebuild import recover
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
from tests.engine.engine import Engine, eventually
from tests.engine.fakepeer import sha256_name
from tests.hfcaches import ForeignCache
from tests.hub import Hub, Repository
from tests.store.rows import list_rows

SHORT_S = 0.05
WEIGHTS_NAME = next(name for name, content in FILES.items() if content is WEIGHTS)


@pytest.fixture
def foreign(tmp_path: Path) -> ForeignCache:
    """Make an empty cache of another program."""
    return ForeignCache(tmp_path / "hf" / "hub")


@pytest.fixture
async def adoptions(engine: Engine) -> AsyncIterator[Adoptions]:
    """Open the adoptions of one engine."""
    opened = Adoptions(engine.cache)
    await opened.open()
    yield opened
    await opened.close()


def repository_of(hub: Hub, repo_id: str = REPO) -> Repository:
    """Return a repository of the test hub."""
    found = hub.state.catalog.find("models", repo_id)
    assert found is not None
    return found


async def adopt(adoptions: Adoptions, path: Path, **order: bool) -> AdoptionJob:
    """Run an adoption to its end."""
    job = await adoptions.start(AdoptionOrder(path, **order))
    await eventually(lambda: job.state in FINAL_STATES, "the adoption's end", timeout_s=30.0)
    return job


async def measure(engine: Engine, repo: str = REPO) -> State:
    """Return how much of a repository's main is here."""
    row = await engine.cache.librarian.find_cached(ModelReference.parse(repo))
    assert row is not None
    return (await engine.cache.measure(list(row.snapshot.files))).state


def snapshot_of(tree: Path) -> dict[str, object]:
    """Return all that can be seen of a folder but link counts: names, kinds, modes, content."""
    seen: dict[str, object] = {}
    for folder, folders, files in os.walk(tree):
        for name in [*folders, *files]:
            path = Path(folder, name)
            status = path.lstat()
            content: object = None
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                content = (path.read_bytes(), status.st_mtime_ns)
            seen[str(path.relative_to(tree))] = (status.st_mode, status.st_ino, content)
    return seen


def spoil_weights(foreign: ForeignCache, repository: Repository) -> None:
    """Make a repository's copy of the weights wrong in its last byte."""
    blob = foreign.folder_of(repository) / "blobs" / sha256_name(WEIGHTS).hex
    blob.write_bytes(WEIGHTS[:-1] + b"?")


async def test_adopt_whole_cache_is_resident_and_linked(
    engine: Engine, adoptions: Adoptions, hub: Hub, foreign: ForeignCache
) -> None:
    """Every file is a hard link of the cache's; the snapshot is ours; the cache is unchanged."""
    foreign.add(repository_of(hub))
    before = snapshot_of(foreign.root)
    job = await adopt(adoptions, foreign.root)
    assert (job.state, job.error, job.list_skipped()) == (AdoptionState.DONE, None, [])
    assert job.counts == {"linked": len(FILES)}
    assert (job.files_done, job.bytes_done) == (len(FILES), sum(map(len, FILES.values())))
    assert snapshot_of(foreign.root) == before
    assert await measure(engine) is State.RESIDENT
    path = engine.context.store.path_of(sha256_name(WEIGHTS))
    blob = foreign.folder_of(repository_of(hub)) / "blobs" / sha256_name(WEIGHTS).hex
    assert path.samefile(blob)
    (report,) = job.snapshots.values()
    assert (report.is_confirmed, report.is_public, report.revisions) == (True, True, ("main",))
    for name, content in FILES.items():
        assert await engine.read(REPO, name) == content
    assert hub.state.stats.as_json()["body_bytes"] == 0


# --- lists and names ---


async def test_adopt_partial_download_is_partial_by_the_hubs_list(
    engine: Engine, adoptions: Adoptions, hub: Hub, foreign: ForeignCache
) -> None:
    """What the cache lacks is missing, not forgotten; a pull brings the rest only."""
    foreign.add(repository_of(hub), paths=[WEIGHTS_NAME])
    job = await adopt(adoptions, foreign.root)
    (report,) = job.snapshots.values()
    assert (report.files, report.files_here, report.is_confirmed) == (len(FILES), 1, True)
    assert await measure(engine) is State.PARTIAL
    pulled = await engine.pull(REPO)
    assert pulled.state.value == "done"
    assert hub.state.stats.as_json()["body_bytes"] == sum(map(len, FILES.values())) - len(WEIGHTS)


async def test_adopt_wrong_blob_is_named_and_left_alone(
    engine: Engine, adoptions: Adoptions, hub: Hub, foreign: ForeignCache
) -> None:
    """Bit rot in the cache: the file is named with what it holds, the others are taken."""
    foreign.add(repository_of(hub))
    blob = foreign.folder_of(repository_of(hub)) / "blobs" / sha256_name(WEIGHTS).hex
    rotten = bytes([WEIGHTS[0] ^ 1]) + WEIGHTS[1:]
    blob.write_bytes(rotten)
    job = await adopt(adoptions, foreign.root)
    assert job.state is AdoptionState.DONE
    ((path, reason),) = job.list_skipped()
    assert path.endswith(WEIGHTS_NAME)
    assert str(sha256_name(rotten)) in reason
    assert blob.read_bytes() == rotten
    assert engine.context.store.find_blob(sha256_name(WEIGHTS)) is None
    assert job.counts == {"linked": len(FILES) - 1}
    assert await measure(engine) is State.PARTIAL


async def test_adopt_second_copy_of_a_wrong_blob_is_tried(
    engine: Engine, adoptions: Adoptions, hub: Hub, foreign: ForeignCache
) -> None:
    """Another repository of the cache has the same content, and has it right."""
    twin = Repository("org/twin", FILES)
    for repository in (repository_of(hub), twin):
        foreign.add(repository)
    # Nobody but the one commit asks for the content, so that its own copy is the first to be tried.
    shutil.rmtree(foreign.folder_of(twin) / "snapshots")
    spoil_weights(foreign, repository_of(hub))
    job = await adopt(adoptions, foreign.root)
    assert [path for path, _ in job.list_skipped()] == [
        f"models--org--model/snapshots/{repository_of(hub).get_commit('main').sha}/{WEIGHTS_NAME}"
    ]
    assert await measure(engine) is State.RESIDENT


@pytest.mark.parametrize("old", ["org/model", "org/twin"])
async def test_adopt_two_repositories_with_one_wrong_copy_are_both_resident(
    engine: Engine, adoptions: Adoptions, hub: Hub, foreign: ForeignCache, old: str
) -> None:
    """Whichever copy is looked at first, the right one serves both."""
    twin = Repository("org/twin", FILES)
    hub.state.catalog.add(twin)
    blobs = {}
    for repository in (repository_of(hub), twin):
        foreign.add(repository)
        blobs[repository.repo_id] = (
            foreign.folder_of(repository) / "blobs" / sha256_name(WEIGHTS).hex
        )
    spoil_weights(foreign, repository_of(hub))
    # What was written a moment ago waits a tick before it is hashed, so that the other is first.
    os.utime(blobs[old], (1e9, 1e9))
    await adopt(adoptions, foreign.root)
    assert await measure(engine) is State.RESIDENT
    assert await measure(engine, "org/twin") is State.RESIDENT


async def test_adopt_copies_are_named_by_the_hubs_list(
    engine: Engine, adoptions: Adoptions, hub: Hub, foreign: ForeignCache
) -> None:
    """Files without blobs/ (Windows): the list says what each must be; a wrong one is named."""
    snapshot = foreign.add(repository_of(hub), style="copies")
    (snapshot / "config.json").write_bytes(b'{"model_type": "evil"}\n')
    (snapshot / "notes.txt").write_bytes(b"mine")
    job = await adopt(adoptions, foreign.root)
    reasons = dict(job.list_skipped())
    prefix = f"models--org--model/snapshots/{snapshot.name}"
    assert set(reasons) == {f"{prefix}/config.json", f"{prefix}/notes.txt"}
    assert "no such file" in reasons[f"{prefix}/notes.txt"]
    assert job.counts == {"linked": len(FILES) - 1}
    assert await measure(engine) is State.PARTIAL


async def test_adopt_shared_store_restricted_is_not_public_after_the_index_is_lost(
    hub: Hub, foreign: ForeignCache, make_cache: MakeCache, tmp_path: Path
) -> None:
    """Xet clients make files 0444, as ours are when public: a lost index must not share them."""
    engine = await make_cache("x")
    adoptions = Adoptions(engine.cache)
    foreign.add(repository_of(hub, PRIVATE), style="shared")
    job = await adopt(adoptions, foreign.root)
    await adoptions.close()
    assert job.counts == {"linked": len(FILES)}
    store = engine.context.store
    index = Index(tmp_path / "made-anew.sqlite")
    recover(store, engine.context.tree, index, wall_s=1.0)
    rows = list_rows(index)
    index.close()
    assert len(rows) == len(FILES)
    assert {(row.is_public, row.is_proven, row.is_adopted) for row in rows} == {
        (False, False, True)
    }


async def test_adopt_one_blob_of_many_repositories_is_hashed_once(
    engine: Engine, adoptions: Adoptions, hub: Hub, foreign: ForeignCache
) -> None:
    """The shared store of new clients: one file, two repositories, one look."""
    twin = Repository("org/twin", FILES)
    hub.state.catalog.add(twin)
    for repository in (repository_of(hub), twin):
        foreign.add(repository, style="shared")
    job = await adopt(adoptions, foreign.root)
    assert job.bytes_total == MODEL_BYTES + len(FILES["config.json"])
    assert await measure(engine, "org/twin") is State.RESIDENT


async def test_adopt_twice_finds_everything_present(
    engine: Engine, adoptions: Adoptions, hub: Hub, foreign: ForeignCache
) -> None:
    """Each file is found to be what it was; nothing changes."""
    foreign.add(repository_of(hub))
    await adopt(adoptions, foreign.root)
    links = [path.stat().st_nlink for path in sorted(foreign.root.rglob("blobs/*"))]
    job = await adopt(adoptions, foreign.root)
    assert job.counts == {"present": len(FILES)}
    assert [path.stat().st_nlink for path in sorted(foreign.root.rglob("blobs/*"))] == links


async def test_adopt_all_kinds_refs_and_pull_requests(
    engine: Engine, adoptions: Adoptions, hub: Hub, foreign: ForeignCache
) -> None:
    """Data sets, tags, pull requests, two commits of one repository: each is what it was."""
    repository = repository_of(hub)
    repository.add_tag("v1")
    repository.add_commit({"config.json": b"{}\n"}, branch="refs/pr/1", base="main")
    dataset = Repository("org/set", {"rows.bin": b"rows" * 100}, kind="datasets")
    hub.state.catalog.add(dataset)
    for revision in ("main", "v1", "refs/pr/1"):
        foreign.add(repository, revision)
    foreign.add(dataset)
    job = await adopt(adoptions, foreign.root)
    assert job.list_skipped() == []
    assert {(str(r.id.repo), r.revisions) for r in job.snapshots.values()} == {
        (REPO, ("main", "v1")),
        (REPO, ("refs/pr/1",)),
        ("datasets/org/set", ("main",)),
    }
    for reference in (REPO, f"{REPO}@v1", f"{REPO}@refs/pr/1", "datasets/org/set"):
        assert await measure(engine, reference) is State.RESIDENT
    tree = engine.context.tree.root / "models--org--model" / "refs"
    assert (tree / "v1").read_text() == repository.get_commit("v1").sha
    assert (tree / "refs" / "pr" / "1").read_text() == repository.get_commit("refs/pr/1").sha


async def test_adopt_orphan_blob_is_named(
    engine: Engine, adoptions: Adoptions, hub: Hub, foreign: ForeignCache
) -> None:
    """A blob whose snapshot was deleted belongs to nothing; it is not taken."""
    foreign.add(repository_of(hub))
    orphan = foreign.folder_of(repository_of(hub)) / "blobs" / sha256_name(b"orphan").hex
    orphan.write_bytes(b"orphan")
    job = await adopt(adoptions, foreign.root)
    assert [reason for _, reason in job.list_skipped()] == ["no snapshot of the cache needs it"]
    assert engine.context.store.find_blob(sha256_name(b"orphan")) is None


# --- without the hub ---


async def test_adopt_hub_away_takes_the_clients_own_list(
    make_cache: MakeCache, hub: Hub, foreign: ForeignCache
) -> None:
    """trees/<commit>.json is a whole list: what is missing is known, and it is not confirmed."""
    foreign.add(repository_of(hub), paths=["config.json", WEIGHTS_NAME], keeps_list=True)
    await hub.set_listening(hub=False)
    engine = await make_cache()
    adoptions = Adoptions(engine.cache)
    job = await adopt(adoptions, foreign.root)
    await adoptions.close()
    (report,) = job.snapshots.values()
    assert (report.files, report.files_here) == (len(FILES), 2)
    assert (report.is_confirmed, report.is_public) == (False, False)
    assert "not confirmed" in report.notes[0]
    assert await measure(engine) is State.PARTIAL
    tree = engine.context.tree.root / "models--org--model" / "trees"
    assert len(list(tree.iterdir())) == 1


async def test_adopt_hub_away_takes_what_lies_there_and_says_so(
    make_cache: MakeCache, hub: Hub, foreign: ForeignCache
) -> None:
    """Without any list the folder is one; clients are not told that it is all there is."""
    repository = repository_of(hub)
    foreign.add(repository, paths=["config.json", WEIGHTS_NAME])
    await hub.set_listening(hub=False)
    engine = await make_cache()
    adoptions = Adoptions(engine.cache)
    job = await adopt(adoptions, foreign.root)
    await adoptions.close()
    (report,) = job.snapshots.values()
    assert (report.files, report.files_here, report.is_confirmed) == (2, 2, False)
    assert "made from the folder" in report.notes[0]
    row = await engine.cache.librarian.find_cached(ModelReference.parse(REPO))
    assert row is not None
    entries = {entry.path: (entry.digest.hex, entry.tree_oid) for entry in row.snapshot.files}
    files = repository.get_commit("main").files
    assert entries == {path: (files[path].etag, files[path].blob_id) for path in entries}
    folder = engine.context.tree.root / "models--org--model"
    assert not (folder / "trees").exists()
    assert (folder / "snapshots" / row.snapshot.id.commit / "config.json").exists()


async def test_adopt_hub_away_copies_are_named_as_git_lfs_would(
    make_cache: MakeCache, hub: Hub, foreign: ForeignCache
) -> None:
    """The content decides the digest, the suffix its kind; the report says that it is a guess."""
    foreign.add(repository_of(hub), style="copies")
    await hub.set_listening(hub=False)
    engine = await make_cache()
    adoptions = Adoptions(engine.cache)
    job = await adopt(adoptions, foreign.root)
    again = await adopt(adoptions, foreign.root)
    await adoptions.close()
    (report,) = job.snapshots.values()
    assert any("git-lfs" in note for note in report.notes)
    row = await engine.cache.librarian.find_cached(ModelReference.parse(REPO))
    assert row is not None
    assert row.snapshot.get_file(WEIGHTS_NAME).digest == sha256_name(WEIGHTS)
    assert row.snapshot.get_file("config.json").digest.algorithm == "gitsha1"
    assert (job.counts, again.counts) == ({"linked": len(FILES)}, {"present": len(FILES)})


async def test_adopted_folder_list_is_replaced_when_the_hub_answers(
    make_cache: MakeCache, hub: Hub, foreign: ForeignCache
) -> None:
    """A list of two files is no list of four: the next who asks gets the hub's."""
    foreign.add(repository_of(hub), paths=["config.json", WEIGHTS_NAME])
    await hub.set_listening(hub=False)
    clock = ManualClock()
    engine = await make_cache(clock=clock)
    adoptions = Adoptions(engine.cache)
    await adopt(adoptions, foreign.root)
    await adoptions.close()
    assert await measure(engine) is State.RESIDENT
    await hub.set_listening(hub=True)
    clock.advance(61.0)
    resolved = await engine.cache.librarian.resolve(ModelReference.parse(REPO), ANONYMOUS)
    assert (len(resolved.snapshot.files), resolved.row.is_confirmed) == (len(FILES), True)
    assert await measure(engine) is State.PARTIAL


async def test_adopt_newer_ref_of_the_hub_stands(
    engine: Engine, adoptions: Adoptions, hub: Hub, foreign: ForeignCache
) -> None:
    """A cache that is behind does not move `main` back."""
    repository = repository_of(hub)
    foreign.add(repository)
    newer = repository.add_commit({"config.json": b"{}\n"}).sha
    await engine.find(REPO, "config.json")
    old = foreign.folder_of(repository) / "refs" / "main"
    os.utime(old, (1_000_000, 1_000_000))
    await adopt(adoptions, foreign.root)
    ref = await engine.context.index.call(
        lambda index: index.catalogue.find_ref(ModelReference.parse(REPO).repo, "main")
    )
    assert ref is not None
    assert ref.commit == newer
    assert not (engine.context.tree.root / "models--org--model" / "refs" / "main").exists()


# --- who may have it ---


@pytest.mark.parametrize("is_public", [True, False])
@pytest.mark.parametrize("keeps_list", [True, False])
@pytest.mark.parametrize("repo", [GATED, PRIVATE])
async def test_adopt_what_the_hub_refuses_is_restricted_whatever_was_said(
    engine: Engine,
    adoptions: Adoptions,
    hub: Hub,
    foreign: ForeignCache,
    repo: str,
    keeps_list: bool,
    is_public: bool,
) -> None:
    """--public is for a hub that says nothing; this one says no. With a token it can be read."""
    foreign.add(repository_of(hub, repo), keeps_list=keeps_list)
    job = await adopt(adoptions, foreign.root, is_public=is_public)
    assert job.counts == {"linked": len(FILES)}
    (report,) = job.snapshots.values()
    assert not report.is_public
    blobs = [blob for blob, _ in engine.context.store.iter_blobs()]
    assert len(blobs) == len(FILES)
    assert await engine.cache.shelf.describe_all(blobs) == []
    folder = engine.context.tree.root / f"models--{repo.replace('/', '--')}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    hub.state.stats.reset()
    expected = FILES[WEIGHTS_NAME] + b"secret"
    assert await engine.read(repo, WEIGHTS_NAME, token=TOKEN) == expected
    assert hub.state.stats.as_json()["body_bytes"] == 0


@pytest.mark.parametrize("is_public", [True, False])
@pytest.mark.parametrize("keeps_list", [True, False])
async def test_adopt_hub_away_is_public_by_the_operators_word_alone(
    make_cache: MakeCache, hub: Hub, foreign: ForeignCache, is_public: bool, keeps_list: bool
) -> None:
    """Without a word nothing is shared with peers; the word falls when the hub says no."""
    foreign.add(repository_of(hub, PRIVATE), keeps_list=keeps_list)
    await hub.set_listening(hub=False)
    clock = ManualClock()
    engine = await make_cache(clock=clock)
    adoptions = Adoptions(engine.cache)
    job = await adopt(adoptions, foreign.root, is_public=is_public)
    await adoptions.close()
    (report,) = job.snapshots.values()
    blobs = [blob for blob, _ in engine.context.store.iter_blobs()]
    assert report.is_public is is_public
    shared = await engine.cache.shelf.describe_all(blobs)
    assert len(shared) == (len(FILES) if is_public else 0)
    await hub.set_listening(hub=True)
    clock.advance(61.0)
    row = await engine.cache.librarian.find_cached(ModelReference.parse(PRIVATE))
    assert row is not None
    assert not await engine.cache.access.is_public(row.snapshot)
    assert await engine.cache.shelf.describe_all(blobs) == []


# --- jobs ---


@pytest.mark.parametrize("name", ["absent", "file", "store/hub", "store"])
async def test_start_on_what_is_no_cache_is_refused(
    adoptions: Adoptions, engine: Engine, tmp_path: Path, name: str
) -> None:
    """Before a job is made: nothing there, no folder, our own."""
    (tmp_path / "file").write_bytes(b"")
    path = tmp_path / name.replace("store", engine.root.name)
    with pytest.raises(InputError):
        await adoptions.start(AdoptionOrder(path))
    with pytest.raises(InputError):
        await adoptions.start(AdoptionOrder(path, is_watch=True))
    assert adoptions.list_all() == []
    rows = await engine.context.index.call(lambda index: index.watchlist.list_all())
    assert rows == []


@pytest.mark.parametrize("names", [[], ["model.bin"], ["hub/version.txt"]])
async def test_start_on_a_folder_without_a_cache_says_so(
    adoptions: Adoptions, tmp_path: Path, names: list[str]
) -> None:
    """Nothing to import is no success; who expects a cache there later says watch."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    with pytest.raises(InputError, match=r"No models--\* folders were found in .*; name"):
        await adoptions.start(AdoptionOrder(folder))
    assert (await adopt(adoptions, folder, is_watch=True)).state is AdoptionState.DONE


async def test_get_unknown_job_is_not_found(adoptions: Adoptions) -> None:
    """Nobody asked for that."""
    with pytest.raises(JobNotFoundError):
        adoptions.get("nope")


async def test_cancel_keeps_what_was_imported(
    make_cache: MakeCache, hub: Hub, foreign: ForeignCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file under way is dropped, those before it stay, and the next import goes on."""
    engine = await make_cache()
    adoptions = Adoptions(engine.cache)
    foreign.add(repository_of(hub))
    is_hashing, is_released = threading.Event(), threading.Event()
    real = FileWatch.note_hashed

    def note(watch: FileWatch, size_bytes: int) -> None:
        real(watch, size_bytes)
        if watch.hashed_bytes > 10 * CHUNK_BYTES:
            is_hashing.set()
            is_released.wait(20)

    with monkeypatch.context() as patch:
        patch.setattr(FileWatch, "note_hashed", note)
        job = await adoptions.start(AdoptionOrder(foreign.root))
        await eventually(is_hashing.is_set, "the weights are hashed")
        await eventually(lambda: job.files_done == len(FILES) - 1, "the small files are done")
        cancelling = asyncio.create_task(adoptions.cancel(job.id))
        await eventually(job.stop.is_set, "the job is told to stop")
        is_released.set()
        await cancelling
    assert job.state is AdoptionState.CANCELLED
    assert job.counts == {"linked": len(FILES) - 1}
    store = engine.context.store
    assert store.find_blob(sha256_name(WEIGHTS)) is None
    assert list((store.root / "blobs" / ".adopting").iterdir()) == []
    assert await measure(engine) is State.PARTIAL
    again = await adopt(adoptions, foreign.root)
    assert again.counts == {"linked": 1, "present": len(FILES) - 1}
    assert await measure(engine) is State.RESIDENT
    await adoptions.close()


async def test_adopt_failing_disk_fails_the_job_and_keeps_the_rest(
    engine: Engine,
    adoptions: Adoptions,
    hub: Hub,
    foreign: ForeignCache,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Our own disk: the job says so, and importing again goes on."""
    foreign.add(repository_of(hub))

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", fail)
        job = await adopt(adoptions, foreign.root)
    assert job.state is AdoptionState.FAILED
    assert isinstance(job.error, StoreError)
    again = await adopt(adoptions, foreign.root)
    assert again.state is AdoptionState.DONE
    assert await measure(engine) is State.RESIDENT


async def test_adopt_without_room_refers_and_serves(
    engine: Engine,
    adoptions: Adoptions,
    hub: Hub,
    foreign: ForeignCache,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No links and no room: read where it lies; when it goes, it is fetched as if never here."""
    foreign.add(repository_of(hub))

    def fail(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", fail)
        settings = engine.context.settings
        engine.context.settings = replace(settings, free_floor_bytes=1 << 50)
        job = await adopt(adoptions, foreign.root)
        engine.context.settings = settings
    assert job.counts == {"referred": len(FILES)}
    assert await engine.read(REPO, WEIGHTS_NAME) == WEIGHTS
    assert hub.state.stats.as_json()["body_bytes"] == 0
    shutil.rmtree(foreign.root)
    assert await measure(engine) is State.ABSENT
    assert await engine.read(REPO, WEIGHTS_NAME) == WEIGHTS
    assert hub.state.stats.as_json()["body_bytes"] == len(WEIGHTS)


async def test_adopted_file_that_its_owner_changes_is_noticed(
    engine: Engine, adoptions: Adoptions, hub: Hub, foreign: ForeignCache
) -> None:
    """Somebody writes into the linked file: our copy of the name goes, nobody gets a wrong byte."""
    foreign.add(repository_of(hub))
    await adopt(adoptions, foreign.root)
    blob = foreign.folder_of(repository_of(hub)) / "blobs" / sha256_name(WEIGHTS).hex
    with blob.open("r+b") as file:
        file.seek(CHUNK_BYTES)
        file.write(b"changed by its owner")
    changed = blob.read_bytes()
    assert await engine.read(REPO, WEIGHTS_NAME) == WEIGHTS
    assert blob.read_bytes() == changed
    assert not engine.context.store.path_of(sha256_name(WEIGHTS)).samefile(blob)


async def test_adopted_file_that_rots_is_named_when_it_is_imported_again(
    engine: Engine, adoptions: Adoptions, hub: Hub, foreign: ForeignCache
) -> None:
    """A damage that left size and time as they were is no reason to call a file present."""
    foreign.add(repository_of(hub))
    await adopt(adoptions, foreign.root)
    blob = foreign.folder_of(repository_of(hub)) / "blobs" / sha256_name(WEIGHTS).hex
    before = blob.stat()
    with blob.open("r+b") as file:
        file.seek(CHUNK_BYTES)
        file.write(b"rotten")
    os.utime(blob, ns=(before.st_atime_ns, before.st_mtime_ns))
    job = await adopt(adoptions, foreign.root)
    assert job.counts == {"present": len(FILES) - 1}
    ((path, reason),) = job.list_skipped()
    assert path.endswith(WEIGHTS_NAME)
    assert "not what its name says" in reason
    assert await measure(engine) is State.CORRUPT


async def test_adopt_while_it_is_downloaded_leaves_the_download_alone(
    engine: Engine, adoptions: Adoptions, hub: Hub, foreign: ForeignCache
) -> None:
    """Two must not fill one blob: the import says so, and the next one finds it here."""
    foreign.add(repository_of(hub))
    hub.state.faults.set_over_base({"rate_bytes_per_s": 60_000})
    fetch = await engine.start_fetch(REPO, WEIGHTS_NAME)
    job = await adopt(adoptions, foreign.root)
    assert [reason for _, reason in job.list_skipped()] == ["it is being downloaded right now"]
    hub.state.faults.set_over_base({})
    await fetch.result()
    again = await adopt(adoptions, foreign.root)
    assert again.counts == {"present": len(FILES)}


# --- watches ---


@pytest.fixture
def quick_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at watched folders all the time."""
    monkeypatch.setattr(adoption_module, "WATCH_INTERVAL_S", SHORT_S)
    monkeypatch.setattr(adoption_module, "WATCH_PAUSE_FACTOR", 0.0)


@pytest.mark.usefixtures("quick_watch")
async def test_watch_adopts_what_others_download_later(
    engine: Engine, adoptions: Adoptions, hub: Hub, foreign: ForeignCache
) -> None:
    """File by file, as a client makes them; unfinished ones wait; nothing is hashed twice."""
    repository = repository_of(hub)
    job = await adopt(adoptions, foreign.root, is_watch=True)
    assert (job.state, job.files_total) == (AdoptionState.DONE, 0)
    half = foreign.folder_of(repository) / "blobs" / f"{sha256_name(WEIGHTS).hex}.incomplete"
    foreign.add(repository, paths=["config.json"])
    half.write_bytes(WEIGHTS[:1000])
    await eventually(lambda: job.counts == {"linked": 1}, "the first file is adopted")
    half.unlink()
    foreign.add(repository)
    await eventually(lambda: job.counts["linked"] == len(FILES), "all files are adopted")
    await eventually(lambda: job.state is AdoptionState.DONE, "the look ends")
    assert await measure(engine) is State.RESIDENT
    assert job.list_skipped() == []
    assert job.bytes_total <= MODEL_BYTES + 2 * len(FILES["config.json"])


@pytest.mark.usefixtures("quick_watch")
async def test_watch_hashes_a_wrong_file_once(
    adoptions: Adoptions, hub: Hub, foreign: ForeignCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged blob stays named at every look without being read again; mended it is taken."""
    repository = repository_of(hub)
    foreign.add(repository)
    blob = foreign.folder_of(repository) / "blobs" / sha256_name(WEIGHTS).hex
    blob.write_bytes(b"?" * len(WEIGHTS))
    hashed: list[int] = []
    monkeypatch.setattr(FileWatch, "note_hashed", lambda _, size: hashed.append(size))
    job = await adopt(adoptions, foreign.root, is_watch=True)
    assert len(job.list_skipped()) == 1
    first = sum(hashed)
    foreign.add(repository, "main", paths=["config.json"])
    (foreign.folder_of(repository) / "refs" / "v9").write_text(repository.get_commit("main").sha)
    await eventually(lambda: job.counts["present"] > 0, "the snapshot is looked at again")
    await eventually(lambda: job.state is AdoptionState.DONE, "the look ends")
    assert sum(hashed) == first
    assert len(job.list_skipped()) == 1
    blob.write_bytes(WEIGHTS)
    await eventually(lambda: not job.list_skipped(), "the mended file is adopted")


@pytest.mark.usefixtures("quick_watch")
async def test_watch_survives_a_restart_and_ends_when_told(
    make_cache: MakeCache, hub: Hub, foreign: ForeignCache
) -> None:
    """A new daemon on the same store goes on watching under the same id, until it is told."""
    engine = await make_cache("w")
    adoptions = Adoptions(engine.cache)
    await adoptions.open()
    job = await adopt(adoptions, foreign.root, is_watch=True)
    await adoptions.close()
    assert job.state is AdoptionState.CANCELLED
    await engine.close()

    engine = await make_cache("w")
    adoptions = Adoptions(engine.cache)
    await adoptions.open()
    (watch,) = adoptions.list_all()
    assert (watch.id, watch.order) == (job.id, AdoptionOrder(foreign.root, is_watch=True))
    foreign.add(repository_of(hub))
    await eventually(lambda: watch.counts["linked"] == len(FILES), "the new files are adopted")
    assert (await adoptions.cancel(watch.id)).state is AdoptionState.CANCELLED
    await adoptions.close()
    adoptions = Adoptions(engine.cache)
    await adoptions.open()
    assert adoptions.list_all() == []
    await adoptions.close()


@pytest.mark.usefixtures("quick_watch")
async def test_watch_of_a_folder_that_goes_waits_for_it(
    adoptions: Adoptions, hub: Hub, foreign: ForeignCache
) -> None:
    """An unplugged disk is an error that is shown, and no reason to stop."""
    job = await adopt(adoptions, foreign.root, is_watch=True)
    foreign.root.rename(foreign.root.with_name("gone"))
    await eventually(lambda: job.state is AdoptionState.FAILED, "the loss is shown")
    assert isinstance(job.error, InputError)
    foreign.root.with_name("gone").rename(foreign.root)
    foreign.add(repository_of(hub))
    await eventually(lambda: job.counts["linked"] == len(FILES), "the watch goes on")
    await eventually(lambda: job.error is None, "the error is over")


async def test_watch_twice_is_one_watch_that_looks_at_once(
    adoptions: Adoptions, hub: Hub, foreign: ForeignCache
) -> None:
    """Asking again does not wait for the interval."""
    job = await adopt(adoptions, foreign.root, is_watch=True)
    foreign.add(repository_of(hub))
    again = await adopt(adoptions, foreign.root, is_watch=True)
    assert again is job
    assert job.counts == {"linked": len(FILES)}
    assert adoptions.list_all() == [job]


async def test_open_removes_what_a_crash_left(
    engine: Engine, hub: Hub, foreign: ForeignCache
) -> None:
    """A temporary link of an adoption that was killed; the foreign file keeps its own name."""
    foreign.add(repository_of(hub))
    blob = foreign.folder_of(repository_of(hub)) / "blobs" / sha256_name(WEIGHTS).hex
    staging = engine.context.store.root / "blobs" / ".adopting"
    staging.mkdir()
    os.link(blob, staging / "left")
    adoptions = Adoptions(engine.cache)
    await adoptions.open()
    assert list(staging.iterdir()) == []
    assert blob.read_bytes() == WEIGHTS
    await adoptions.close()


@pytest.mark.parametrize(("quota_files", "copied"), [(2, 2), (None, 4)])
async def test_adopt_copies_as_far_as_the_quota_goes(
    make_cache: MakeCache,
    hub: Hub,
    foreign: ForeignCache,
    monkeypatch: pytest.MonkeyPatch,
    quota_files: int | None,
    copied: int,
) -> None:
    """Copies take room of ours: what the quota has no room for is referred to."""
    files = {f"{n}.bin": bytes([n]) * 1_000_000 for n in range(4)}
    repository = Repository("org/even", files)
    hub.state.catalog.add(repository)
    foreign.add(repository)
    quota_bytes = None if quota_files is None else quota_files * 1_010_000
    engine = await make_cache("quota", quota_bytes=quota_bytes)
    adoptions = Adoptions(engine.cache)

    def fail(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", fail)
        job = await adopt(adoptions, foreign.root)
    await adoptions.close()
    assert job.counts["copied"] + job.counts["reflinked"] == copied
    assert job.counts["referred"] == len(files) - copied
    assert await measure(engine, "org/even") is State.RESIDENT


async def test_adopted_blob_without_a_snapshot_yet_is_kept_by_gc(
    make_cache: MakeCache, hub: Hub, foreign: ForeignCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder's list is made when all of it is hashed; until then gc must not take the files."""
    foreign.add(repository_of(hub))
    await hub.set_listening(hub=False)
    engine = await make_cache("gc")
    adoptions = Adoptions(engine.cache)
    is_hashing, is_released = threading.Event(), threading.Event()

    def note(watch: FileWatch, size_bytes: int) -> None:
        watch.hashed_bytes += size_bytes
        if watch.hashed_bytes > 10 * CHUNK_BYTES:
            is_hashing.set()
            is_released.wait(20)

    with monkeypatch.context() as patch:
        patch.setattr(FileWatch, "note_hashed", note)
        job = await adoptions.start(AdoptionOrder(foreign.root))
        await eventually(is_hashing.is_set, "the weights are hashed")
        await eventually(lambda: job.files_done == len(FILES) - 1, "the small files are done")
        await engine.cache.space.gc(is_dry_run=False)
        is_released.set()
        await eventually(lambda: job.state in FINAL_STATES, "the adoption's end")
    await adoptions.close()
    assert await measure(engine) is State.RESIDENT
    assert len((await engine.cache.space.gc(is_dry_run=False)).steps) == 0
    assert await measure(engine) is State.RESIDENT


@pytest.mark.parametrize(("repo", "mode"), [(REPO, 0o444), (PRIVATE, 0o400)])
async def test_adopted_file_whose_cache_was_deleted_becomes_ours(
    engine: Engine, adoptions: Adoptions, hub: Hub, foreign: ForeignCache, repo: str, mode: int
) -> None:
    """The last other name is gone: gc counts the room, and the mode says who may have it."""
    foreign.add(repository_of(hub, repo), style="shared")
    await adopt(adoptions, foreign.root)
    store = engine.context.store
    await engine.cache.space.gc(is_dry_run=False)
    blobs = [blob for blob, _ in store.iter_blobs()]
    assert all(store.is_foreign(blob) for blob in blobs)
    assert (await engine.cache.space.measure()).own_bytes == 0
    shutil.rmtree(foreign.root)
    await engine.cache.space.gc(is_dry_run=False)
    assert [blob for blob, _ in store.iter_blobs()] == blobs
    assert not any(store.is_foreign(blob) for blob in blobs)
    assert {stat.S_IMODE(store.path_of(blob).stat().st_mode) for blob in blobs} == {mode}
    assert [store.is_world_readable(blob) for blob in blobs] == [repo == REPO] * len(blobs)
    assert (await engine.cache.space.measure()).own_bytes >= MODEL_BYTES
    hub.state.stats.reset()
    row = await engine.cache.librarian.find_cached(ModelReference.parse(repo))
    assert row is not None
    content = await engine.read(repo, WEIGHTS_NAME, token=TOKEN)
    assert content.startswith(WEIGHTS)
    assert hub.state.stats.as_json()["body_bytes"] == 0


@pytest.mark.parametrize("how", ["linked", "referred"])
async def test_adopted_snapshot_that_is_removed_leaves_the_cache_as_it_was(
    engine: Engine,
    adoptions: Adoptions,
    hub: Hub,
    foreign: ForeignCache,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    """rm takes our names only, all of them; the bytes and the names of the cache stay."""
    foreign.add(repository_of(hub))
    before = snapshot_of(foreign.root)

    def fail(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    settings = engine.context.settings
    with monkeypatch.context() as patch:
        if how == "referred":
            patch.setattr(os, "link", fail)
            engine.context.settings = replace(settings, free_floor_bytes=1 << 50)
        job = await adopt(adoptions, foreign.root)
        engine.context.settings = settings
    assert job.counts == {how: len(FILES)}
    tree = engine.context.tree.snapshot_path(next(iter(job.snapshots)))
    assert (tree / WEIGHTS_NAME).read_bytes() == WEIGHTS
    (snapshot_id,) = job.snapshots
    await engine.cache.space.remove(snapshot_id)
    assert snapshot_of(foreign.root) == before
    assert {path.stat().st_nlink for path in foreign.root.rglob("blobs/*")} == {1}
    found = [*engine.root.glob("blobs/*/*/*"), *engine.root.glob("hub/*")]
    assert found == []
    again = await adopt(adoptions, foreign.root)
    assert again.counts == {"linked": len(FILES)}


async def test_adopt_two_at_once_hash_and_place_each_file_once(
    engine: Engine,
    adoptions: Adoptions,
    hub: Hub,
    foreign: ForeignCache,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A watch and an import of the same folder: who comes second finds it here."""
    foreign.add(repository_of(hub))
    hashed: list[int] = []
    real = FileWatch.note_hashed

    def note(watch: FileWatch, size_bytes: int) -> None:
        hashed.append(size_bytes)
        real(watch, size_bytes)

    monkeypatch.setattr(FileWatch, "note_hashed", note)
    jobs = [await adoptions.start(AdoptionOrder(foreign.root)) for _ in range(2)]
    for job in jobs:
        await eventually(lambda job=job: job.state in FINAL_STATES, "the end")  # type: ignore[misc]
    assert sum(hashed) == MODEL_BYTES
    assert jobs[0].counts["linked"] + jobs[1].counts["linked"] == len(FILES)
    assert jobs[0].counts["present"] + jobs[1].counts["present"] == len(FILES)
    assert await measure(engine) is State.RESIDENT
