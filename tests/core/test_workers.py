"""
Owns the tests of core.workers: whom an order is for.

Knows nothing of peers.
Invariants: who is named and not there is an error.
Source: core/workers.py.
"""

from __future__ import annotations

import pytest

from p2pcache.core.workers import Worker, asks_for_labels, choose_workers, parse_label
from p2pcache.errors import InputError, PeerNotFoundError

CREW = [
    Worker("0a", "boss", is_self=True, labels={"zone": "a"}),
    Worker("0b", "gpu-1", labels={"zone": "a", "gpu": "h100"}),
    Worker("0c", "gpu-2", labels={"zone": "b"}),
    Worker("0d", "twin"),
    Worker("0e", "twin"),
]


@pytest.mark.parametrize(
    ("selectors", "ids"),
    [
        (["gpu-1"], ["0b"]),
        (["0c", "gpu-1", "0c"], ["0b", "0c"]),
        (["zone=a"], ["0a", "0b"]),
        (["gpu=h100", "boss"], ["0a", "0b"]),
        (["*"], ["0a", "0b", "0c", "0d", "0e"]),
        (["0e"], ["0e"]),
    ],
)
def test_selectors_choose(selectors: list[str], ids: list[str]) -> None:
    """Names, ids, labels and everybody; each once."""
    assert [worker.peer_id for worker in choose_workers(selectors, CREW)] == ids


def test_selector_that_fits_nobody_names_who_is_there() -> None:
    """The sentence helps with a typing mistake."""
    for selector in ("gpu-3", "zone=c"):
        with pytest.raises(PeerNotFoundError, match="gpu-1, gpu-2"):
            choose_workers(["gpu-1", selector], CREW)


def test_name_that_two_have_chooses_neither() -> None:
    """It could be either; an id says which."""
    with pytest.raises(InputError, match="0d, 0e"):
        choose_workers(["twin"], CREW)


def test_labels_are_written_key_value() -> None:
    """One form, plain characters."""
    assert parse_label("gpu=h100") == ("gpu", "h100")
    assert parse_label("topology/rack=r-1.2") == ("topology/rack", "r-1.2")
    for bad in ("gpu", "=x", "a=b=c", "a b=c", "a=\n", "x" * 64 + "=y"):
        with pytest.raises(InputError, match="key=value"):
            parse_label(bad)
    assert asks_for_labels(["a", "b=c"])
    assert not asks_for_labels(["a", "*"])
