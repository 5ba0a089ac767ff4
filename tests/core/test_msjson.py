"""
Owns the tests of core.msjson.

Knows nothing of HTTP.
Invariants: a listing is read whole or refused with the hub as the one to blame.
Source: core/msjson.py; docs/reference/modelscope-dialect.md.
"""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import BLOB_SIZE_BYTES_MAX
from p2pcache.core.lfs import make_pointer_oid
from p2pcache.core.msjson import (
    CODE_NOT_FOUND,
    Envelope,
    FileList,
    find_commit,
    name_listing,
    read_entries,
    read_envelope,
    read_files,
)
from p2pcache.core.refs import RepoId, SnapshotId, is_commit, parse_path
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.errors import InputError, UpstreamProtocolError
from tests.samples import COMMIT

SHA = "3a" * 32
DIGEST = BlobDigest("sha256", SHA)
FILE: dict[str, object] = {"Path": "a/b.bin", "Type": "blob", "Size": 7, "Sha256": SHA}
FOLDER: dict[str, object] = {"Path": "a", "Name": "a", "Type": "tree", "Size": 0, "Sha256": ""}
ENTRY = FileEntry("a/b.bin", 7, DIGEST, make_pointer_oid(DIGEST, 7))
# What is no text, and no number of bytes.
NO_TEXTS: list[object] = [None, 7, 1.5, True, [], {}, ["a"]]
TOO_LARGE = BLOB_SIZE_BYTES_MAX + 1
NO_SIZES: list[object] = [None, -1, 1.0, 1e300, float("nan"), "7", True, [], TOO_LARGE, 10**99]
# What leads elsewhere, or is no name on a file system.
BAD_PATHS = [
    *("..", "../x", "a/../../x", "/etc/passwd", "a//b", "a/", ".", "a/./b", "a\\b", "a\0b", "a\nb"),
    *("a\ud800", "x" * 256, "é" * 128, "/".join(["abc"] * 1100)),
]


def name_case(value: object) -> str:
    """Name a test by the value that it is about."""
    return ascii(value)[:20]


# --- envelopes ---


def test_envelope_is_read_with_its_code_words_and_content() -> None:
    """What every answer of the hub is wrapped in."""
    answer = {"Code": 200, "Data": {"x": 1}, "Message": "success", "Success": True}
    assert read_envelope(answer) == Envelope(True, 200, "success", {"x": 1})
    refused = {"Code": CODE_NOT_FOUND, "Data": None, "Message": "no", "Success": False}
    assert read_envelope(refused) == Envelope(False, CODE_NOT_FOUND, "no", None)
    assert read_envelope({"Code": 200}) == Envelope(True, 200, "", None)


@pytest.mark.parametrize("answer", [None, 7, "Code", [], ["Code"], {}, {"code": 200}])
def test_envelope_of_something_else_is_none(answer: object) -> None:
    """A portal's page, another hub's JSON."""
    assert read_envelope(answer) is None


@pytest.mark.parametrize("code", [None, True, "404", 404.0, [404]])
def test_envelope_code_that_is_no_number_stands_for_nothing(code: object) -> None:
    """True is no 1, and text is no code: neither is taken for one that means something."""
    found = read_envelope({"Code": code})
    assert found is not None
    assert (found.code, type(found.code)) == (0, int)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("no \x1b[31mred\x1b[0m\r\nline\u202e", "no [31mred[0mline"),
        ("\ud800模型不存在", "模型不存在"),
        ("x" * 10_000, "x" * 300),
        (None, ""),
        (["x"], ""),
    ],
    ids=["escapes", "surrogate", "long", "null", "list"],
)
def test_envelope_words_are_safe_for_a_terminal_and_a_log(message: object, said: str) -> None:
    """They are shown to whoever asked, in one line, and can be written in UTF-8."""
    found = read_envelope({"Code": 1, "Message": message})
    assert found is not None
    assert found.message == said
    assert found.message.encode().decode() == said


# --- commits ---


def test_commit_is_the_newest_of_the_list() -> None:
    """In an object or bare; fields of later releases are ignored."""
    commits = [{"Id": COMMIT, "Title": "x"}, {"Id": "f" * 40}]
    assert find_commit({"Commit": commits, "TotalCount": 2}) == COMMIT
    assert find_commit(commits) == COMMIT


@pytest.mark.parametrize("content", [None, [], {}, {"Commit": None}, {"Commit": []}])
def test_commit_of_an_empty_list_is_none(content: object) -> None:
    """The hub's way to say that it has no such revision."""
    assert find_commit(content) is None


@pytest.mark.parametrize("commits", ["", 0, False, 0.0, {}, 7, "main", COMMIT, {"Id": COMMIT}])
def test_commit_of_what_is_no_list_is_refused(commits: object) -> None:
    """What is no list says nothing of revisions: nobody is told that one does not exist."""
    with pytest.raises(UpstreamProtocolError):
        find_commit({"Commit": commits})


