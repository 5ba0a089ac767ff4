"""
Owns tests of the Slurm examples: real bash, a real daemon, an `sbatch` that runs what it is given.

Knows nothing of Slurm's scheduling.
Invariants: what is run is what the files say.
Source: examples/slurm; Slurm's "Prolog and Epilog Guide" and sbatch(1).
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.daemons import DaemonProcess
from tests.examples.conftest import EXAMPLES, MODEL

FOLDER = EXAMPLES / "slurm"
# Notes its arguments; runs --wrap, or the script, and prints a number as sbatch --parsable does.
# A job that depends on one that failed does not run.
SBATCH = """#!/bin/bash
printf '%s\\n' "$*" >> "$HOME/submitted"
count=$(wc -l < "$HOME/submitted")
while [ "$#" -gt 0 ]; do
    case $1 in
        --wrap) run=(sh -c "$2"); shift ;;
        --export) export "${2#ALL,}"; shift ;;
        --dependency) [ ! -e "$HOME/failed" ] || { echo "$count"; exit 0; }; shift ;;
        --*) ;;
        *.sh) run=(bash "$1") ;;
    esac
    shift
done
"${run[@]}" >> "$HOME/output" 2>&1 || touch "$HOME/failed"
echo "$count"
"""


def run_script(
    name: str, *arguments: str, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a script of the example with bash."""
    return subprocess.run(
        ["bash", str(FOLDER / name), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


@pytest.fixture
def with_sbatch(environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """Return an environment with an sbatch, and a server that says what it was given."""
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text(SBATCH)
    sbatch.chmod(0o755)
    return {**environment, "SERVER": "echo serving"}


def test_submit_fetches_without_a_gpu_and_serves_after_that(
    daemon: DaemonProcess, with_sbatch: dict[str, str], tmp_path: Path
) -> None:
    """Two jobs: the first asks for no GPU, the second depends on it and finds the model."""
    serve = str(FOLDER / "serve.sh")
    result = run_script("submit.sh", MODEL, "gpu-1", serve, environment=with_sbatch)
    assert (result.returncode, result.stdout) == (0, "2\n"), result.stderr
    first, second = (tmp_path / "submitted").read_text().splitlines()
    assert "--gpus 0" in first
    assert "--dependency afterok:1" in second
    assert f"--comment p2pcache:{MODEL}" in second
    path = daemon.client.residency(MODEL)["path"]
    assert f"serving {path}" in (tmp_path / "output").read_text()


def test_submit_of_a_model_that_cannot_be_had_starts_no_second_job(
    daemon: DaemonProcess, with_sbatch: dict[str, str], tmp_path: Path
) -> None:
    """The first job fails with the reason in its log, and no GPU was held."""
    serve = str(FOLDER / "serve.sh")
    run_script("submit.sh", "no/such", "gpu-1", serve, environment=with_sbatch)
    said = (tmp_path / "output").read_text()
    assert "The hub knows no no/such" in said
    assert "serving" not in said


def test_prolog_brings_the_model_of_a_jobs_comment(
    daemon: DaemonProcess, environment: dict[str, str], tmp_path: Path
) -> None:
    """Missing: fetched; here: said; no comment of ours: nothing is done."""
    environment |= {"P2PCACHE_BIN": str(tmp_path / "bin")}
    plain = run_script("prolog.sh", environment=environment)
    assert (plain.returncode, plain.stdout) == (0, "")
    assert daemon.client.residency(MODEL)["state"] == "absent"
    environment |= {"SLURM_JOB_COMMENT": f"p2pcache:{MODEL}"}
    for _ in range(2):
        result = run_script("prolog.sh", environment=environment)
        path = daemon.client.residency(MODEL)["path"]
        assert result.returncode == 0
        assert result.stdout == f"p2pcache: {MODEL} is here: {path}\n", result.stderr


def test_prolog_never_drains_a_node(
    daemon: DaemonProcess, environment: dict[str, str], tmp_path: Path
) -> None:
    """A model that does not exist, and a daemon that is gone, end with 0."""
    environment |= {"P2PCACHE_BIN": str(tmp_path / "bin"), "SLURM_JOB_COMMENT": "p2pcache:no/such"}
    result = run_script("prolog.sh", environment=environment)
    assert result.returncode == 0
    assert "p2pcache: no/such is not here (exit code 10)" in result.stdout
    environment |= {"P2PCACHE_STORE": str(tmp_path / "nobodys")}
    assert run_script("prolog.sh", environment=environment).returncode == 0
