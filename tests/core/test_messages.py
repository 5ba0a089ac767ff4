"""
Owns the tests of core.messages.

Knows nothing of HTTP.
Invariants: to_json and from_json are inverse; no decoded JSON makes a reader raise anything but
InputError.
Source: core/messages.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcache.core import messages
from p2pcache.core.bitfield import Bitfield
from p2pcache.core.chunktable import ChunkTable, Standing
from p2pcache.core.digest import BlobDigest, ChunkDigest
from p2pcache.core.layout import (
    BLOB_SIZE_BYTES_MAX,
    CHUNK_SIZE_BYTES,
    CHUNKS_PER_BLOB_MAX,
    CHUNKS_PER_STEP_MAX,
    FIXED_LAYOUT,
    Layout,
)
from p2pcache.core.messages import (
    CREW_AGE_MS_MAX,
    CREW_WORDS_MAX,
    CrewWord,
    Exchange,
    Hello,
    Json,
    SwarmEntry,
    get_list,
    get_text,
    get_whole,
    is_peer_name,
    snapshot_from_json,
    snapshot_to_json,
    table_from_json,
    table_to_json,
)
from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.errors import InputError
from tests.samples import COMMIT, PEER_ID

BLOB = BlobDigest("sha256", "12" * 32)
HELLO = Hello(PEER_ID, "node-1", "0.1.0", ("chunks",))
SNAPSHOT = Snapshot.of(
    SnapshotId(RepoId("hf", "datasets", "org/name"), COMMIT),
    [
        FileEntry("a/b c.json", 5, BlobDigest("gitsha1", "34" * 20), "34" * 20),
        FileEntry("weights.bin", 9 * CHUNK_SIZE_BYTES, BLOB, "56" * 20),
    ],
)


# Cut at tensors: chunks of 3, 3, 7, 7, 7 and 2 bytes.
SPANS = [(3, 2), (7, 3), (2, 1)]
CUT = Layout.from_spans(29, SPANS)


@st.composite
def cut_layouts(draw: st.DrawFn) -> Layout:
    """Any layout, cut every 4 MiB or anywhere."""
    if draw(st.booleans()):
        size_bytes = draw(st.integers(0, 70)) * CHUNK_SIZE_BYTES - draw(st.integers(0, 5))
        return Layout(max(0, size_bytes))
    lengths = draw(st.lists(st.integers(1, CHUNK_SIZE_BYTES), min_size=1, max_size=40))
    return Layout.from_spans(sum(lengths), [(length, 1) for length in lengths])


@st.composite
def swarm_entries(draw: st.DrawFn) -> SwarmEntry:
    """Any possible entry."""
    layout = draw(cut_layouts())
    count = layout.chunk_count
    bits = st.integers(0, (1 << count) - 1)
    return SwarmEntry(
        BlobDigest("sha256", draw(st.binary(min_size=32, max_size=32)).hex()),
        layout.id,
        Bitfield(count, draw(bits)),
        Bitfield(count, draw(bits)),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.integers(0, 1 << 62)),
        tuple(draw(st.lists(crew_words(), max_size=3))),
        draw(st.booleans()),
    )


def crew_words() -> st.SearchStrategy[CrewWord]:
    """Any possible word on a member."""
    ids = st.integers(1, (1 << 128) - 1).map(lambda number: f"{number:032x}")
    ages = st.integers(0, CREW_AGE_MS_MAX)
    return st.builds(CrewWord, ids, st.integers(0, 1 << 62), ages, st.booleans())


def through_json(message: Json) -> object:
    """Encode and decode, as the wire does."""
    return json.loads(json.dumps(message))


@given(st.lists(swarm_entries(), max_size=4), st.integers(0, 65535))
def test_exchange_any_is_read_back(entries: list[SwarmEntry], port: int) -> None:
    """An exchange, its hello and its entries survive the wire."""
    exchange = Exchange(HELLO, port, tuple(entries))
    assert Exchange.from_json(through_json(exchange.to_json())) == exchange


def test_exchange_unknown_fields_are_ignored() -> None:
    """A newer peer may say more."""
    message = {**Exchange(HELLO, 1, ()).to_json(), "mood": "fine"}
    assert Exchange.from_json(message) == Exchange(HELLO, 1, ())


def test_exchange_unreadable_entries_are_left_out() -> None:
    """One entry of a later layout does not spoil the others."""
    good = SwarmEntry(BLOB, Layout(5).id, Bitfield(1), Bitfield(1))
    message = Exchange(HELLO, 1, (good,)).to_json()
    other_layout = {**good.to_json(), "layout": "by-tensor"}
    wrong_size = {**good.to_json(), "size": 1 << 61}
    wrong_bits = {**good.to_json(), "have": "/w=="}
    message["blobs"] = [None, other_layout, 7, good.to_json(), wrong_size, wrong_bits]
    assert Exchange.from_json(message).entries == (good,)


@pytest.mark.parametrize(
    "crew",
    [
        7,
        [["a" * 32, 1, 1]],
        [["x", 1, 1, True]],
        [["a" * 32, -1, 1, True]],
        [["a" * 32, 1, CREW_AGE_MS_MAX + 1, True]],
        [["a" * 32, 1, 1, True]] * (CREW_WORDS_MAX + 1),
    ],
)
def test_entry_with_malformed_words_on_members_is_refused(crew: object) -> None:
    """Not a list, too short, no peer id, a number out of its range, too many."""
    entry = SwarmEntry(BLOB, Layout(5).id, Bitfield(1), Bitfield(1)).to_json()
    assert SwarmEntry.from_json(entry).crew == ()
    with pytest.raises(InputError):
        SwarmEntry.from_json({**entry, "crew": crew})


def test_exchange_too_many_entries_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list has a limit, checked before any entry is read."""
    monkeypatch.setattr(messages, "ENTRIES_PER_EXCHANGE_MAX", 2)
    with pytest.raises(InputError):
        Exchange.from_json({**Exchange(HELLO, 1, ()).to_json(), "blobs": [1, 2, 3]})