@pytest.mark.parametrize("first", [None, COMMIT, [COMMIT], {}, {"id": COMMIT}])
def test_commit_of_another_shape_is_refused(first: object) -> None:
    """The first of the list counts; a good second one does not mend it."""
    with pytest.raises(UpstreamProtocolError):
        find_commit([first, {"Id": COMMIT}])


@pytest.mark.parametrize("text", ["", "master", COMMIT.upper(), COMMIT[1:], COMMIT + "\n", 10**39])
def test_commit_that_cannot_be_one_is_refused(text: object) -> None:
    """It becomes a folder's name and a part of URLs."""
    with pytest.raises(UpstreamProtocolError):
        find_commit([{"Id": text}])


# --- listings ---


def test_listing_is_read_with_its_folders_and_newest_commit() -> None:
    """A model's listing is an object; folders are no files."""
    content = {"Files": [FOLDER, FILE], "LatestCommitter": {"Id": COMMIT}}
    listing = read_files(content)
    assert listing == FileList((FOLDER, FILE), COMMIT)
    assert listing.folders == ["a"]
    assert read_entries(listing.items) == [ENTRY]
    assert read_files([FILE]) == FileList((FILE,), None)


@pytest.mark.parametrize("content", [None, [], {"Files": None}, {"Files": []}, {}])
def test_listing_of_nothing_is_empty(content: object) -> None:
    """`null` stands for an empty list."""
    assert read_files(content) == FileList((), None)


@pytest.mark.parametrize(
    "files", ["", "a", 0, False, 7, {}, {"a": FILE}, [None], [FILE, "a"], [[FILE]]]
)
def test_listing_of_another_shape_is_refused(files: object) -> None:
    """One entry that is no object refuses the whole list."""
    with pytest.raises(UpstreamProtocolError):
        read_files({"Files": files})


@pytest.mark.parametrize("latest", [None, COMMIT, [], {}, {"Id": None}, {"Id": ""}, {"Id": "main"}])
def test_listing_without_a_valid_commit_is_read_without_one(latest: object) -> None:
    """The files still count; they are named by what they are."""
    listing = read_files({"Files": [FILE], "LatestCommitter": latest})
    assert (listing.commit, len(listing.items)) == (None, 1)


@pytest.mark.parametrize("path", [*BAD_PATHS, *NO_TEXTS, ""], ids=name_case)
def test_listing_folder_that_cannot_be_is_the_hubs_fault(path: object) -> None:
    """It would be asked for next, by its name in an address; no caller is blamed for it."""
    listing = read_files([{"Type": "tree", "Path": path}])
    with pytest.raises(UpstreamProtocolError):
        assert listing.folders


# --- entries ---


def test_entry_digest_is_read_in_either_case_of_letters() -> None:
    """The hub writes both; there is one name for the bytes."""
    assert read_entries([FILE | {"Sha256": SHA.upper()}]) == [ENTRY]


def test_entry_without_a_path_has_its_name() -> None:
    """Of some listings only the name is filled in."""
    for path in ({}, {"Path": ""}, {"Path": None}):
        item = {key: value for key, value in FILE.items() if key != "Path"} | path
        assert read_entries([item | {"Name": "a/b.bin"}]) == [ENTRY]


@pytest.mark.parametrize("size_bytes", [0, 1, BLOB_SIZE_BYTES_MAX])
def test_entry_sizes_up_to_the_limit_are_read(size_bytes: int) -> None:
    """An empty file is one; its pointer names the size."""
    (entry,) = read_entries([FILE | {"Size": size_bytes}])
    assert (entry.size_bytes, entry.tree_oid) == (size_bytes, make_pointer_oid(DIGEST, size_bytes))


@pytest.mark.parametrize("size", NO_SIZES)
def test_entry_of_an_impossible_size_refuses_the_listing(size: object) -> None:
    """One bad file, and nothing of the list is believed."""
    with pytest.raises(UpstreamProtocolError, match="cannot be stored safely"):
        read_entries([FILE, FILE | {"Path": "c", "Size": size}])


@pytest.mark.parametrize(
    "said", [*NO_TEXTS, "", SHA[1:], SHA + "0", SHA[:40], "sha256:" + SHA, "g" * 64, "é" * 64]
)
def test_entry_that_nobody_could_check_refuses_the_listing(said: object) -> None:
    """No digest, git's, or something else: its bytes would have to be believed."""
    with pytest.raises(UpstreamProtocolError, match="cannot be stored safely"):
        read_entries([FILE, FILE | {"Path": "c", "Sha256": said}])


@pytest.mark.parametrize("path", [*BAD_PATHS, 7, True, ["a"], {"a": 1}], ids=name_case)
def test_entry_whose_path_leads_elsewhere_refuses_the_listing(path: object) -> None:
    """It becomes a file's name in the tree."""
    with pytest.raises(UpstreamProtocolError, match="cannot be stored safely"):
        read_entries([FILE, FILE | {"Path": path, "Name": path}])


