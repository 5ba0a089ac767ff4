"""
Owns the tests of taking chunks from other files that are here: promised, likely, and neither.

Knows nothing of HTTP clients.
Invariants: what is published is right, wherever its chunks came from; a guess is given to nobody
before the proof; what cannot be copied is fetched.
Source: engine/twins.py; docs/decisions/0010-deduplication.md.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterable

import pytest

from p2pcache.core import likeness
from p2pcache.core.bitfield import Bitfield
from p2pcache.core.credentials import ANONYMOUS
from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import Layout
from p2pcache.core.likeness import FIRST_PROBES, PROBE_BYTES
from p2pcache.core.tensors import Segment
from p2pcache.core.verify import verify_chunk
from p2pcache.engine import twins
from p2pcache.engine.dispatch import Dispatcher
from p2pcache.engine.fetches import ActiveFetch
from p2pcache.engine.layouts import FoundLayout
from p2pcache.engine.twins import PROBE_FAILURES_MAX, PROBES_INFLIGHT_MAX, Twins
from p2pcache.errors import (
    BlobNotFoundError,
    IntegrityError,
    P2PCacheError,
    StoreError,
    UpstreamAuthError,
    UpstreamRateLimitedError,
    UpstreamUnreachableError,
)
from p2pcache.store.blobs import FileBlobStore
from p2pcache.store.partial import LIKENESS_SOURCE, UPSTREAM_SOURCE, FilePartial
from p2pcache.transfer.upstream import UpstreamSource
from tests.engine.conftest import TOKEN, MakeCache, MakePeer
from tests.engine.engine import Engine, eventually, let_run
from tests.engine.fakepeer import FakePeer, sha256_name
from tests.engine.weights import (
    BASE,
    BASE_GGUF,
    BASE_REPO,
    CHANGED,
    EXTRA,
    LAYERS,
    NAME,
    NEW_BYTES,
    OTHER,
    SHUFFLED,
    TUNED,
    TUNED_GGUF,
    TUNED_REPO,
    WEIGHT_BYTES,
    layout_of,
    make_file,
    make_layers,
    map_of,
    small_parts,
)
from tests.hub import Hub, Repository

__all__ = ["small_parts"]

KEY = f"{TUNED_REPO}/{NAME}"
BLOB, BASE_BLOB = sha256_name(TUNED), sha256_name(BASE)
LAYOUT = layout_of(TUNED)
# Parts of TUNED that have the name of a part of BASE: each layer's weight, and its small tensors.
LIKE_COUNT = 2 * LAYERS
HEAD_BYTES = map_of(TUNED).head_bytes


@pytest.fixture(autouse=True)
def repositories(hub: Hub) -> None:
    """Put the files of these tests into the hub."""
    hub.add(Repository(BASE_REPO, {NAME: BASE}))
    hub.add(Repository(TUNED_REPO, {NAME: TUNED}))


async def fetch(
    engine: Engine, repo: str = TUNED_REPO, path: str = NAME, *, is_public: bool = True
) -> ActiveFetch:
    """Fetch a file to the end."""
    active = await engine.start_fetch(repo, path, is_public=is_public)
    await active.result()
    return active


@pytest.fixture
async def with_base(engine: Engine, hub: Hub) -> Engine:
    """Open an engine that has the base model, and has asked for nothing since."""
    await fetch(engine, BASE_REPO)
    hub.stats.reset()
    return engine


def is_published(engine: Engine, content: bytes = TUNED) -> bool:
    """Return whether a file is in the store, whole."""
    path = engine.context.store.path_of(sha256_name(content))
    return path.exists() and path.read_bytes() == content


def chunks_of(content: bytes, names: Iterable[str]) -> set[int]:
    """Return the chunks of some tensors."""
    layout, wanted = layout_of(content), set(names)
    return {
        index
        for tensor in map_of(content).tensors
        if tensor.name in wanted
        for index in range(
            layout.index_at(tensor.start), layout.index_at(tensor.start + tensor.length - 1) + 1
        )
    }


NEW_CHUNKS = chunks_of(TUNED, [*EXTRA, *(f"layers.{n}.weight" for n in CHANGED)])
SHARED_CHUNKS = set(range(1, LAYOUT.chunk_count)) - NEW_CHUNKS


Looks = list[int]


@pytest.fixture(autouse=True)
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    """Count how many bytes come with every look at a part."""
    counted: Looks = []
    real = UpstreamSource.read_range

    def read_range(self: UpstreamSource, start: int, length: int, total: int) -> bytes:
        content = real(self, start, length, total)
        if length <= PROBE_BYTES:
            counted.append(length)
        return content

    monkeypatch.setattr(UpstreamSource, "read_range", read_range)
    return counted


async def make_holder(make_peer: MakePeer, content: bytes = TUNED, number: int = 1) -> FakePeer:
    """Start a peer that has a file and its table."""
    peer = await make_peer(content, number=number)
    peer.cut(content, layout_of(content))
    return peer


# --- the hub alone: likely by the names of tensors ---


async def test_tensors_that_a_file_here_has_are_not_fetched(
    with_base: Engine, hub: Hub, looks: Looks
) -> None:
    """The hub gives the head, the new tensors, and a look at each of the others."""
    active = await fetch(with_base)
    assert is_published(with_base)
    assert len(looks) == LIKE_COUNT
    assert hub.stats.path_bytes[KEY] == HEAD_BYTES + NEW_BYTES + sum(looks)
    state = active.fetch.state
    assert set(state.copied) == SHARED_CHUNKS
    assert set(state.find_likely()) == SHARED_CHUNKS
    assert state.bytes_from["disk"] == LAYOUT.measure(SHARED_CHUNKS)
    assert sum(state.bytes_from.values()) == len(TUNED)
    assert state.proof_failures == 0
    assert state.machine.asked == {}
    assert with_base.context.budget.requests_inflight == 0


async def test_gguf_shares_tensors_as_well(engine: Engine, hub: Hub, looks: Looks) -> None:
    """With another vocabulary in front."""
    hub.add(Repository("org/gguf", {"base.gguf": BASE_GGUF, "tuned.gguf": TUNED_GGUF}))
    await fetch(engine, "org/gguf", "base.gguf")
    active = await fetch(engine, "org/gguf", "tuned.gguf")
    assert is_published(engine, TUNED_GGUF)
    fetched = hub.stats.path_bytes["org/gguf/tuned.gguf"]
    assert fetched == map_of(TUNED_GGUF).head_bytes + NEW_BYTES + sum(looks)
    assert active.fetch.state.proof_failures == 0


async def test_file_that_only_looks_alike_costs_a_few_looks(
    with_base: Engine, hub: Hub, looks: Looks
) -> None:
    """When none of the first parts is the same, the rest is not looked at."""
    hub.add(Repository("org/other", {NAME: OTHER}))
    active = await fetch(with_base, "org/other")
    assert is_published(with_base, OTHER)
    assert len(looks) == FIRST_PROBES < LIKE_COUNT
    assert hub.stats.path_bytes[f"org/other/{NAME}"] == len(OTHER) + sum(looks)
    assert list(active.fetch.state.copied) == []


async def test_store_without_files_of_tensors_is_asked_for_no_look(
    engine: Engine,
    hub: Hub,
    looks: Looks,
) -> None:
    """The first model costs what it costs."""
    await fetch(engine)
    assert looks == []
    assert hub.stats.path_bytes[KEY] == len(TUNED)


def look_at_the_start(segment: Segment, random: object) -> int:
    """Choose no place by chance."""
    return segment.start


async def test_file_that_is_equal_wherever_it_was_looked_at_is_proven_wrong_and_mended(
    with_base: Engine,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    looks: Looks,
) -> None:
    """One byte that nobody looked at: only what was guessed is fetched again, nobody is blamed."""
    monkeypatch.setattr(likeness, "_choose", look_at_the_start)
    layers = make_layers()
    layers["layers.5.weight"] = layers["layers.5.weight"][:-1] + b"?"
    tricky = make_file({**EXTRA, **layers})
    hub.add(Repository("org/tricky", {NAME: tricky}))
    active = await fetch(with_base, "org/tricky")
    assert is_published(with_base, tricky)
    state = active.fetch.state
    assert state.proof_failures == 1
    assert list(state.copied) == []
    assert len(looks) == LIKE_COUNT
    assert hub.stats.path_bytes[f"org/tricky/{NAME}"] == len(tricky) + sum(looks)
    assert not with_base.context.blame.faults
    row = await with_base.cache.shelf.find_row(sha256_name(tricky))
    assert row is not None
    assert row.table is not None
    assert list(row.table) == list(FakePeer(tricky).cut(tricky, layout_of(tricky)))


async def test_hub_that_lies_is_found_out_with_copies_too(with_base: Engine, hub: Hub) -> None:
    """First what was guessed goes, then what the hub sent; then it is named."""
    place = next(t.start for t in map_of(TUNED).tensors if t.name == "extra.weight") + 20_000
    hub.set_faults(flips={KEY: place})
    with pytest.raises(IntegrityError):
        await fetch(with_base)
    assert not is_published(with_base)
    hub.set_faults()
    await fetch(with_base)
    assert is_published(with_base)


async def test_restricted_file_takes_from_public_ones_and_is_told_to_nobody(
    with_base: Engine,
    hub: Hub,
    make_peer: MakePeer,
    looks: Looks,
) -> None:
    """Guessing needs the hub alone."""
    hub.add(Repository("org/closed", {NAME: TUNED}, private=True, tokens=[TOKEN]))
    peer = await make_holder(make_peer)
    await with_base.meet(peer.address)
    assert await with_base.read("org/closed", NAME, token=TOKEN) == TUNED
    key = f"org/closed/{NAME}"
    assert hub.stats.path_bytes[key] == HEAD_BYTES + NEW_BYTES + sum(looks)
    assert (peer.asked, peer.runs) == ([], [])
    assert hub.stats.token_leaks == []


@pytest.mark.parametrize(
    "error",
    [
        UpstreamUnreachableError("down"),
        UpstreamAuthError("no"),
        UpstreamRateLimitedError("slow down", retry_after_s=0.5),
    ],
)
async def test_hub_that_fails_at_the_looks_is_asked_for_a_few_only(
    with_base: Engine, hub: Hub, monkeypatch: pytest.MonkeyPatch, error: P2PCacheError
) -> None:
    """The parts are fetched like any other; a 429 holds every request of ours."""
    real = UpstreamSource.read_range
    asked: list[int] = []

    def read_range(self: UpstreamSource, start: int, length: int, total: int) -> bytes:
        if length > PROBE_BYTES:
            return real(self, start, length, total)
        asked.append(length)
        raise error

    monkeypatch.setattr(UpstreamSource, "read_range", read_range)
    active = await fetch(with_base)
    assert is_published(with_base)
    # A 429 stops also those that were about to be sent.
    least = 1 if isinstance(error, UpstreamRateLimitedError) else PROBE_FAILURES_MAX
    assert least <= len(asked) < PROBE_FAILURES_MAX + PROBES_INFLIGHT_MAX
    assert list(active.fetch.state.copied) == []
    assert hub.stats.path_bytes[KEY] == len(TUNED)
    is_paused = with_base.context.budget.paused_until_s > 0
    assert is_paused is isinstance(error, UpstreamRateLimitedError)


async def test_look_that_fails_once_costs_its_part_only(
    with_base: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bad answer among many."""
    real = UpstreamSource.read_range
    asked: list[int] = []

    def read_range(self: UpstreamSource, start: int, length: int, total: int) -> bytes:
        if length == PROBE_BYTES:
            asked.append(start)
            if len(asked) == 2:
                raise UpstreamUnreachableError("down")
        return real(self, start, length, total)

    monkeypatch.setattr(UpstreamSource, "read_range", read_range)
    active = await fetch(with_base)
    assert is_published(with_base)
    missed = SHARED_CHUNKS - set(active.fetch.state.copied)
    assert len(missed) in (0, 3)


