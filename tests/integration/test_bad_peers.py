"""
Owns that no single peer can spoil a pull, whatever it sends or says.

Knows nothing of how sources are chosen.
Invariants: the bad peer was really asked; who lied is named with its reason, who was only slow,
poor or gone is not.
Source: issue "the swarm", degrees of failure; docs/reference/peer-protocol.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.daemons import wait_until
from tests.hub import HubProcess
from tests.integration import bad_peer, bad_speech
from tests.integration.bad_peer import BadPeer, Send, Speak, refuse_with
from tests.integration.conftest import MakeDaemon
from tests.integration.trial import (
    Trial,
    begin,
    finish,
    list_blamed,
    list_states,
)

# Long by their leases and time-outs: P2PCACHE_SLOW=1, as in `make degrees`.
LONG = pytest.mark.skipif(
    not os.environ.get("P2PCACHE_SLOW"), reason="long: P2PCACHE_SLOW=1, as in make degrees"
)

# A peer that gives nothing is asked now and then, not all the time.
RUNS_MAX = 24
# Four leases of 5 s: one to find out, and room for a machine that does much else.
LEASES_S = 20.0


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """Return the model."""
    return Trial.make(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def shared_hub(trial: Trial) -> Iterator[HubProcess]:
    """Run one hub for all tests of this module."""
    with HubProcess(trial.folder) as hub:
        yield hub


@pytest.fixture
def hub(shared_hub: HubProcess) -> HubProcess:
    """Return the hub, with its counts at zero."""
    shared_hub.reset()
    return shared_hub


BLAMED: list[tuple[str, Send, str]] = [
    ("endless-body", bad_peer.send_endless_pieces, "protocol"),
    ("endless-length", bad_peer.send_endless_length, "protocol"),
    ("short-length", bad_peer.send_short_length, "protocol"),
    ("wrong-bytes", bad_peer.send_wrong_bytes, "wrong bytes"),
    ("other-index", bad_peer.send_other_index, "wrong bytes"),
]


@pytest.mark.parametrize(
    ("send", "reason"), [case[1:] for case in BLAMED], ids=[case[0] for case in BLAMED]
)
def test_peer_that_sends_what_it_must_not_is_named(
    trial: Trial, hub: HubProcess, make_daemon: MakeDaemon, send: Send, reason: str
) -> None:
    """Bytes that no honest peer sends cost nothing upstream, and are laid at the sender's door."""
    with BadPeer(trial.content, send=send) as bad:
        daemon = make_daemon("a", upstream=hub.url, peers=[bad.address]).start()
        trial.assert_survived(daemon, finish(daemon, begin(daemon)))
        assert 0 < len(bad.runs) <= RUNS_MAX
        trial.assert_upstream(hub)
        assert list_blamed(daemon) == {("bad", reason)}
        if reason == "wrong bytes":
            shown = daemon.run("peers").stdout
            (row,) = [row for row in shown.splitlines() if row.startswith("bad ")][:1]
            assert "banned" in row, shown
            assert "wrong chunk" in shown or "digest" in shown, shown


INNOCENT: list[tuple[str, Send]] = [
    ("endless-tail", bad_peer.send_endless_tail),
    ("endless-head", bad_peer.send_endless_head),
    ("silent", bad_peer.send_nothing),
    ("short-body", bad_peer.send_half),
    ("have-lies-404", refuse_with(404, "BlobNotFound")),
    ("not-yet-for-ever", refuse_with(425, "ChunkNotYet", Retry_After=0)),
    ("not-yet-in-a-year", refuse_with(425, "ChunkNotYet", Retry_After=31_536_000)),
    ("busy-for-ever", refuse_with(503, "DaemonBusy", Retry_After=0)),
    ("other-layout", refuse_with(409, "OtherLayout")),
    ("damaged-copy", refuse_with(500, "BlobCorrupt")),
]


@LONG
@pytest.mark.parametrize("send", [case[1] for case in INNOCENT], ids=[c[0] for c in INNOCENT])
def test_peer_of_little_use_is_left_and_not_banned(
    trial: Trial, hub: HubProcess, make_daemon: MakeDaemon, send: Send
) -> None:
    """A peer from which too little comes costs some patience; nobody says that it lied."""
    with BadPeer(trial.content, send=send) as bad:
        daemon = make_daemon("a", upstream=hub.url, peers=[bad.address]).start()
        trial.assert_survived(daemon, finish(daemon, begin(daemon)))
        assert 0 < len(bad.runs) <= RUNS_MAX
        trial.assert_upstream(hub)
        assert list_states(daemon) == {"bad": "up"}
        # What it broke is noted; a daemon whose disk is bad says so itself.
        assert {reason for _, reason in list_blamed(daemon)} <= {"protocol", "damaged copy"}


