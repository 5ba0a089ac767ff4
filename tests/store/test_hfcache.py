"""
Owns the tests of reading caches of other programs: real habits, and hostile folders.

Knows nothing of what is done with what was read.
Invariants: reading never raises for what a cache holds, and changes nothing.
Source: store/hfcache.py; huggingface_hub's cache layout.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pcache.core.digest import BlobDigest
from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.errors import InputError
from p2pcache.store import hfcache
from p2pcache.store.hfcache import (
    FoundCache,
    FoundSnapshot,
    check_folder,
    parse_listing,
    read_cache,
)
from tests.hfcaches import ForeignCache, make_listing
from tests.hub import Repository

FILES = {
    "config.json": b"{}\n",
    "model.safetensors": b"w" * 5000,
    "deep/er/a+b c%20#?.txt": b"odd name\n",
    "empty.txt": b"",
}
REPO = RepoId("hf", "models", "org/model")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NOWHERE = Path("/nowhere")


@pytest.fixture
def foreign(tmp_path: Path) -> ForeignCache:
    """Make an empty cache."""
    return ForeignCache(tmp_path / "hf" / "hub")


@pytest.fixture
def repository() -> Repository:
    """Make a repository with a tag."""
    made = Repository("org/model", FILES)
    made.add_tag("v1")
    return made


def only(found: FoundCache) -> FoundSnapshot:
    """Return the one snapshot that was found."""
    (snapshot,) = found.snapshots
    return snapshot


def names_of(snapshot: FoundSnapshot) -> dict[str, str]:
    """Return path and digest of each file; '' without one."""
    return {path: str(file.name or "") for path, file in snapshot.files.items()}


def etags_of(repository: Repository, revision: str = "main") -> dict[str, str]:
    """Return path and digest as the hub has them."""
    files = repository.get_commit(revision).files
    return {path: str(BlobDigest.from_etag(file.etag)) for path, file in files.items()}


# --- what real caches hold ---


def test_read_links_into_blobs_names_every_file(
    foreign: ForeignCache, repository: Repository
) -> None:
    """The usual form: links of a snapshot lead to blobs that are named by their etag."""
    foreign.add(repository)
    foreign.add(repository, "v1")
    foreign.add(repository, "refs/heads/main")
    found = read_cache(foreign.root, NOWHERE)
    snapshot = only(found)
    assert snapshot.id == SnapshotId(REPO, repository.get_commit("main").sha)
    assert names_of(snapshot) == etags_of(repository)
    assert snapshot.listing is None
    assert {ref.revision for ref in found.refs[REPO]} == {"main", "v1", "refs/heads/main"}
    assert {ref.commit for ref in found.refs[REPO]} == {snapshot.id.commit}
    assert {str(name) for name in found.blobs} == set(etags_of(repository).values())
    assert found.skipped == {}
    folder = foreign.folder_of(repository)
    file = snapshot.files["config.json"]
    assert file.path == (folder / "blobs" / repository.get_commit("main").files["config.json"].etag)
    assert file.identity.size_bytes == len(FILES["config.json"])
    assert file.shown == f"models--org--model/snapshots/{snapshot.id.commit}/config.json"


@pytest.mark.parametrize("where", ["root", "above", "repo"])
def test_read_takes_a_root_its_parent_or_one_repository(
    foreign: ForeignCache, repository: Repository, where: str
) -> None:
    """HF_HUB_CACHE, HF_HOME, or one models-- folder."""
    foreign.add(repository)
    paths = {
        "root": foreign.root,
        "above": foreign.root.parent,
        "repo": foreign.folder_of(repository),
    }
    assert names_of(only(read_cache(paths[where], NOWHERE))) == etags_of(repository)


def test_read_repository_folder_behind_a_link(
    foreign: ForeignCache, repository: Repository, tmp_path: Path
) -> None:
    """People move single models to larger disks and leave a link; the link's name counts."""
    foreign.add(repository)
    folder = foreign.folder_of(repository)
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
    for path in (foreign.root, folder):
        assert names_of(only(read_cache(path, NOWHERE))) == etags_of(repository)