# --- a peer's table: promised by digests ---


async def test_chunks_that_a_table_promises_are_copied_and_the_rest_is_fetched(
    with_base: Engine, hub: Hub, make_peer: MakePeer
) -> None:
    """A peer gives what is new; the hub gives nothing, not even a look."""
    peer = await make_holder(make_peer)
    await with_base.meet(peer.address)
    active = await fetch(with_base)
    assert is_published(with_base)
    assert hub.stats.path_bytes[KEY] == 0
    assert peer.sent_chunks == len(NEW_CHUNKS) + 1
    state = active.fetch.state
    assert set(state.copied) == SHARED_CHUNKS
    assert {state.sources[index] for index in SHARED_CHUNKS} == {peer.peer_id}
    assert state.find_likely() == []
    assert sum(state.bytes_from.values()) == len(TUNED)


async def test_chunks_of_a_file_without_tensors_are_found_by_digest_too(
    engine: Engine, hub: Hub, make_peer: MakePeer
) -> None:
    """Any two blobs may share chunks, whatever their layouts are."""
    first, second = BASE[: 6 * 16_384], BASE[: 4 * 16_384] + TUNED[-5000:]
    hub.add(Repository("org/bin", {"a.bin": first, "b.bin": second}))
    await fetch(engine, "org/bin", "a.bin")
    peer = await make_peer(second)
    peer.cut(second, Layout(len(second)))
    await engine.meet(peer.address)
    active = await fetch(engine, "org/bin", "b.bin")
    assert is_published(engine, second)
    assert set(active.fetch.state.copied) == {0, 1, 2, 3}
    assert peer.sent_chunks == 1


