"""
Owns the short selection of the crash harness: a few cases of every fault class, in a minute.

Knows nothing of how faults are injected; the harness runs as a process of its own, because a
process that forks must have no threads.
Invariants: a fault class that this machine cannot inject is skipped by its name.
Source: `make faults` for all of it; docs/reliability.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.campaign import CLASSES
from tests.faults.mutation import MUTATIONS
from tests.faults.oracle import Rule

pytestmark = [pytest.mark.faults, pytest.mark.timeout(180)]

ROOT = Path(__file__).resolve().parents[2]
SHORT_CASES = 14
SHORT_SECONDS = 3.0
SEED = 1


def run_harness(out: Path, *arguments: str) -> dict[str, Any]:
    """Run the harness and return its result."""
    command = [sys.executable, "-m", "tests.faults", *arguments, "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert out.exists(), done.stderr[-3000:]
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def test_lane_that_breaks_off_ends_the_run(tmp_path: Path) -> None:
    """What half of the lanes saw is not told as the whole."""
    command = [sys.executable, "-m", "tests.faults", "run", "--class=kills", "--lanes=2"]
    # A class that a machine has, of an operation that nobody knows.
    command += ["--operation=none-of-these", f"--out={tmp_path / 'out.json'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout
    assert "broke off" in done.stderr
    assert not (tmp_path / "out.json").exists()


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run a few cases of every class, once."""
    out = tmp_path_factory.mktemp("faults") / "short.json"
    limits = [f"--count={SHORT_CASES}", f"--seconds={SHORT_SECONDS}", f"--seed={SEED}"]
    return run_harness(out, "run", *limits)


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Break the store in every known way, once."""
    return run_harness(tmp_path_factory.mktemp("faults") / "proof.json", "prove")


@pytest.mark.parametrize("name", CLASSES)
def test_store_under_faults_never_lies(name: str, short_run: dict[str, Any]) -> None:
    """No wrong byte, no acknowledged loss, no false have, no orphan, no error without a name."""
    if name in short_run["skipped"]:
        pytest.skip(f"fault class {name}: {short_run['skipped'][name]}")
    found = short_run["classes"][name]
    assert found["failures"] == []
    assert found["findings"] == dict.fromkeys((rule.value for rule in Rule), 0)
    assert found["cases"] > 0


@pytest.mark.parametrize("name", MUTATIONS)
def test_harness_notices_a_store_that_is_broken_on_purpose(
    name: str, proof: dict[str, Any]
) -> None:
    """Each invariant that is undone is found out: a harness that cannot fail proves nothing."""
    class_name = MUTATIONS[name].class_name
    if class_name in proof["skipped"]:
        pytest.skip(f"fault class {class_name}: {proof['skipped'][class_name]}")
    assert proof["seen"][name]