def test_read_blobs_behind_links_are_named_by_their_etag(
    foreign: ForeignCache, repository: Repository
) -> None:
    """New clients keep blobs in a store for all repositories, under another hash."""
    foreign.add(repository, style="shared")
    found = read_cache(foreign.root, NOWHERE)
    snapshot = only(found)
    assert names_of(snapshot) == etags_of(repository)
    weights = snapshot.files["model.safetensors"]
    assert weights.path.parent.parent == foreign.root / "blobs"
    assert not weights.path.is_symlink()
    assert found.skipped == {}


def test_read_copies_have_no_name(foreign: ForeignCache, repository: Repository) -> None:
    """Where links cannot be made the files are in the snapshot itself."""
    foreign.add(repository, style="copies")
    found = read_cache(foreign.root, NOWHERE)
    assert names_of(only(found)) == dict.fromkeys(FILES, "")
    assert found.blobs == {}


def test_read_keeps_the_clients_file_list(foreign: ForeignCache, repository: Repository) -> None:
    """trees/<commit>.json says what the commit has, Xet or not."""
    foreign.add(repository, paths=["config.json"], keeps_list=True)
    listing = only(read_cache(foreign.root, NOWHERE)).listing
    assert listing is not None
    commit = repository.get_commit("main")
    assert {
        (entry.path, entry.size_bytes, entry.digest.hex, entry.tree_oid) for entry in listing.files
    } == {(path, file.size_bytes, file.etag, file.blob_id) for path, file in commit.files.items()}


def test_read_data_sets_and_spaces(foreign: ForeignCache) -> None:
    """The folder's first part is the kind; a name without an owner is one."""
    repositories = [
        Repository("org/set", FILES, kind="datasets"),
        Repository("org/space", FILES, kind="spaces"),
        Repository("gpt2", FILES),
    ]
    for repository in repositories:
        foreign.add(repository)
    found = {str(s.id.repo) for s in read_cache(foreign.root, NOWHERE).snapshots}
    assert found == {"datasets/org/set", "spaces/org/space", "gpt2"}


def test_read_passes_over_what_clients_leave(foreign: ForeignCache, repository: Repository) -> None:
    """Unfinished downloads, locks, records of absent files: neither read nor complained of."""
    foreign.add(repository)
    folder = foreign.folder_of(repository)
    etag = "e" * 64
    for name in (f"{etag}.incomplete", f"{etag}.0a1b2c3d.incomplete", f"{etag}.lock", "tmp_12"):
        (folder / "blobs" / name).write_bytes(b"half")
    absent = folder / ".no_exist" / COMMIT / "adapter_config.json"
    absent.parent.mkdir(parents=True)
    absent.touch()
    (foreign.root / "version.txt").write_text("1")
    found = read_cache(foreign.root, NOWHERE)
    assert names_of(only(found)) == etags_of(repository)
    assert found.skipped == {}
    assert BlobDigest("sha256", etag) not in found.blobs


def test_read_attributes_say_what_is_lfs(foreign: ForeignCache) -> None:
    """A repository's own patterns, where it has some; the hub's default else."""
    attributes = {".gitattributes": b"*.txt filter=lfs\n"}
    foreign.add(Repository("org/model", {**FILES, **attributes}), style="copies")
    assert only(read_cache(foreign.root, NOWHERE)).patterns == ("*.txt",)
    shutil.rmtree(foreign.root)
    foreign = ForeignCache(foreign.root)
    foreign.add(Repository("org/model", FILES), style="copies")
    assert "*.safetensors" in only(read_cache(foreign.root, NOWHERE)).patterns


# --- what is damaged or hostile ---