def test_entry_words_of_the_hub_are_short_and_plain_in_the_error() -> None:
    """A path of megabytes with escapes is not shown to anybody."""
    for item in (
        FILE | {"Path": "\x1b[2J" * 900_000},
        FILE | {"Path": "\x1b[2J" * 1000, "Sha256": ""},
        FILE | {"Sha256": "\x1b" * 64_000},
    ):
        with pytest.raises(UpstreamProtocolError) as caught:
            read_entries([item])
        assert len(str(caught.value)) < 1000
        assert str(caught.value).isprintable()


def test_entry_of_another_type_than_folder_is_a_file() -> None:
    """Only `tree` is left out: what is neither is checked like a file, and refused without hash."""
    assert read_entries([FILE | {"Type": None}]) == [ENTRY]
    assert read_entries([FOLDER]) == []
    with pytest.raises(UpstreamProtocolError):
        read_entries([FOLDER | {"Type": "commit"}])


def test_entries_of_one_path_are_refused_as_a_snapshot() -> None:
    """Of two files of one name neither is believed; nor is one digest of two sizes."""
    for other in (FILE | {"Sha256": "4b" * 32}, FILE | {"Path": "c", "Size": 8}):
        entries = read_entries([FILE, other])
        assert len(entries) == 2
        with pytest.raises(InputError):
            Snapshot.of(SnapshotId(RepoId("ms", "models", "org/name"), COMMIT), entries)


def test_entry_key_that_stands_twice_is_checked_as_it_is_used() -> None:
    """JSON allows it; the value that counts is the one that was looked at."""
    text = json.dumps(FILE)
    with pytest.raises(UpstreamProtocolError):
        read_entries([json.loads(f'{text[:-1]}, "Path": "../x"}}')])
    assert read_entries([json.loads(f'{{"Path": "../x", {text[1:]}')]) == [ENTRY]


# --- names for states ---


def test_state_has_one_name_whatever_the_order() -> None:
    """The same files, the same 40 digits."""
    other = FileEntry("c", 1, BlobDigest("sha256", "0" * 64), "0" * 40)
    name = name_listing([ENTRY, other])
    assert is_commit(name)
    assert name_listing([other, ENTRY]) == name
    assert is_commit(name_listing([]))


def test_state_changes_its_name_with_each_part_of_a_file() -> None:
    """Path, size and digest; git's own id of the entry does not count."""
    changed = [
        FileEntry("a/c.bin", 7, DIGEST, ENTRY.tree_oid),
        FileEntry("a/b.bin", 8, DIGEST, ENTRY.tree_oid),
        FileEntry("a/b.bin", 7, BlobDigest("sha256", "4b" * 32), ENTRY.tree_oid),
    ]
    names = [name_listing([entry]) for entry in [ENTRY, *changed]]
    assert len({*names, name_listing([]), name_listing([ENTRY, changed[0]])}) == 6
    assert name_listing([FileEntry("a/b.bin", 7, DIGEST, "0" * 40)]) == names[0]


# --- whatever comes ---

KEYS = ("Code", "Message", "Success", "Data", "Commit", "Id", "Files", "LatestCommitter")
FILE_KEYS = ("Path", "Name", "Type", "Size", "Sha256")
paths = st.sampled_from(["", "a", "a/b", "../a", "\ud800"])
words = paths | st.sampled_from(["tree", "blob", SHA, "3A" * 32, COMMIT])
numbers = st.integers() | st.floats() | st.sampled_from([10**400, -(10**400), BLOB_SIZE_BYTES_MAX])
leaves = st.none() | st.booleans() | numbers | words | st.text(max_size=5)
items = st.dictionaries(st.sampled_from(FILE_KEYS), leaves)
json_values = st.recursive(
    leaves | items,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(json_values)
def test_any_json_is_read_or_refused_with_protocol_error_only(value: object) -> None:
    """Whatever a hub sends: a value within its limits, or the hub's fault, and nothing else."""
    envelope = read_envelope(value)
    assert envelope is None or len(envelope.message) <= 300
    with contextlib.suppress(UpstreamProtocolError):
        commit = find_commit(value)
        assert commit is None or is_commit(commit)
    try:
        listing = read_files(value)
    except UpstreamProtocolError:
        return
    assert listing.commit is None or is_commit(listing.commit)
    with contextlib.suppress(UpstreamProtocolError):
        assert [parse_path(folder) for folder in listing.folders] == listing.folders


@given(st.lists(items | st.just(FILE) | items.map(lambda item: FILE | item), max_size=4))
def test_any_entries_are_read_safely_or_refused(items: list[dict[str, object]]) -> None:
    """Each file that is read has a safe path, a size within bounds, and a SHA-256."""
    try:
        entries = read_entries(items)
    except UpstreamProtocolError:
        return
    assert len(entries) == sum(item.get("Type") != "tree" for item in items)
    for entry in entries:
        assert parse_path(entry.path) == entry.path
        assert 0 <= entry.size_bytes <= BLOB_SIZE_BYTES_MAX
        assert entry.digest.algorithm == "sha256"
        assert is_commit(name_listing([entry]))
