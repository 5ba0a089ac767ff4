"""
Owns the tests of the announcement's wire form, above all with what an enemy would send.

Knows nothing of sockets.
Invariants: hostile input gives None or a bounded answer, never an exception.
Source: p2pcache/discovery/answer.py.
"""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcache.discovery.answer import (
    HOSTS_MAX,
    NAME_BYTES_MAX,
    ServiceAnswer,
    parse_answer,
    service_label,
    txt_properties,
)

HOSTS = ("10.0.0.7",)


def pack(*items: bytes) -> bytes:
    """Encode strings as a TXT record."""
    return b"".join(bytes([len(item)]) + item for item in items)


GOOD = pack(b"v=1", b"id=abc")


def parse(text: bytes = GOOD, port: int | None = 7278, hosts: tuple[str, ...] = HOSTS) -> object:
    """Parse on a machine that has a network."""
    return parse_answer(text, port, hosts, loopback=False)


def test_answer_what_we_write_is_what_we_read() -> None:
    """Writer and reader agree."""
    items = [key + b"=" + value for key, value in txt_properties("a1B2:c_d-e.f").items()]
    assert parse(pack(*items)) == ServiceAnswer("a1B2:c_d-e.f", HOSTS, 7278)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\x00",
        pack(b"v=1"),
        pack(b"id=abc"),
        pack(b"v=2", b"id=abc"),
        pack(b"v", b"id=abc"),
        pack(b"v=1", b"id="),
        pack(b"v=1", b"id"),
        pack(b"v=1", b"id=a b"),
        pack(b"v=1", b"id=../../etc"),
        pack(b"v=1", b"id=\xff\xfe"),
        pack(b"v=1", b"id=a\n"),
        pack(b"v=1", b"id=" + b"a" * 129),
        pack(b"v=2", b"v=1", b"id=abc"),
        GOOD + b"\xff",
        GOOD + b"\x05abc",
        GOOD + b"\x00" * 500,
        GOOD + pack(*[b"x=y"] * 40),
    ],
)
def test_answer_hostile_text_is_no_answer(text: bytes) -> None:
    """Truncated, oversized, repeated and foreign TXT records are dropped."""
    assert parse(text) is None


@pytest.mark.parametrize("port", [None, 0, 22, 1023, 65_536, -1])
def test_answer_forbidden_port_is_no_answer(port: int | None) -> None:
    """A missing port, or one where no daemon listens, is dropped."""
    assert parse(port=port) is None


def test_answer_forbidden_hosts_are_left_out() -> None:
    """The rest of the answer stands; with no host left there is none."""
    hosts = ("8.8.8.8", "10.0.0.7", "224.0.0.1", "127.0.0.1", "10.0.0.7", "junk", "fd00::7")
    assert parse(hosts=hosts) == ServiceAnswer("abc", ("10.0.0.7", "fd00::7"), 7278)
    assert parse(hosts=("127.0.0.1", "169.254.169.254")) is None
    assert parse(hosts=()) is None


def test_answer_many_hosts_are_bounded() -> None:
    """One name cannot make us probe a whole network."""
    answer = parse_answer(GOOD, 7278, (f"10.0.{i // 256}.{i % 256}" for i in range(60_000)),
                          loopback=False)  # fmt: skip
    assert answer is not None
    assert len(answer.hosts) == HOSTS_MAX


def test_answer_later_release_may_say_more() -> None:
    """Unknown keys are ignored, so that the record can grow."""
    assert parse(GOOD + pack(b"tag=x", b"flag")) == ServiceAnswer("abc", HOSTS, 7278)


@given(st.binary(max_size=600), st.none() | st.integers(), st.lists(st.text(max_size=20)))
def test_answer_any_bytes_never_raise(text: bytes, port: int | None, hosts: list[str]) -> None:
    """Whatever comes, the result is an answer or None."""
    answer = parse_answer(text, port, hosts, loopback=True)
    assert answer is None or 1 <= len(answer.hosts) <= HOSTS_MAX


@given(st.text(max_size=300), st.text(max_size=100))
def test_service_label_any_name_is_a_safe_label(name: str, peer_id: str) -> None:
    """Any machine name gives a label that DNS accepts, without escapes."""
    label = service_label(name, peer_id)
    assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?", label)
    assert len(label) <= NAME_BYTES_MAX


def test_service_label_equal_names_do_not_clash() -> None:
    """Ids that begin alike or differ in case only give different labels."""
    labels = {service_label("x" * 100, peer_id).lower() for peer_id in ("id-1", "id-2", "ID-1")}
    assert len(labels) == 3