def test_read_dangling_and_circular_links_are_named(
    foreign: ForeignCache, repository: Repository
) -> None:
    """The rest of the snapshot is read all the same."""
    snapshot = foreign.add(repository)
    commit = repository.get_commit("main")
    (foreign.folder_of(repository) / "blobs" / commit.files["config.json"].etag).unlink()
    (snapshot / "circle").symlink_to("circle")
    (snapshot / "a").symlink_to("b")
    (snapshot / "b").symlink_to("a")
    (snapshot / "folder").symlink_to(".")
    found = read_cache(foreign.root, NOWHERE)
    prefix = f"models--org--model/snapshots/{commit.sha}"
    assert set(names_of(only(found))) == set(FILES) - {"config.json"}
    assert "gone" in found.skipped[f"{prefix}/config.json"]
    assert "no regular file" in found.skipped[f"{prefix}/folder"]
    for name in ("circle", "a", "b"):
        assert f"{prefix}/{name}" in found.skipped


def test_read_a_link_that_leads_out_of_the_cache_is_not_followed(
    foreign: ForeignCache, repository: Repository, tmp_path: Path
) -> None:
    """Only a link into blobs/ with an etag says what its content is; others may lead anywhere."""
    snapshot = foreign.add(repository)
    (tmp_path / "mine").write_bytes(b"mine")
    (snapshot / "mine.bin").symlink_to(tmp_path / "mine")
    (tmp_path / ("a" * 64)).write_bytes(b"mine")
    (snapshot / "other.bin").symlink_to(tmp_path / ("a" * 64))
    found = read_cache(foreign.root, NOWHERE)
    assert set(only(found).files) == set(FILES)
    assert set(map(Path, found.skipped)) == {
        (snapshot / name).relative_to(foreign.root) for name in ("mine.bin", "other.bin")
    }
    assert all("leads out" in reason for reason in found.skipped.values())


def test_read_fifos_folders_and_devices_are_no_files(
    foreign: ForeignCache, repository: Repository
) -> None:
    """Nothing that is not a regular file is opened: a FIFO would hold us up for ever."""
    snapshot = foreign.add(repository)
    folder = foreign.folder_of(repository)
    os.mkfifo(snapshot / "fifo")
    os.mkfifo(folder / "blobs" / ("f" * 64))
    os.mkfifo(folder / "refs" / "fifo")
    (folder / "trees").mkdir()
    os.mkfifo(folder / "trees" / f"{repository.get_commit('main').sha}.json")
    (snapshot / "null").symlink_to("/dev/null")
    found = read_cache(foreign.root, NOWHERE)
    assert set(names_of(only(found))) == set(FILES)
    assert len(found.skipped) == 5
    assert set(found.skipped.values()) == {"it is no regular file"}


@pytest.mark.parametrize(
    "name",
    [
        "models--org--..",
        "models--..--..--etc",
        "models--",
        "models--a--b--c",
        "datasets--org--na me",
        "models--org--x\n",
    ],
)
def test_read_folder_that_no_repository_has_is_named(
    foreign: ForeignCache, repository: Repository, name: str
) -> None:
    """A path is built only from what was parsed; the others are read."""
    foreign.add(repository)
    (foreign.root / name / "snapshots" / COMMIT).mkdir(parents=True)
    found = read_cache(foreign.root, NOWHERE)
    assert only(found).id.repo == REPO
    assert list(found.skipped) == [name]


