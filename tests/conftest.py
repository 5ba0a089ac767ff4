"""
Owns how tests are run: the settings of property tests, and what several processes share.

Knows nothing of single tests.
Invariants: no example fails for being slow: a busy machine is not a bug; a test that is marked
`alone` has the machine for itself.
Source: hypothesis, "settings profiles"; pytest-xdist; docs/decisions/0025-tests-side-by-side.md.
"""

from __future__ import annotations

import contextlib
import gc
import shutil
import signal
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.turns import take_turn

settings.register_profile("p2pcache", deadline=None, print_blob=True)
settings.load_profile("p2pcache")

TURNS = "p2pcache_turns"
TURNS_FOLDER = pytest.StashKey[Path]()
# These start daemons and take longest: begun last, they would leave the other processes idle.
LONG_FOLDERS = ("tests/clients/", "tests/faults/", "tests/integration/")


# A shell's background job ignores Ctrl-C, and so would every process that a test starts and
# interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a process of pytest-xdist where turns are taken."""
    stash = node.config.stash
    if TURNS_FOLDER not in stash:
        stash[TURNS_FOLDER] = Path(tempfile.mkdtemp(prefix="p2pcache-turns-"))
    node.workerinput[TURNS] = str(stash[TURNS_FOLDER])


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove what pytest_configure_node() made."""
    if TURNS_FOLDER in config.stash:
        shutil.rmtree(config.stash[TURNS_FOLDER], ignore_errors=True)


def find_turns(config: pytest.Config) -> Path | None:
    """Return where turns are taken, or None in a run of a single process."""
    folder = getattr(config, "workerinput", {}).get(TURNS)
    return Path(folder) if folder else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the long files where files are handed out one by one; else keep the order."""
    if find_turns(config) is not None:
        items.sort(key=lambda item: not item.nodeid.startswith(LONG_FOLDERS))


def exempt_survivors() -> None:
    """
    Collect garbage now, and go through what is left no more.

    Many tests collect garbage at their end to see what they left; to go through all modules and
    all that earlier files keep, each time, took a fifth of the whole run.
    """
    gc.collect()
    gc.freeze()


def pytest_collection_finish() -> None:
    """Exempt the modules that were imported."""
    exempt_survivors()


def pytest_sessionfinish() -> None:
    """Let the last collection, which is pytest's, see everything."""
    gc.unfreeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, object, object]:
    """Take a turn for a test and its fixtures, outside of its timeout; tidy up after a file."""
    folder = find_turns(item.config)
    is_alone = item.get_closest_marker("alone") is not None
    with take_turn(folder, is_alone=is_alone) if folder else contextlib.nullcontext():
        result = yield
    if nextitem is None or nextitem.path != item.path:
        exempt_survivors()
    return result
