"""
Owns the named operations that faults are put into: what each starts from, does, and may lose.

Knows nothing of faults.
Invariants: an operation can be done again after any fault, and comes to the same end.
Source: issue "a store that never lies", item 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.faults.bench import Act, Bench
from tests.faults.stage import BUNDLE_NAME, CACHE_NAME, DAMAGED_BLOB, WANTED_BLOB
from tests.faults.world import MODEL, OLD, TUNED, WANTED

# Room for what is pulled and pinned, and for one of the two others.
EVICTING_QUOTA = "290000"


@dataclass(frozen=True, slots=True)
class Operation:
    """
    One thing that the engine does.

    Attributes:
        stage: What the store is before.
        act: Does it; may be done again.
        covers_start: Whether the start of the engine, and its end, are a part of it.
        promised: Repositories that are complete before, and stay.
        pinned: Repositories that are pinned before, and stay.
        wanted: Repositories that must be complete in the end, whatever happened.
        doubtful: Blobs whose partial holds wrong bytes until the proof.
        damaged: Blobs that are wrong on the disk until the operation has mended them.
        settings: Of the daemon, by their names.
        lacks: System calls that the file system does not have.
    """

    name: str
    stage: str
    act: Act
    covers_start: bool = False
    promised: tuple[str, ...] = ()
    pinned: tuple[str, ...] = ()
    wanted: tuple[str, ...] = (MODEL,)
    doubtful: frozenset[str] = frozenset()
    damaged: frozenset[str] = frozenset()
    settings: Mapping[str, str] = field(default_factory=dict)
    lacks: frozenset[str] = frozenset()


async def _nothing(_: Bench) -> None:
    return


async def _pull(bench: Bench) -> None:
    await bench.pull(MODEL, is_pin=True)


async def _pull_plainly(bench: Bench) -> None:
    await bench.pull(MODEL)


async def _pull_wanted(bench: Bench) -> None:
    await bench.pull(WANTED)


async def _pull_tuned(bench: Bench) -> None:
    await bench.pull(TUNED)


async def _clean(bench: Bench) -> None:
    await bench.clean()


async def _remove(bench: Bench) -> None:
    await bench.remove(OLD)


async def _check(bench: Bench) -> None:
    await bench.check(is_repair=False)


async def _repair(bench: Bench) -> None:
    await bench.check(is_repair=True)


async def _adopt(bench: Bench) -> None:
    await bench.adopt(bench.site / CACHE_NAME, WANTED)


async def _take_in(bench: Bench) -> None:
    await bench.take_in(bench.site / BUNDLE_NAME, MODEL)


_BOTH = (MODEL, OLD)
_ALL = (MODEL, OLD, WANTED)
_DOUBTFUL = frozenset({str(WANTED_BLOB)})
_DAMAGED = frozenset({str(DAMAGED_BLOB)})


def _list_fetching() -> list[Operation]:
    return [
        Operation("create", "nothing", _nothing, covers_start=True),
        Operation("pull", "fresh", _pull),
        Operation("resume", "partial", _pull),
        Operation("extend", "begun", _pull_plainly),
        Operation("forget", "doubtful", _pull_wanted, wanted=(WANTED,), doubtful=_DOUBTFUL),
        Operation(
            "dedup",
            "pulled",
            _pull_tuned,
            promised=_BOTH,
            pinned=(MODEL,),
            wanted=(*_BOTH, TUNED),
        ),
        Operation(
            "dedup-plain",
            "pulled",
            _pull_tuned,
            promised=_BOTH,
            pinned=(MODEL,),
            wanted=(*_BOTH, TUNED),
            lacks=frozenset({"link", "posix_fallocate", "copy_file_range"}),
        ),
        Operation("import", "cached", _adopt, wanted=(WANTED,)),
        Operation(
            "import-copy",
            "cached",
            _adopt,
            wanted=(WANTED,),
            lacks=frozenset({"link", "ioctl"}),
        ),
        Operation("import-bundle", "bundled", _take_in),
    ]


def _list_starting() -> list[Operation]:
    def start(name: str, stage: str) -> Operation:
        return Operation(
            name,
            stage,
            _nothing,
            covers_start=True,
            promised=_BOTH,
            pinned=(MODEL,),
            wanted=_ALL,
        )

    return [
        start("restart", "loose"),
        start("rebuild", "lost"),
        start("set-aside", "torn"),
        start("migrate", "older"),
    ]


def _list_keeping() -> list[Operation]:
    kept = {"promised": (MODEL,), "pinned": (MODEL,)}
    return [
        Operation(
            "evict",
            "pulled",
            _pull_wanted,
            promised=(MODEL,),
            pinned=(MODEL,),
            wanted=(MODEL, WANTED),
            settings={"quota": EVICTING_QUOTA},
        ),
        Operation("gc", "littered", _clean, **kept),  # type: ignore[arg-type]
        Operation("remove", "pulled", _remove, **kept),  # type: ignore[arg-type]
        Operation("check", "damaged", _check, promised=(OLD,), damaged=_DAMAGED, wanted=_BOTH),
        Operation("repair", "damaged", _repair, promised=(OLD,), damaged=_DAMAGED, wanted=_BOTH),
    ]


OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for operation in (*_list_fetching(), *_list_starting(), *_list_keeping())
}