async def test_table_that_knows_some_chunks_leaves_the_others_to_likeness(
    with_base: Engine, hub: Hub, make_peer: MakePeer
) -> None:
    """A peer that is still fetching vouches for what it has; names tell of the rest."""
    peer = await make_peer(TUNED)
    table = peer.cut(TUNED, LAYOUT)
    vouched = sorted(SHARED_CHUNKS)[:9]
    peer.have = vouched
    message = peer.documents[f"/v1/blobs/{BLOB}/table"]
    assert isinstance(message, dict)
    message["chunks"] = [str(d) if i in vouched else None for i, d in enumerate(table)]
    await with_base.meet(peer.address)
    active = await fetch(with_base)
    assert is_published(with_base)
    state = active.fetch.state
    assert set(state.copied) == SHARED_CHUNKS
    assert set(state.find_likely()) == SHARED_CHUNKS - set(vouched)
    assert peer.runs == []


async def test_table_that_promises_wrong_digests_is_found_out_and_its_peer_is_banned(
    with_base: Engine, hub: Hub, make_peer: MakePeer
) -> None:
    """A chunk of the right digest in the wrong place: the proof shows it, and who said so."""
    liar, honest = [await make_holder(make_peer, number=number) for number in (1, 2)]
    message = liar.documents[f"/v1/blobs/{BLOB}/table"]
    assert isinstance(message, dict)
    one, other = (chunks_of(TUNED, [f"layers.{n}.weight"]) for n in (0, 1))
    for a, b in zip(sorted(one), sorted(other), strict=True):
        chunks = message["chunks"]
        chunks[a], chunks[b] = chunks[b], chunks[a]
    liar.have = sorted(SHARED_CHUNKS | NEW_CHUNKS)
    liar.run_status = 503
    del honest.documents[f"/v1/blobs/{BLOB}/table"]
    await with_base.meet(liar.address)
    active = await fetch(with_base)
    assert is_published(with_base)
    assert active.fetch.state.proof_failures == 1
    now_s = with_base.context.clock.monotonic_s()
    assert with_base.context.blame.find_ban(liar.peer_id, now_s=now_s) is not None


