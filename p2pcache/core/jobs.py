"""
Owns what a download job is: its order, its states, which of those that wait begins next.

Knows nothing of tasks, files or HTTP.
Invariants: a job ends once, as done, failed or cancelled; the queue counts models, not jobs: who
wants what is being fetched already joins at once; who is first in the queue is a matter of
priority, then of age.
Source: design.md §8 (downloads); docs/decisions/0021-downloads.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from p2pcache.core.refs import ModelReference, parse_commit
from p2pcache.errors import InputError

# Enough steps for people and schedulers; beyond that a queue is not what is wanted.
PRIORITY_MAX = 100
PATTERNS_MAX = 1000
PATTERN_CHARS_MAX = 4096
PATH_CHARS_MAX = 4096
# Daemons in one order.
WORKERS_MAX = 1024
WORKER_CHARS_MAX = 200


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RESOLVING = "resolving"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    PAUSED = "paused"


FINAL_STATES = (JobState.DONE, JobState.FAILED, JobState.CANCELLED)
RUNNING_STATES = (JobState.RESOLVING, JobState.DOWNLOADING, JobState.VERIFYING)


@dataclass(frozen=True, slots=True)
class JobOrder:
    """
    What a caller asked for. `path`: a folder to put the files in as well. `workers`: the daemons
    that are to fetch it, by name, id or label; this one if there are none. `commit`: the commit
    that whoever passed the order on means.
    """

    reference: ModelReference
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    is_pin: bool = False
    priority: int = 0
    path: str | None = None
    workers: tuple[str, ...] = ()
    commit: str | None = None

    def to_json(self) -> dict[str, object]:
        """Return the order for a record, or for another daemon."""
        return {
            "model": str(self.reference.repo),
            "revision": self.reference.revision,
            "include": list(self.include),
            "exclude": list(self.exclude),
            "pin": self.is_pin,
            "priority": self.priority,
            "path": self.path,
            "workers": list(self.workers),
            "commit": self.commit,
        }


def read_order(message: Mapping[str, object]) -> JobOrder:
    """
    Read an order, as a caller sent it.

    Raises:
        InputError: It is none.
    """
    model = _get_text(message, "model") or _get_text(message, "model_id")
    if not model:
        raise InputError("Name the model: {'model': 'org/name'}.")
    reference = ModelReference.parse(model, revision=_get_text(message, "revision"))
    path = _get_text(message, "path") or _get_text(message, "download_path")
    if path is not None and len(path) > PATH_CHARS_MAX:
        raise InputError(f"'path' has at most {PATH_CHARS_MAX} characters.")
    commit = _get_text(message, "commit")
    return JobOrder(
        reference,
        get_texts(message, "include", count_max=PATTERNS_MAX, chars_max=PATTERN_CHARS_MAX),
        get_texts(message, "exclude", count_max=PATTERNS_MAX, chars_max=PATTERN_CHARS_MAX),
        is_pin=_get_switch(message, "pin"),
        priority=_get_priority(message),
        path=path,
        workers=_get_workers(message),
        commit=None if commit is None else parse_commit(commit),
    )


def _get_text(message: Mapping[str, object], key: str) -> str | None:
    value = message.get(key)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{key!r} is text.")
    return value


def _get_switch(message: Mapping[str, object], key: str) -> bool:
    value = message.get(key)
    if value is not None and not isinstance(value, bool):
        raise InputError(f"{key!r} is true or false.")
    return value is True


def _get_priority(message: Mapping[str, object]) -> int:
    value = message.get("priority")
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > PRIORITY_MAX:
        raise InputError(
            f"'priority' is a whole number from -{PRIORITY_MAX} to {PRIORITY_MAX}; 0 is usual, "
            "more is sooner."
        )
    return value


def _get_workers(message: Mapping[str, object]) -> tuple[str, ...]:
    workers = get_texts(message, "workers", count_max=WORKERS_MAX, chars_max=WORKER_CHARS_MAX)
    target = _get_text(message, "target_worker")
    return tuple(dict.fromkeys(workers if not target else (*workers, target)))


def get_texts(
    message: Mapping[str, object], key: str, *, count_max: int, chars_max: int
) -> tuple[str, ...]:
    """
    Return a list of texts; one alone may be given as text.

    Raises:
        InputError: It is none, or too long.
    """
    value = message.get(key)
    if value is None:
        return ()
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or len(texts) > count_max:
        raise InputError(f"{key!r} is a list of at most {count_max} texts.")
    if not all(isinstance(text, str) and 0 < len(text) <= chars_max for text in texts):
        raise InputError(f"{key!r} is a list of texts of at most {chars_max} characters.")
    return tuple(texts)


# --- the queue ---


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """A job that waits or runs. `model`: equal for jobs that fetch the same."""

    id: str
    model: str
    priority: int
    number: int
    is_running: bool


@dataclass(frozen=True, slots=True)
class QueuePlan:
    """Which jobs begin, and which go back into the queue for them."""

    start: tuple[str, ...] = ()
    suspend: tuple[str, ...] = ()


@dataclass(slots=True)
class _Group:
    priority: int
    number: int
    is_running: bool = False
    entries: list[QueueEntry] = field(default_factory=list)


def plan_queue(entries: Iterable[QueueEntry], *, slots: int) -> QueuePlan:
    """
    Decide which jobs run.

    A job that runs goes back into the queue for one of a higher priority only.

    Args:
        entries: All jobs that wait or run.
        slots: How many models are fetched at once.
    """
    groups: dict[str, _Group] = {}
    for entry in sorted(entries, key=lambda entry: entry.number):
        group = groups.setdefault(entry.model, _Group(entry.priority, entry.number))
        group.priority = max(group.priority, entry.priority)
        group.is_running = group.is_running or entry.is_running
        group.entries.append(entry)
    ranked = sorted(groups.values(), key=lambda g: (-g.priority, not g.is_running, g.number))
    chosen, others = ranked[:slots], ranked[slots:]
    return QueuePlan(
        tuple(e.id for group in chosen for e in group.entries if not e.is_running),
        tuple(e.id for group in others for e in group.entries if e.is_running),
    )