@pytest.mark.parametrize(
    "change",
    [
        {"protocol": 2},
        {"protocol": True},
        {"id": "AB" * 16},
        {"id": "ab" * 15},
        {"id": "0" * 32},
        {"id": "../" * 10 + "ab"},
        {"name": ""},
        {"name": "-x"},
        {"name": "a b"},
        {"name": "<script>"},
        {"name": "x" * 65},
        {"version": "x" * 65},
        {"version": "\x1b[2J"},
        {"version": "\ud800"},
        {"capabilities": None},
        {"capabilities": ["x"] * 65},
    ],
)
def test_hello_malformed_field_is_refused(change: Json) -> None:
    """Names, ids and versions are shown in tables and logs: they are checked."""
    with pytest.raises(InputError):
        Hello.from_json({**HELLO.to_json(), **change})


def test_hello_strange_capabilities_are_left_out() -> None:
    """Capabilities that cannot be names are not kept."""
    message = {**HELLO.to_json(), "capabilities": ["a", 1, None, "x" * 65, ["b"]]}
    assert Hello.from_json(message).capabilities == ("a",)


@given(cut_layouts(), st.data())
def test_table_any_is_read_back_as_claimed(layout: Layout, data: st.DataObject) -> None:
    """Whatever a peer says of its standing, we only call it claimed; its boundaries survive."""
    table = ChunkTable(BLOB, layout, Standing.PROVEN)
    for index in range(layout.chunk_count):
        if data.draw(st.booleans()):
            table.set(index, ChunkDigest(data.draw(st.binary(min_size=32, max_size=32))))
    read = table_from_json(through_json(table_to_json(table)))
    assert list(read) == list(table)
    assert (read.blob, read.layout, read.standing) == (BLOB, table.layout, Standing.CLAIMED)


@pytest.mark.parametrize(
    "change", [{"chunks": []}, {"chunks": ["x"]}, {"layout": "other"}, {"size": -1}, {"blob": "x"}]
)
def test_table_malformed_is_refused(change: Json) -> None:
    """A table that does not fit its blob is an input error."""
    message = {**table_to_json(ChunkTable(BLOB, Layout(5))), **change}
    with pytest.raises(InputError):
        table_from_json(message)


def test_table_of_the_fixed_layout_ignores_spans() -> None:
    """It is known without them; an earlier release names none."""
    message = table_to_json(ChunkTable(BLOB, Layout(5)))
    assert message["spans"] == []
    for change in ({}, {"spans": SPANS}, {"spans": "x"}):
        assert table_from_json({**message, **change}).layout == Layout(5)
    del message["spans"]
    assert table_from_json(message).layout == Layout(5)