def test_read_hostile_names_inside_are_named(foreign: ForeignCache, repository: Repository) -> None:
    """Names that no repository can have: control characters, bytes that are no text, no commit."""
    snapshot = foreign.add(repository)
    folder = foreign.folder_of(repository)
    (snapshot / "line\nfeed").write_bytes(b"")
    (snapshot / "back\\slash").write_bytes(b"")
    Path(os.fsdecode(os.fsencode(snapshot) + b"/not\xfftext")).write_bytes(b"")
    (folder / "snapshots" / "main").mkdir()
    (folder / "refs" / "bad ref").write_text(COMMIT)
    (folder / "refs" / "no-commit").write_text("../../../etc/passwd")
    found = read_cache(foreign.root, NOWHERE)
    assert set(names_of(only(found))) == set(FILES)
    assert [ref.revision for ref in found.refs[REPO]] == ["main"]
    assert len(found.skipped) == 6
    for shown in found.skipped:
        shown.encode()
    json.dumps(found.skipped)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b'{"format_version": 1, "files": []}',
        b'{"format_version": 2, "files": {}}',
        b'{"format_version": 1, "files": {"../x": {"size": 1, "blob_id": "%s"}}}' % (b"a" * 40),
        b'{"format_version": 1, "files": {"x": {"size": -1, "blob_id": "%s"}}}' % (b"a" * 40),
        b'{"format_version": 1, "files": {"x": {"size": 1, "blob_id": "short"}}}',
        b'{"format_version": 1, "files": {"x": 7}}',
        b'{"format_version": 1, "files": {"x": {"size": 1, "blob_id": "%s", "lfs_sha256": 7}}}'
        % (b"a" * 40),
        b"[" * 100_000,
    ],
)
def test_read_file_list_of_another_form_is_not_used(
    foreign: ForeignCache, repository: Repository, text: bytes
) -> None:
    """A list is read whole or not at all; the files are read without it."""
    foreign.add(repository)
    commit = repository.get_commit("main").sha
    path = foreign.folder_of(repository) / "trees" / f"{commit}.json"
    path.parent.mkdir()
    path.write_bytes(text)
    found = read_cache(foreign.root, NOWHERE)
    assert only(found).listing is None
    assert list(found.skipped) == [f"models--org--model/trees/{commit}.json"]
    assert names_of(only(found)) == etags_of(repository)


def test_parse_listing_reads_what_clients_write(repository: Repository) -> None:
    """The sizes of LFS files are those of the content, whichever field has them."""
    commit = repository.get_commit("main")
    message = json.loads(make_listing(commit))
    snapshot = parse_listing(SnapshotId(REPO, commit.sha), message)
    assert snapshot.get_file("model.safetensors").size_bytes == len(FILES["model.safetensors"])
    del message["files"]["model.safetensors"]["lfs_size"]
    assert parse_listing(SnapshotId(REPO, commit.sha), message) == snapshot


