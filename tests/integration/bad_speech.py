"""
Owns what a bad peer may say in an exchange: odd numbers, empty promises, other people's names.

Knows nothing of runs.
Invariants: one way to lie for each function.
Source: docs/reference/peer-protocol.md (POST /v1/swarm).
"""

from __future__ import annotations

import itertools
import json
from random import Random

from p2pcache.core.bitfield import Bitfield
from tests.integration.bad_peer import BadPeer, Json, Speak


def change_entries(**fields: object) -> Speak:
    """Return a speech whose entry has some other fields."""

    def speak(peer: BadPeer, message: Json) -> Json:
        for entry in message.get("blobs", ()):
            entry.update(fields)
        return message

    return speak


def change_message(**fields: object) -> Speak:
    """Return a speech with some other fields beside the entries."""
    return lambda peer, message: {**message, **fields}


def promise(*, step_bytes: int) -> Speak:
    """
    Return a speech that everything is on its way from upstream, for ever.

    Args:
        step_bytes: What `received` grows by with every exchange.
    """

    def speak(peer: BadPeer, message: Json) -> Json:
        nothing = Bitfield(peer.chunk_count).to_wire()
        everything = Bitfield.full(peer.chunk_count).to_wire()
        for entry in message.get("blobs", ()):
            entry.update(have=nothing, inflight=everything, fetching=True, upstream=True)
            entry["received"] = max(0, 10**12 + step_bytes * peer.exchanges)
        return message

    return speak


def say_bytes(body: bytes) -> Speak:
    """Return a speech that is these bytes."""
    return lambda peer, message: body


def flood(peer: BadPeer, message: Json) -> Json:
    """Speak of ten thousand other blobs, new ones each time."""
    chance = Random(peer.exchanges)
    for entry in list(message.get("blobs", ())):
        names = (f"sha256:{chance.randbytes(32).hex()}" for _ in itertools.repeat(None, 9_999))
        message["blobs"] += [{**entry, "blob": name} for name in names]
    return message


def change_name_each_time(peer: BadPeer, message: Json) -> Json:
    """Be somebody else in every answer."""
    return {**message, "id": f"{peer.exchanges + 1:032x}"}


def take_callers_name(peer: BadPeer, message: Json) -> Json:
    """Say to be the caller."""
    return {**message, "id": peer.caller.get("id", message["id"])}


NOT_JSON = b"\x00" * 4096
DEEP_JSON = b"[" * 200_000
NAN_JSON = json.dumps({"id": float("nan"), "blobs": [float("inf")]}).encode()