@pytest.mark.parametrize(
    "change",
    [
        {"spans": None},
        {"spans": []},
        {"spans": {}},
        {"spans": [[3, 2], [7, 3]]},
        {"spans": [[3, 2], [7, 3], [2, 2]]},
        {"spans": [[7, 3], [3, 2], [2, 1]]},
        {"spans": [[3, 2], [7, 3], [2, True]]},
        {"spans": [[3, 2], [7, 3], [2.0, 1]]},
        {"spans": [[3, 2], [7, 3], [2]]},
        {"spans": [[3, 2], [7, 3], [2, 1, 1]]},
        {"spans": [[3, 2], [7, 3], [2, 1], [0, 1]]},
        {"spans": [[3, 2], [7, 3], [2, 1], [1, 0]]},
        {"spans": [[3, 2], [7, 3], [2, 1], None]},
        {"spans": [[-3, 2], [7, 5]]},
        {"spans": [[1, 29]]},
        {"spans": [[1, 1 << 70]]},
        {"layout": FIXED_LAYOUT},
        {"layout": "tensor-000000000"},
        {"layout": "tensor-"},
        {"size": 30},
        {"size": 0},
        {"size": BLOB_SIZE_BYTES_MAX, "spans": [[1, CHUNKS_PER_BLOB_MAX]] * 1000},
        {"size": BLOB_SIZE_BYTES_MAX + 1},
        {"chunks": [None] * 5},
        {"chunks": [None] * 7},
    ],
)
def test_table_with_other_boundaries_than_it_names_is_refused(change: Json) -> None:
    """The name, the size, the spans and the list must fit one another."""
    message = table_to_json(ChunkTable(BLOB, CUT))
    assert table_from_json(message).layout == CUT
    with pytest.raises(InputError):
        table_from_json({**message, **change})


def test_table_that_calls_the_fixed_layout_by_another_name_is_refused() -> None:
    """One layout has one name, else peers that agree would not know it."""
    table = table_to_json(ChunkTable(BLOB, Layout(2 * CHUNK_SIZE_BYTES)))
    spans = {"spans": [[CHUNK_SIZE_BYTES, 2]]}
    assert table_from_json({**table, **spans}).layout == Layout(2 * CHUNK_SIZE_BYTES)
    with pytest.raises(InputError):
        table_from_json({**table, **spans, "layout": "tensor-123456789"})


@pytest.mark.parametrize(
    "change",
    [
        {"count": None},
        {"count": 0},
        {"count": -1},
        {"count": True},
        {"count": 6.0},
        {"count": "6"},
        {"count": CHUNKS_PER_STEP_MAX + 1},
        {"count": 1 << 70},
        {"count": 9},
        {"size": 1 << 61},
        {"layout": "tensor-"},
        {"layout": FIXED_LAYOUT},
    ],
)
def test_entry_whose_count_does_not_fit_is_refused(change: Json) -> None:
    """The count says how long the bitfields are; a stranger cannot make them longer than that."""
    entry = SwarmEntry(BLOB, CUT.id, Bitfield.full(6), Bitfield(6))
    assert SwarmEntry.from_json(entry.to_json()) == entry
    with pytest.raises(InputError):
        SwarmEntry.from_json({**entry.to_json(), **change})


def test_entry_of_an_earlier_release_has_no_count() -> None:
    """Of the fixed layout it is known."""
    entry = SwarmEntry(BLOB, Layout(5).id, Bitfield.full(1), Bitfield(1))
    message = entry.to_json()
    del message["count"]
    assert SwarmEntry.from_json(message) == entry


@pytest.mark.parametrize(
    ("changes", "says_as_much"),
    [
        ({"received_bytes": 7}, True),
        ({"have": Bitfield.full(1)}, False),
        ({"inflight": Bitfield.full(1)}, False),
        ({"is_fetching": True}, False),
        ({"can_fetch_upstream": True}, False),
        ({"is_hub_only": True}, False),
    ],
)
def test_entry_says_as_much_as_one_that_differs_in_bytes_alone(
    changes: dict[str, Any], says_as_much: bool
) -> None:
    """What changes whom to ask for what wakes a fetch; bytes that move do not."""
    entry = SwarmEntry(BLOB, Layout(5).id, Bitfield(1), Bitfield(1))
    assert replace(entry, **changes).says_as_much(entry) is says_as_much


def test_entry_of_a_release_before_hub_only_is_not() -> None:
    """What is not said is not so."""
    entry = SwarmEntry(BLOB, Layout(5).id, Bitfield(1), Bitfield(1))
    message = entry.to_json()
    del message["hub_only"]
    assert SwarmEntry.from_json(message) == entry


def test_snapshot_message_is_read_back() -> None:
    """A file list survives the wire."""
    assert snapshot_from_json(through_json(snapshot_to_json(SNAPSHOT))) == SNAPSHOT


