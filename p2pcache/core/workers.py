"""
Owns which daemons an order is for: by name, by id, by label, or all of them.

Knows nothing of how they are reached.
Invariants: a selector that fits nobody is an error; a name that two have chooses neither.
Source: design.md §8 (workers); docs/reference/http-api.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from p2pcache.errors import InputError, PeerNotFoundError

EVERYBODY = "*"
# Labels of one daemon; they describe a machine, they are no database.
LABELS_MAX = 64
_LABEL = re.compile(r"([A-Za-z0-9][A-Za-z0-9._/-]{0,62})=([A-Za-z0-9._/-]{0,63})", re.ASCII)
_NAMES_SHOWN_MAX = 20


@dataclass(frozen=True, slots=True)
class Worker:
    """A daemon that may be ordered to."""

    peer_id: str
    name: str
    url: str = ""
    is_self: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)


def parse_label(text: str) -> tuple[str, str]:
    """
    Read `key=value`.

    Raises:
        InputError: It is none.
    """
    match = _LABEL.fullmatch(text)
    if match is None:
        raise InputError(
            f"{text[:80]!r} is not a label; write key=value with letters, digits, '.', '_', '/' "
            "and '-', for example gpu=h100."
        )
    return match[1], match[2]


def asks_for_labels(selectors: Iterable[str]) -> bool:
    """Return whether the daemons' labels must be known to choose."""
    return any("=" in selector for selector in selectors)


def choose_workers(selectors: Sequence[str], workers: Sequence[Worker]) -> list[Worker]:
    """
    Return the daemons that any selector fits, each once, in the order of `workers`.

    Args:
        selectors: Names, ids, `key=value`, or `*`.
        workers: Everybody that is known, with labels if they matter.

    Raises:
        PeerNotFoundError: A selector fits nobody.
        InputError: A name fits several.
    """
    chosen: set[str] = set()
    for selector in selectors:
        chosen |= _choose(selector, workers)
    return [worker for worker in workers if worker.peer_id in chosen]


def _choose(selector: str, workers: Sequence[Worker]) -> set[str]:
    if selector == EVERYBODY:
        return {worker.peer_id for worker in workers}
    if "=" in selector:
        key, value = parse_label(selector)
        fitting = {worker.peer_id for worker in workers if worker.labels.get(key) == value}
    else:
        fitting = {w.peer_id for w in workers if selector in (w.name, w.peer_id)}
        if len(fitting) > 1:
            raise InputError(
                f"{len(fitting)} daemons are called {selector[:80]!r}; name one by its id "
                f"({', '.join(sorted(fitting))}), or start them with names of their own."
            )
    if not fitting:
        known = sorted(worker.name for worker in workers)[:_NAMES_SHOWN_MAX]
        what = "has the label" if "=" in selector else "is called"
        raise PeerNotFoundError(
            f"No daemon that answers now {what} {selector[:80]!r}; there are: "
            f"{', '.join(known)}. See: p2pcache peers"
        )
    return fitting