@LONG
@pytest.mark.parametrize(
    "send",
    [bad_peer.send_wrong_bytes, bad_peer.send_other_index, bad_peer.send_other_index_at_times],
    ids=["wrong-bytes", "other-index", "every-third"],
)
def test_liar_beside_an_honest_peer_is_told_from_it_without_a_hub(
    trial: Trial, hub: HubProcess, make_daemon: MakeDaemon, send: Send
) -> None:
    """With no hub to ask, the honest peer gives the truth, and the liar alone is banned."""
    honest = make_daemon("honest", upstream=hub.url).start()
    assert finish(honest, begin(honest))["state"] == "done"
    hub.reset()
    with BadPeer(trial.content, send=send) as bad:
        peers = [bad.address, honest.peer]
        daemon = make_daemon("a", upstream=hub.url, peers=peers, trust_peers=True).start()
        wait_until(lambda: len(list_states(daemon)) == 2, "both are known")
        hub.set_listening(hub=False, cdn=False)
        try:
            job = finish(daemon, begin(daemon))
            trial.assert_survived(daemon, job)
        finally:
            hub.set_listening(hub=True, cdn=True)
        assert bad.runs
        assert hub.stats()["body_bytes"] == 0
        assert list_blamed(daemon) == {("bad", "wrong bytes")}
        assert list_states(daemon) == {"bad": "banned", "honest": "up"}


PROMISED_BYTES = {"standing": 0, "creeping": 1, "galloping": 1 << 30, "backwards": -1_000_003}


@LONG
@pytest.mark.parametrize("step_bytes", PROMISED_BYTES.values(), ids=PROMISED_BYTES.keys())
def test_peer_that_promises_everything_for_ever_is_not_waited_for(
    trial: Trial, hub: HubProcess, make_daemon: MakeDaemon, step_bytes: int
) -> None:
    """Announced intent that no chunk follows holds a pull up for a lease, whatever is counted."""
    speak = bad_speech.promise(step_bytes=step_bytes)
    with BadPeer(trial.content, send=refuse_with(425, "ChunkNotYet"), speak=speak) as bad:
        daemon = make_daemon("a", upstream=hub.url, peers=[bad.address]).start()
        wait_until(lambda: bad.exchanges > 0, "the daemon has asked")
        trial.assert_survived(daemon, finish(daemon, begin(daemon), timeout_s=LEASES_S))
        trial.assert_upstream(hub)
        assert list_blamed(daemon) == set()


SPOKEN: list[tuple[str, Speak]] = [
    ("huge-received", bad_speech.change_entries(received=1 << 200)),
    ("negative-received", bad_speech.change_entries(received=-1)),
    ("huge-size", bad_speech.change_entries(size=1 << 70, count=1 << 60)),
    ("other-layout", bad_speech.change_entries(layout="tensor-0123456789ab")),
    ("unknown-layout", bad_speech.change_entries(layout="fractal")),
    ("long-bitfield", bad_speech.change_entries(have="/" * 1_000_000)),
    ("bits-beyond", bad_speech.change_entries(have="//8=")),
    ("lists-for-numbers", bad_speech.change_entries(size=[[]], received={}, have=None)),
    ("no-port", bad_speech.change_message(port=10**9)),
    ("long-name", bad_speech.change_message(name="x" * 100_000)),
    ("flood", bad_speech.flood),
    ("nobody-twice", bad_speech.change_name_each_time),
    ("callers-name", bad_speech.take_callers_name),
    ("not-json", bad_speech.say_bytes(bad_speech.NOT_JSON)),
    ("deep-json", bad_speech.say_bytes(bad_speech.DEEP_JSON)),
    ("not-numbers", bad_speech.say_bytes(bad_speech.NAN_JSON)),
]


@LONG
@pytest.mark.parametrize("speak", [case[1] for case in SPOKEN], ids=[case[0] for case in SPOKEN])
def test_peer_that_talks_nonsense_harms_nobody(
    trial: Trial, hub: HubProcess, make_daemon: MakeDaemon, speak: Speak
) -> None:
    """Odd and empty words in an exchange hold nobody up and crash nobody."""
    with BadPeer(trial.content, send=refuse_with(404, "BlobNotFound"), speak=speak) as bad:
        daemon = make_daemon("a", upstream=hub.url, peers=[bad.address]).start()
        wait_until(lambda: bad.exchanges > 0, "the daemon has asked")
        trial.assert_survived(daemon, finish(daemon, begin(daemon)))
        trial.assert_upstream(hub)
        assert "banned" not in list_states(daemon).values()
        assert list_blamed(daemon) == set()