@pytest.mark.parametrize(
    "change",
    [
        {"path": "../x"},
        {"path": "a\x00"},
        {"path": 1},
        {"size": -1},
        {"size": 1.5},
        {"size": 1 << 61},
        {"digest": "sha256:x"},
        {"tree_oid": "x"},
    ],
)
def test_snapshot_message_with_a_hostile_file_is_refused(change: Json) -> None:
    """Every field of every file is checked."""
    message = snapshot_to_json(SNAPSHOT)
    files = message["files"]
    assert isinstance(files, list)
    files[0] = {**files[0], **change}
    with pytest.raises(InputError):
        snapshot_from_json(message)


READERS: list[Callable[[object], object]] = [
    Hello.from_json,
    SwarmEntry.from_json,
    Exchange.from_json,
    table_from_json,
    snapshot_from_json,
    SwarmEntry.from_json,
    table_from_json,
]
WRITERS: list[Callable[[Any], Json]] = [
    Hello.to_json,
    SwarmEntry.to_json,
    Exchange.to_json,
    table_to_json,
    snapshot_to_json,
    SwarmEntry.to_json,
    table_to_json,
]
GOOD_MESSAGES: list[Json] = [
    HELLO.to_json(),
    SwarmEntry(BLOB, Layout(5).id, Bitfield(1), Bitfield.full(1)).to_json(),
    Exchange(HELLO, 7, (SwarmEntry(BLOB, Layout(5).id, Bitfield(1), Bitfield(1)),)).to_json(),
    table_to_json(ChunkTable(BLOB, Layout(5))),
    snapshot_to_json(SNAPSHOT),
    SwarmEntry(BLOB, CUT.id, Bitfield(6), Bitfield.full(6)).to_json(),
    table_to_json(ChunkTable(BLOB, CUT)),
]
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 1 << 70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["fixed-4m", "sha256:" + "1" * 64, "hf", "models", "AA==", "main", COMMIT]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)


def is_taken(number: int, message: object) -> bool:
    """Return whether a reader takes a message; what it took must survive the wire unchanged."""
    try:
        value = READERS[number](message)
    except InputError:
        return False
    written = WRITERS[number](value)
    assert WRITERS[number](READERS[number](through_json(written))) == written
    return True


@given(json_values)
def test_reader_any_json_is_refused_with_input_error_only(message: object) -> None:
    """No shape of JSON makes a reader fail in another way; none of these is a message."""
    assert not any(is_taken(number, message) for number in range(len(READERS)))


@given(st.sampled_from(range(len(READERS))), st.data())
def test_reader_good_message_with_one_hostile_field_fails_cleanly(
    number: int, data: st.DataObject
) -> None:
    """One field replaced by anything, or gone: an input error, or taken and sent on unchanged."""
    message = dict(GOOD_MESSAGES[number])
    key = data.draw(st.sampled_from(sorted(message)))
    if data.draw(st.booleans()):
        message[key] = data.draw(json_values)
    else:
        del message[key]
    if not is_taken(number, message):
        with pytest.raises(InputError):
            READERS[number](message)
        # Not by ==, for which True is 1.
        assert json.dumps(message) != json.dumps(GOOD_MESSAGES[number])


@pytest.mark.parametrize("message", [None, [], "x", 1, {}, {"key": None}, {"key": {}}])
def test_field_readers_without_the_field_refuse(message: object) -> None:
    """A missing field, or one of another type, is an input error."""
    with pytest.raises(InputError):
        get_text(message, "key")
    with pytest.raises(InputError):
        get_whole(message, "key")
    with pytest.raises(InputError):
        get_list(message, "key", length_max=3)


def test_field_readers_keep_their_limits() -> None:
    """Limits are inclusive, and a boolean is not a number."""
    assert get_text({"k": "abc"}, "k", chars_max=3) == "abc"
    assert get_whole({"k": 5}, "k", maximum=5) == 5
    assert get_list({"k": [1]}, "k", length_max=1) == [1]
    with pytest.raises(InputError):
        get_text({"k": "abcd"}, "k", chars_max=3)
    with pytest.raises(InputError):
        get_whole({"k": 6}, "k", maximum=5)
    with pytest.raises(InputError):
        get_whole({"k": True}, "k")
    with pytest.raises(InputError):
        get_list({"k": [1, 2]}, "k", length_max=1)


def test_peer_name_rules_are_those_of_tables_and_urls() -> None:
    """Letters, digits, dots, dashes and underscores, 64 at most."""
    assert is_peer_name("gpu-01.rack_2")
    assert is_peer_name("x" * 64)
    assert not is_peer_name("x" * 65)
    assert not is_peer_name("ü")