async def test_copies_alone_are_enough_while_the_hub_is_away(
    with_base: Engine, hub: Hub, make_peer: MakePeer
) -> None:
    """Hope does not end while chunks can still come from files here."""
    hub.add(Repository("org/shuffled", {NAME: SHUFFLED}))
    snapshot, entry = await with_base.find("org/shuffled", NAME)
    peer = await make_holder(make_peer, SHUFFLED)
    peer.have = [0]
    await with_base.meet(peer.address)
    await hub.set_listening(hub=False, cdn=False)
    active = await with_base.cache.fetches.start(snapshot, entry, ANONYMOUS, is_public=True)
    await active.result()
    assert is_published(with_base, SHUFFLED)
    assert active.fetch.state.bytes_from["upstream"] == 0


async def test_peers_that_give_no_table_do_not_hold_up_the_fetch(
    with_base: Engine, hub: Hub, make_peer: MakePeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some are asked how the file is cut, two what is in it; then names have to do."""
    peers = [await make_peer(TUNED, number=number) for number in range(1, 5)]
    for peer in peers:
        peer.layouts[BLOB] = LAYOUT
        peer.run_status = 503
        await with_base.meet(peer.address)
    active = await fetch(with_base)
    assert is_published(with_base)
    assert set(active.fetch.state.find_likely()) == SHARED_CHUNKS
    assert sum(len(peer.asked) for peer in peers) == len(peers) + twins.TABLE_PEERS_MAX


async def test_table_of_another_layout_than_was_said_promises_nothing(
    with_base: Engine, hub: Hub, make_peer: MakePeer
) -> None:
    """Its chunk 3 is not our chunk 3."""
    peer = await make_peer(TUNED)
    peer.cut(TUNED, Layout(len(TUNED)))
    peer.layouts[BLOB] = LAYOUT
    peer.run_status = 503
    await with_base.meet(peer.address)
    active = await fetch(with_base)
    assert is_published(with_base)
    assert set(active.fetch.state.find_likely()) == SHARED_CHUNKS


# --- what is given to whom before the proof ---


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Let no fetch ask anybody for chunks before this event is set; copies go on."""
    may_go_on = asyncio.Event()
    real = Dispatcher.send_planned

    def send_planned(self: Dispatcher) -> None:
        if may_go_on.is_set():
            real(self)

    monkeypatch.setattr(Dispatcher, "send_planned", send_planned)
    return may_go_on


@pytest.mark.parametrize("trusts_peers", [True, False])
async def test_guesses_are_given_to_nobody_before_the_proof(
    make_cache: MakeCache, gate: asyncio.Event, trusts_peers: bool
) -> None:
    """Not to peers, in whatever way they ask; not to a reader, who waits for the proof."""
    engine = await make_cache(trust_peers=trusts_peers)
    gate.set()
    await fetch(engine, BASE_REPO)
    gate.clear()
    active = await engine.start_fetch(TUNED_REPO, NAME)
    state = active.fetch.state
    await eventually(lambda: set(state.find_likely()) == SHARED_CHUNKS, "the copies")
    await eventually(lambda: not state.is_looking_here, "the end of the search")
    report = active.fetch.report()
    assert report is not None
    assert set(report.have) == {0}
    table = await engine.cache.get_table(BLOB)
    assert [index for index, digest in enumerate(table) if digest is not None] == [0]
    for index in sorted(SHARED_CHUNKS)[:3]:
        with pytest.raises(BlobNotFoundError):
            await engine.cache.open_run(BLOB, index, index, LAYOUT.name)
    assert not active.fetch.may_stream()
    reader = await engine.open_reader(TUNED_REPO, NAME)
    waiting = asyncio.create_task(reader.ready(LAYOUT.offset_of(min(SHARED_CHUNKS))))
    await eventually(lambda: len(state.machine.readers), "the reader waits")
    assert not waiting.done()
    gate.set()
    await waiting
    await active.result()
    reader.close()
    assert is_published(engine)
    described = await engine.cache.describe(BLOB)
    assert described is not None
    assert described.have == Bitfield.full(LAYOUT.chunk_count)


@pytest.mark.parametrize("is_restricted", [False, True])
async def test_promised_copies_out_of_a_restricted_file_are_given_to_nobody_before_the_proof(
    make_cache: MakeCache,
    hub: Hub,
    make_peer: MakePeer,
    gate: asyncio.Event,
    is_restricted: bool,
) -> None:
    """Else whoever knows a digest could have the chunk, by saying that a file of his has it."""
    engine = await make_cache(trust_peers=True)
    hub.add(Repository("org/closed", {NAME: BASE}, private=True, tokens=[TOKEN]))
    gate.set()
    if is_restricted:
        assert await engine.read("org/closed", NAME, token=TOKEN) == BASE
    else:
        await fetch(engine, BASE_REPO)
    gate.clear()
    peer = await make_holder(make_peer)
    await engine.meet(peer.address)
    active = await engine.start_fetch(TUNED_REPO, NAME)
    state = active.fetch.state
    await eventually(lambda: set(state.copied) == SHARED_CHUNKS, "the copies")
    report = active.fetch.report()
    assert report is not None
    assert set(report.have) == (set() if is_restricted else SHARED_CHUNKS)
    assert active.fetch.may_stream() is not is_restricted
    gate.set()
    await active.result()
    assert is_published(engine)


async def test_reader_gets_a_file_of_copies_whole(
    with_base: Engine, hub: Hub, looks: Looks
) -> None:
    """As soon as it is proven."""
    assert await with_base.read(TUNED_REPO, NAME) == TUNED
    assert hub.stats.path_bytes[KEY] == HEAD_BYTES + NEW_BYTES + sum(looks)


async def test_reader_is_not_held_up_for_the_sake_of_a_few_copies(
    with_base: Engine, hub: Hub
) -> None:
    """Where most is new, a body that begins at once is worth more than what copies save."""
    mostly_new = make_file(make_layers(*range(LAYERS)))
    hub.add(Repository("org/new", {NAME: mostly_new}))
    hub.set_faults(rate_bytes_per_s=300_000)
    reader = await with_base.open_reader("org/new", NAME)
    await reader.ready(0)
    active = with_base.cache.fetches.find(sha256_name(mostly_new))
    assert active is not None
    assert not active.fetch.state.have.is_full()
    assert list(active.fetch.state.copied) == []
    hub.set_faults()
    await active.result()
    reader.close()
    assert is_published(with_base, mostly_new)


async def test_pull_of_a_file_that_is_mostly_new_takes_the_few_copies_that_there_are(
    with_base: Engine, hub: Hub
) -> None:
    """Nobody waits for its first byte."""
    mostly_new = make_file(make_layers(*range(LAYERS)))
    hub.add(Repository("org/new", {NAME: mostly_new}))
    active = await fetch(with_base, "org/new")
    assert is_published(with_base, mostly_new)
    assert len(active.fetch.state.find_likely()) == LAYERS


@pytest.mark.parametrize("trusts_peers", [True, False])
async def test_body_that_has_begun_is_not_held_up_by_guesses(
    make_cache: MakeCache,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    trusts_peers: bool,
    looks: Looks,
) -> None:
    """A reader who is being sent bytes cannot wait for a proof: all is fetched."""
    engine = await make_cache(trust_peers=trusts_peers)
    await fetch(engine, BASE_REPO)
    real = Twins.find

    async def find(self: Twins, found: FoundLayout) -> None:
        self._state.streaming_count += 1
        await real(self, found)

    monkeypatch.setattr(Twins, "find", find)
    active = await fetch(engine)
    assert is_published(engine)
    assert looks == []
    assert list(active.fetch.state.copied) == []


@pytest.mark.parametrize("trusts_peers", [True, False])
async def test_body_that_has_begun_takes_promised_copies_only_where_peers_are_trusted(
    make_cache: MakeCache,
    make_peer: MakePeer,
    monkeypatch: pytest.MonkeyPatch,
    trusts_peers: bool,
) -> None:
    """A promise is a peer's word."""
    engine = await make_cache(trust_peers=trusts_peers)
    await fetch(engine, BASE_REPO)
    peer = await make_holder(make_peer)
    await engine.meet(peer.address)
    real = Twins.find

    async def find(self: Twins, found: FoundLayout) -> None:
        self._state.streaming_count += 1
        await real(self, found)

    monkeypatch.setattr(Twins, "find", find)
    active = await fetch(engine)
    assert is_published(engine)
    assert set(active.fetch.state.copied) == (SHARED_CHUNKS if trusts_peers else set())


async def test_body_that_begins_during_the_looks_ends_them(
    with_base: Engine,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    looks: Looks,
) -> None:
    """What was looked at by then is not copied any more."""
    real = UpstreamSource.read_range
    state = None

    def read_range(self: UpstreamSource, start: int, length: int, total: int) -> bytes:
        content = real(self, start, length, total)
        if length <= PROBE_BYTES and state is not None:
            state.streaming_count = 1
        return content

    monkeypatch.setattr(UpstreamSource, "read_range", read_range)
    active = await with_base.start_fetch(TUNED_REPO, NAME)
    state = active.fetch.state
    await active.result()
    assert is_published(with_base)
    assert 1 <= len(looks) <= PROBES_INFLIGHT_MAX
    assert state.find_likely() == []


class HeldCopies:
    """Copies that wait for a word; how many have begun and ended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_go_on = threading.Event()
        self.begun = self.ended = 0
        real = FilePartial.copy_chunk

        def copy_chunk(partial: FilePartial, *arguments: object) -> bool:
            self.begun += 1
            assert self.may_go_on.wait(20)
            assert partial.fd >= 0, "the file is open as long as somebody writes"
            try:
                return real(partial, *arguments)  # type: ignore[arg-type]
            finally:
                self.ended += 1

        monkeypatch.setattr(FilePartial, "copy_chunk", copy_chunk)


@pytest.mark.parametrize("is_promised", [True, False], ids=["out of a restricted file", "likely"])
async def test_no_body_begins_while_a_guess_is_being_copied(
    make_cache: MakeCache,
    hub: Hub,
    make_peer: MakePeer,
    monkeypatch: pytest.MonkeyPatch,
    gate: asyncio.Event,
    is_promised: bool,
) -> None:
    """Before the first copied chunk is counted, nothing else shows that there will be some."""
    engine = await make_cache(trust_peers=True)
    gate.set()
    if is_promised:
        hub.add(Repository("org/closed", {NAME: BASE}, private=True, tokens=[TOKEN]))
        assert await engine.read("org/closed", NAME, token=TOKEN) == BASE
        peer = await make_holder(make_peer)
        await engine.meet(peer.address)
    else:
        await fetch(engine, BASE_REPO)
    gate.clear()
    copies = HeldCopies(monkeypatch)
    active = await engine.start_fetch(TUNED_REPO, NAME)
    await eventually(lambda: copies.begun, "a copy")
    assert active.fetch.state.find_likely() == []
    assert not active.fetch.may_stream()
    copies.may_go_on.set()
    gate.set()
    await active.result()
    assert is_published(engine)


# --- what goes wrong ---


async def test_fetch_that_is_stopped_waits_for_the_copy_under_way(
    with_base: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No thread writes to a file that is closed, and no further chunk is begun."""
    copies = HeldCopies(monkeypatch)
    active = await with_base.start_fetch(TUNED_REPO, NAME)
    await eventually(lambda: copies.begun, "a copy")
    active.stop()
    await let_run()
    assert not active.is_done
    begun = copies.begun
    copies.may_go_on.set()
    await asyncio.wait({active.task})
    assert copies.begun == copies.ended <= begun + PROBES_INFLIGHT_MAX
    assert not is_published(with_base)
    await fetch(with_base)
    assert is_published(with_base)


async def test_fetch_that_is_stopped_during_a_look_ends_soon(
    with_base: Engine, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub that hangs at a probe holds nobody up."""
    real = Twins.take

    async def take(self: Twins) -> None:
        hub.set_faults(hang_after_bytes=0, paths=KEY)
        await real(self)

    monkeypatch.setattr(Twins, "take", take)
    active = await with_base.start_fetch(TUNED_REPO, NAME)
    await eventually(lambda: active.fetch.state.is_looking_here, "the search")
    await eventually(lambda: with_base.context.budget.requests_inflight, "a look")
    active.stop()
    async with asyncio.timeout(5):
        await asyncio.wait({active.task})
    assert with_base.context.budget.requests_inflight == 0


def spoil_before_taking(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, spoil: Callable[[str], None]
) -> None:
    """Do something to the base model's file after it was found and before it is copied from."""
    real = Twins.take

    async def take(self: Twins) -> None:
        if self._state.order.blob != BASE_BLOB:
            spoil(str(engine.context.store.path_of(BASE_BLOB)))
        await real(self)

    monkeypatch.setattr(Twins, "take", take)


def overwrite(path: str) -> None:
    """Change every byte of a file."""
    os.chmod(path, 0o600)
    with open(path, "r+b") as file:
        file.write(bytes(byte ^ 0xFF for byte in BASE))


SPOILS: dict[str, Callable[[str], None]] = {
    "deleted": os.unlink,
    "cut": lambda path: os.truncate(path, 5000),
    "overwritten": overwrite,
}


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
@pytest.mark.parametrize("has_peer", [True, False], ids=["promised", "likely"])
async def test_donor_that_changes_meanwhile_gives_nothing_wrong(
    with_base: Engine,
    hub: Hub,
    make_peer: MakePeer,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[str], None],
    has_peer: bool,
) -> None:
    """What it does not have any more is fetched."""
    if has_peer:
        peer = await make_holder(make_peer)
        await with_base.meet(peer.address)
    spoil_before_taking(monkeypatch, with_base, spoil)
    active = await fetch(with_base)
    assert is_published(with_base)
    copied = set(active.fetch.state.copied)
    head = 5000 // WEIGHT_BYTES
    assert len(copied) <= 3 * head + 3
    assert active.fetch.state.proof_failures == 0
    assert not [f for f in with_base.context.blame.faults if f.reason == "wrong bytes"]


async def test_donor_that_is_damaged_where_nobody_looks_is_found_out_by_the_proof(
    with_base: Engine, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes were right once; what was copied is fetched again."""
    monkeypatch.setattr(likeness, "_choose", look_at_the_start)

    def damage(path: str) -> None:
        os.chmod(path, 0o600)
        with open(path, "r+b") as file:
            file.seek(map_of(BASE).tensors[0].start + 30_000)
            file.write(b"damaged")

    spoil_before_taking(monkeypatch, with_base, damage)
    active = await fetch(with_base)
    assert is_published(with_base)
    assert active.fetch.state.proof_failures == 1


@pytest.mark.parametrize("has_peer", [True, False], ids=["promised", "likely"])
async def test_donor_that_cannot_be_opened_is_no_reason_to_fail(
    with_base: Engine,
    hub: Hub,
    make_peer: MakePeer,
    monkeypatch: pytest.MonkeyPatch,
    has_peer: bool,
) -> None:
    """Too many open files, a disk that is gone: then it is fetched."""
    if has_peer:
        peer = await make_holder(make_peer)
        await with_base.meet(peer.address)
    real = FileBlobStore.find_blob

    def find_blob(self: FileBlobStore, blob: BlobDigest) -> object:
        if blob == BASE_BLOB:
            raise StoreError("The disk failed.")
        return real(self, blob)

    monkeypatch.setattr(FileBlobStore, "find_blob", find_blob)
    active = await fetch(with_base)
    assert is_published(with_base)
    assert list(active.fetch.state.copied) == []


async def test_our_own_disk_that_fails_ends_the_fetch(
    with_base: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk that was copied and cannot be recorded is no chunk."""

    def fail(*_: object) -> bool:
        raise StoreError("The disk failed.")

    monkeypatch.setattr(FilePartial, "copy_chunk", fail)
    with pytest.raises(StoreError):
        await fetch(with_base)


async def test_fault_of_ours_in_the_search_costs_the_copies_only(
    with_base: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What nobody foresaw is logged, and everything is fetched."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Twins, "_find_same", fail)
    active = await fetch(with_base)
    assert is_published(with_base)
    assert list(active.fetch.state.copied) == []
    assert "files here failed" in caplog.text


# --- what an earlier run left ---


def keep_chunks(engine: Engine, sources: dict[int, str]) -> None:
    """Put chunks of the tuned model into its partial file, as from these sources."""
    opened = engine.context.store.open_partial(BLOB, LAYOUT)
    for index, source_id in sources.items():
        start, length = LAYOUT.span_of(index, index)
        view = memoryview(TUNED)[start : start + length]
        chunk = verify_chunk(BLOB, LAYOUT, index, view, expected=None, source_id=source_id)
        opened.put(chunk, source_id)
    opened.flush()
    opened.close()


async def test_part_that_is_half_here_is_copied_to_its_end(
    with_base: Engine, hub: Hub, looks: Looks
) -> None:
    """A stop in the middle of a tensor does not make the rest of it be fetched."""
    [first, *rest] = sorted(chunks_of(TUNED, ["layers.5.weight"]))
    keep_chunks(with_base, {first: UPSTREAM_SOURCE, 0: UPSTREAM_SOURCE})
    active = await fetch(with_base)
    assert is_published(with_base)
    assert set(active.fetch.state.copied) == SHARED_CHUNKS - {first}
    assert set(rest) <= set(active.fetch.state.copied)
    assert hub.stats.path_bytes[KEY] == HEAD_BYTES + NEW_BYTES + sum(looks) - LAYOUT.length_of(0)
    assert active.fetch.state.bytes_from["disk"] == LAYOUT.measure(SHARED_CHUNKS | {0})


async def test_guesses_of_an_earlier_run_are_guesses_still(
    with_base: Engine, hub: Hub, gate: asyncio.Event
) -> None:
    """Trusted by nobody, and first to go when the proof fails."""
    chosen = sorted(SHARED_CHUNKS)[:5]
    keep_chunks(with_base, dict.fromkeys(chosen, LIKENESS_SOURCE))
    active = await with_base.start_fetch(TUNED_REPO, NAME)
    state = active.fetch.state
    await eventually(lambda: not state.unchecked, "the check of what is here")
    assert set(chosen) <= set(state.find_likely())
    report = active.fetch.report()
    assert report is not None
    assert not set(chosen) & set(report.have)
    assert not active.fetch.may_stream()
    gate.set()
    await active.result()
    assert is_published(with_base)


async def test_wrong_guesses_of_an_earlier_run_are_mended(engine: Engine, hub: Hub) -> None:
    """Even when nothing here has anything to do with it any more."""
    opened = engine.context.store.open_partial(BLOB, LAYOUT)
    for index in (2, 3):
        view = memoryview(bytes(LAYOUT.length_of(index)))
        chunk = verify_chunk(BLOB, LAYOUT, index, view, expected=None, source_id=LIKENESS_SOURCE)
        opened.put(chunk, LIKENESS_SOURCE)
    opened.flush()
    opened.close()
    active = await fetch(engine)
    assert is_published(engine)
    assert active.fetch.state.proof_failures == 1
    assert hub.stats.path_bytes[KEY] <= len(TUNED) + 16_384
    assert not engine.context.blame.faults


async def test_stop_and_start_again_costs_no_more_than_the_new_bytes(
    make_cache: MakeCache,
    hub: Hub,
    looks: Looks,
) -> None:
    """Copies and fetched chunks of the first run are used by the second, but for what hung."""
    engine = await make_cache()
    await fetch(engine, BASE_REPO)
    hub.stats.reset()
    hub.set_faults(rate_bytes_per_s=100_000)
    active = await engine.start_fetch(TUNED_REPO, NAME)
    await eventually(lambda: len(active.fetch.state.copied) >= 10, "some copies")
    await engine.close()
    hub.set_faults()
    again = await make_cache()
    await fetch(again)
    assert is_published(again)
    assert hub.stats.path_bytes[KEY] <= HEAD_BYTES + NEW_BYTES + sum(looks) + 4 * 16_384
