"""
Owns the tests of core.jobs: orders as callers write them, and who of the queue begins.

Knows nothing of tasks.
Invariants: what cannot be an order is refused with a sentence; the queue counts models.
Source: core/jobs.py; design.md §8 (downloads).
"""

from __future__ import annotations

import pytest

from p2pcache.core.jobs import JobOrder, QueueEntry, QueuePlan, plan_queue, read_order
from p2pcache.core.refs import ModelReference
from p2pcache.errors import InputError

REF = ModelReference.parse("org/name")


def test_order_survives_its_own_form() -> None:
    """What is written for another run, or another daemon, is read as it was."""
    order = JobOrder(REF, ("*.json",), ("x",), True, 7, "/models/x", ("gpu-1", "zone=a"), "c" * 40)
    assert read_order(order.to_json()) == order
    assert read_order(JobOrder(REF).to_json()) == JobOrder(REF)


def test_order_in_the_words_of_the_seed() -> None:
    """model_id, target_worker and download_path are other names for the same."""
    message = {"model_id": "org/name", "target_worker": "gpu-1", "download_path": "/models"}
    assert read_order(message) == JobOrder(REF, path="/models", workers=("gpu-1",))
    both = {"model": "org/name", "workers": ["a", "gpu-1"], "target_worker": "gpu-1"}
    assert read_order(both).workers == ("a", "gpu-1")


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"model": 1},
        {"model": "org/name", "priority": 1.5},
        {"model": "org/name", "priority": True},
        {"model": "org/name", "priority": -101},
        {"model": "org/name", "pin": 1},
        {"model": "org/name", "path": "/" + "x" * 5000},
        {"model": "org/name", "workers": [""]},
        {"model": "org/name", "workers": ["x"] * 1025},
        {"model": "org/name", "commit": "main"},
    ],
)
def test_order_that_makes_no_sense_is_refused(message: dict[str, object]) -> None:
    """Each field has a kind and a limit."""
    with pytest.raises(InputError):
        read_order(message)


def entry(name: str, priority: int = 0, *, running: bool = False, model: str = "") -> QueueEntry:
    """Make an entry; those with a later letter are younger."""
    return QueueEntry(name, model or name, priority, ord(name), running)


@pytest.mark.parametrize(
    ("entries", "plan"),
    [
        ([], QueuePlan()),
        ([entry("a"), entry("b"), entry("c")], QueuePlan(("a", "b"))),
        ([entry("a"), entry("b"), entry("c", 1)], QueuePlan(("c", "a"))),
        ([entry("b", running=True), entry("c", running=True), entry("a")], QueuePlan()),
        (
            [entry("a", running=True), entry("b", running=True), entry("c", 1)],
            QueuePlan(("c",), ("b",)),
        ),
        (
            [entry("a", running=True), entry("b", running=True), entry("c", model="a")],
            QueuePlan(("c",)),
        ),
        (
            [entry("a", running=True), entry("b", 9, running=True), entry("c", 5, model="a")],
            QueuePlan(("c",)),
        ),
        ([entry("a", -5, running=True), entry("b", running=True)], QueuePlan()),
    ],
)
def test_queue_of_two_slots(entries: list[QueueEntry], plan: QueuePlan) -> None:
    """Priority first, then age; who runs gives way to a higher priority alone; twins join."""
    assert plan_queue(entries, slots=2) == plan