def test_read_stops_in_a_folder_without_end(
    foreign: ForeignCache, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read by then counts, and the report says that it is not all."""
    monkeypatch.setattr(hfcache, "NAMES_MAX", 3)
    foreign.add(repository)
    found = read_cache(foreign.root, NOWHERE)
    assert "the rest was not read" in found.skipped[str(foreign.root)]


def test_read_file_list_without_end_is_not_used(
    foreign: ForeignCache, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No client writes such a list."""
    monkeypatch.setattr(hfcache, "LISTING_BYTES_MAX", 100)
    foreign.add(repository, keeps_list=True)
    found = read_cache(foreign.root, NOWHERE)
    assert only(found).listing is None
    assert len(found.skipped) == 1


def test_read_file_that_is_too_large_is_named(
    foreign: ForeignCache, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond what a layout can say."""
    monkeypatch.setattr(hfcache, "BLOB_SIZE_BYTES_MAX", 1000)
    foreign.add(repository)
    found = read_cache(foreign.root, NOWHERE)
    assert set(only(found).files) == set(FILES) - {"model.safetensors"}
    assert any("larger" in reason for reason in found.skipped.values())


def test_read_attributes_that_cannot_be_read_are_the_default(
    foreign: ForeignCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file itself is refused later, with the reason."""
    attributes = {".gitattributes": b"*.txt filter=lfs\n"}
    foreign.add(Repository("org/model", {**FILES, **attributes}), style="copies")

    def fail(path: str, flags: int) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(hfcache, "_open_quickly", fail)
    assert "*.safetensors" in only(read_cache(foreign.root, NOWHERE)).patterns
    monkeypatch.undo()
    monkeypatch.setattr(hfcache, "ATTRIBUTES_BYTES_MAX", 3)
    assert "*.safetensors" in only(read_cache(foreign.root, NOWHERE)).patterns


def test_read_repository_through_a_link_of_another_name(
    foreign: ForeignCache, repository: Repository, tmp_path: Path
) -> None:
    """What the link leads to has the name then."""
    foreign.add(repository)
    (tmp_path / "favourite").symlink_to(foreign.folder_of(repository))
    assert names_of(only(read_cache(tmp_path / "favourite", NOWHERE))) == etags_of(repository)


def test_read_closed_folder_inside_a_repository_is_named(foreign: ForeignCache) -> None:
    """Its refs and blobs are read all the same."""
    repository = Repository("org/model", FILES)
    foreign.add(repository)
    folder = foreign.folder_of(repository)
    with as_nobody(foreign.root, folder / "snapshots"):
        found = read_cache(foreign.root, NOWHERE)
    assert (found.snapshots, len(found.blobs)) == ([], len(FILES))
    assert found.skipped == {"models--org--model/snapshots": "permission denied"}


def test_read_folder_that_may_not_be_read_is_named(foreign: ForeignCache) -> None:
    """One closed repository does not hide the others."""
    for name in ("org/closed", "org/open"):
        foreign.add(Repository(name, FILES))
    closed = foreign.root / "models--org--closed"

    with as_nobody(foreign.root, closed):
        found = read_cache(foreign.root, NOWHERE)
    assert only(found).id.repo.name == "org/open"
    assert found.skipped == {"models--org--closed": "permission denied"}


class as_nobody:  # noqa: N801 - reads as a word
    """Be another user inside the block, who may reach all of a cache but one folder of it."""

    def __init__(self, root: Path, closed: Path) -> None:
        self._root = root
        self._closed = closed

    def __enter__(self) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root can be somebody else")
        for folder in (self._root, *self._root.parents):
            if folder.stat().st_uid == 0 and folder != Path("/"):
                folder.chmod(folder.stat().st_mode | 0o055)
        self._closed.chmod(0o700)
        os.seteuid(65534)

    def __exit__(self, *_: object) -> None:
        os.seteuid(0)


# --- which folders are taken ---


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Make a folder outside pytest's closed one."""
    folder = Path(tempfile.mkdtemp())
    yield folder
    shutil.rmtree(folder)


def test_check_folder_refuses_what_cannot_be_a_cache(tmp_path: Path) -> None:
    """Relative, absent, a file, a circle, a name that no system takes."""
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "circle").symlink_to("circle")
    for path in (
        Path("relative"),
        tmp_path / "absent",
        tmp_path / "file",
        tmp_path / "circle",
        tmp_path / ("x" * 300),
        tmp_path / "nul\0",
    ):
        with pytest.raises(InputError):
            check_folder(path, NOWHERE)


def test_check_folder_refuses_our_own_store(
    foreign: ForeignCache, repository: Repository, tmp_path: Path
) -> None:
    """Adopting ourselves would make our own files somebody else's."""
    own = tmp_path / "store"
    ForeignCache(own / "hub").add(repository)
    (tmp_path / "link").symlink_to(own / "hub")
    for path in (own, own / "hub", tmp_path / "link", own / "hub" / "models--org--model"):
        with pytest.raises(InputError, match="own store"):
            check_folder(path, own)
    (foreign.root / "models--org--model").symlink_to(own / "hub" / "models--org--model")
    found = read_cache(foreign.root, own)
    assert found.snapshots == []
    assert found.skipped == {"models--org--model": "it is in p2pcache's own store"}


def test_read_files_that_lie_in_our_store_are_not_taken(
    foreign: ForeignCache, repository: Repository, tmp_path: Path
) -> None:
    """A cache whose links lead into the store has nothing that is not here."""
    own = tmp_path / "store"
    (own / "blobs").mkdir(parents=True)
    snapshot = foreign.add(repository, paths=["config.json"])
    (own / "blobs" / "secret").write_bytes(b"secret")
    (snapshot / "stolen").symlink_to(own / "blobs" / "secret")
    found = read_cache(foreign.root, own)
    assert set(only(found).files) == {"config.json"}
    assert list(found.skipped.values()) == ["it is in p2pcache's own store"]


def test_check_folder_empty_cache_is_one(tmp_path: Path) -> None:
    """Who watches begins before the first download."""
    folder = tmp_path / "hub"
    folder.mkdir()
    assert check_folder(folder, NOWHERE) == folder
    assert read_cache(folder, NOWHERE).snapshots == []
