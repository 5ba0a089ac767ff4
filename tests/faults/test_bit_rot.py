"""
Owns the promise that byte errors at rest are found by a check, all of them, and healed from one
honest peer.

Knows nothing of other faults.
Invariants: the hub is stopped all the while; the final files equal the truth.
Source: reliability.md D8 and G6; the issue's "10,000 random byte errors".
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.daemons import DaemonProcess
from tests.faults.bitrot import MODEL, Rot, Truth, make_model, rot
from tests.hub import HubProcess

SEED = 20240607
# The short form runs with every test run, the long one in `make faults`.
SHORT_ROUNDS, SHORT_ERRORS = 3, 120
LONG_ROUNDS, LONG_ERRORS = 100, 100
IS_LONG = bool(os.environ.get("P2PCACHE_SLOW"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where everything of these tests is."""
    return tmp_path_factory.mktemp("rot")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    """The model's folder, below what the hub serves."""
    return make_model(folder / "models")


@pytest.fixture(scope="module")
def pair(folder: Path, model: Path) -> Iterator[tuple[DaemonProcess, DaemonProcess]]:
    """
    Two daemons that hold the model; the hub that gave it is stopped. Each test ends with both
    whole, so that they need to be filled once only.
    """
    with HubProcess(folder / "models") as hub:
        honest = DaemonProcess(folder / "honest", upstream=hub.url).start()
        rotten = DaemonProcess(folder / "rotten", upstream=hub.url, peers=[honest.peer]).start()
        try:
            for daemon in (honest, rotten):
                result = daemon.pull(MODEL)
                assert result.returncode == 0, result.stderr
            hub.set_listening(hub=False, cdn=False)
            yield honest, rotten
        finally:
            rotten.stop()
            honest.stop()


def compare(answer: dict[str, Any], injected: Rot) -> None:
    """Assert that a check found exactly what is wrong, chunk by chunk."""
    found = {row["blob"].partition(":")[2]: set(row["chunks"]) for row in answer["damaged"]}
    assert found == injected.chunks


def run_rounds(
    pair: tuple[DaemonProcess, DaemonProcess], model: Path, rounds: int, errors: int
) -> str:
    """Inject, check, heal, compare, again and again; return the figures in one line."""
    _, rotten = pair
    truth, random = Truth.of(rotten.store, model), Random(SEED)
    assert len(truth.contents) == len(list(model.iterdir()))
    injected_total = chunks_total = healed_total = 0
    started_s = time.monotonic()
    for _ in range(rounds):
        injected = rot(rotten.store, truth, errors, random)
        result = rotten.run("check", "--repair", "--json")
        assert result.returncode == 0, result.stdout + result.stderr
        answer = _read(result.stdout)
        compare(answer, injected)
        assert {row["state"] for row in answer["damaged"]} == {"healed"}
        assert truth.find_wrong(rotten.store) == []
        injected_total += injected.errors
        chunks_total += injected.chunk_count
        healed_total += len(answer["damaged"])
    elapsed_s = time.monotonic() - started_s
    return (
        f"bit rot: {injected_total} byte errors in {rounds} rounds (seed {SEED}): "
        f"{chunks_total} of {chunks_total} damaged chunks found by check, {healed_total} of "
        f"{healed_total} files healed from one peer, hub stopped, 0 wrong bytes left; "
        f"{elapsed_s:.0f} s"
    )


def _read(text: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(text)
    return answer


@pytest.mark.timeout(180)
def test_bit_rot_is_found_by_check_and_healed_from_one_peer(
    pair: tuple[DaemonProcess, DaemonProcess], model: Path
) -> None:
    """The short form: some hundreds of errors, silent and visible ones."""
    print(run_rounds(pair, model, SHORT_ROUNDS, SHORT_ERRORS))


@pytest.mark.slow
@pytest.mark.skipif(not IS_LONG, reason="the long form: P2PCACHE_SLOW=1, as in make faults")
@pytest.mark.timeout(3600)
def test_ten_thousand_byte_errors_are_found_and_healed(
    pair: tuple[DaemonProcess, DaemonProcess], model: Path
) -> None:
    """The long form: 100 rounds of 100 errors."""
    print("\n" + run_rounds(pair, model, LONG_ROUNDS, LONG_ERRORS))


@pytest.mark.timeout(180)
def test_bit_rot_that_is_not_repaired_is_set_aside_and_healed_by_the_next_pull(
    pair: tuple[DaemonProcess, DaemonProcess], model: Path
) -> None:
    """A plain check ends with 11 and hands nothing out; a pull makes everything whole again."""
    _, rotten = pair
    truth = Truth.of(rotten.store, model)
    injected = rot(rotten.store, truth, 60, Random(1))
    result = rotten.run("check", "--json")
    assert result.returncode == 11
    answer = _read(result.stdout)
    compare(answer, injected)
    assert {row["state"] for row in answer["damaged"]} == {"quarantined"}
    assert set(truth.find_wrong(rotten.store)) == set(injected.chunks)
    assert rotten.client.residency(MODEL)["state"] == "corrupt"
    result = rotten.pull(MODEL)
    assert result.returncode == 0, result.stderr
    folder = Path(result.stdout.splitlines()[-1])
    for path in model.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()
    result = rotten.run("check")
    assert result.returncode == 0, result.stdout


@pytest.mark.timeout(180)
def test_bit_rot_of_a_stopped_store_is_found_without_a_daemon(
    pair: tuple[DaemonProcess, DaemonProcess], model: Path
) -> None:
    """check --offline finds the same; the daemon that starts then heals without being asked."""
    _, rotten = pair
    truth = Truth.of(rotten.store, model)
    rotten.stop()
    injected = rot(rotten.store, truth, 60, Random(2))
    result = rotten.run("check", "--offline", "--json")
    assert result.returncode == 11, result.stderr
    compare(_read(result.stdout), injected)
    rotten.start()
    result = rotten.run("check", "--repair", "--json")
    assert result.returncode == 0, result.stdout + result.stderr
    compare(_read(result.stdout), injected)
    assert truth.find_wrong(rotten.store) == []
