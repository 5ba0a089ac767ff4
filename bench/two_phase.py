"""
Owns the replay of a published case, scaled: a model at a throttled upstream, a GPU that is claimed
by the program that downloads it; beside it the same work in two phases, with `p2pcache exec`.

Knows nothing of the daemon's inside: it starts processes and reads what the device noted.
Invariants: both do the same work with the same hub at the same rate; bytes are counted at the hub;
what is loaded has the model's digests; everything that was started is stopped.
Source: the case: 474 GB at 106 MB/s while 16 GPUs waited, killed by a time limit at 62 %, retried
from the beginning. A thousandth of the bytes at a tenth of the rate takes 45 s.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.model import MODEL, BenchModel, find_wrong_files, make_model
from bench.timeline import Bar, Row, draw
from tests.daemons import DaemonProcess, wait_until
from tests.hub import HubProcess

ROOT = Path(__file__).resolve().parents[1]
MODEL_BYTES = 474_000_000
RATE_BYTES_PER_S = 10_600_000
KILL_AT = 0.6
ATTEMPT_TIMEOUT_S = 600.0


@dataclass(slots=True)
class Attempt:
    """One start of a program, in seconds since its run began."""

    started_s: float
    claimed_s: float | None = None
    used_s: float | None = None
    ready_s: float | None = None
    ended_s: float = 0.0
    was_killed: bool = False

    @property
    def idle_s(self) -> float:
        """Return how long the device was claimed and did nothing."""
        if self.claimed_s is None:
            return 0.0
        return (self.ended_s if self.used_s is None else self.used_s) - self.claimed_s


@dataclass(slots=True)
class Run:
    """All attempts until a model is on the device."""

    name: str
    model_bytes: int
    attempts: list[Attempt] = field(default_factory=list)
    upstream_bytes: int = 0
    wrong_files: list[str] = field(default_factory=list)

    @property
    def idle_s(self) -> float:
        """Return the idle claimed seconds of all attempts."""
        return sum(attempt.idle_s for attempt in self.attempts)

    @property
    def upstream_ratio(self) -> float:
        """Return upstream bytes ÷ model bytes."""
        return self.upstream_bytes / self.model_bytes


@dataclass(frozen=True, slots=True)
class Stage:
    """What both ways of doing it find: a hub, a model, a folder, a share to kill at."""

    hub: HubProcess
    model: BenchModel
    scratch: Path
    kill_at: float | None

    @property
    def device(self) -> Path:
        """Return the device's file."""
        return self.scratch / "gpu"


def run_one_phase(stage: Stage) -> Run:
    """The program claims the device, then downloads with the real huggingface_hub."""
    home = stage.scratch / "home"
    environment = {
        **_clean_environment(),
        "HF_HOME": str(home),
        "HF_ENDPOINT": stage.hub.url,
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    command = [sys.executable, "-m", "bench.standin", str(stage.device), "--download", MODEL]
    run = _run_attempts("one phase", stage, command, environment, lambda: None)
    [snapshot] = (home / "hub" / f"models--{MODEL.replace('/', '--')}" / "snapshots").iterdir()
    run.wrong_files = find_wrong_files(stage.model, snapshot)
    return run


def run_two_phases(stage: Stage) -> Run:
    """`p2pcache exec` downloads, then starts the program, which claims the device."""
    daemon = DaemonProcess(stage.scratch / "store", upstream=stage.hub.url)
    command = [sys.executable, "-m", "p2pcache", "exec", MODEL, *daemon.where[:2], "--"]
    command += [sys.executable, "-m", "bench.standin", str(stage.device), "--folder", "{}"]

    def restart() -> None:
        daemon.kill()
        daemon.start()

    with daemon:
        run = _run_attempts("two phases", stage, command, _clean_environment(), restart)
        path = Path(daemon.client.residency(MODEL)["path"])
        run.wrong_files = find_wrong_files(stage.model, path)
    return run


def _run_attempts(
    name: str,
    stage: Stage,
    command: list[str],
    environment: dict[str, str],
    between: Callable[[], None],
) -> Run:
    """Start a command; kill it at the share that was named and start it again; to its end."""
    run = Run(name, stage.model.size_bytes)
    stage.hub.reset()
    began_s = time.monotonic()
    for kill_at in (stage.kill_at, None) if stage.kill_at else (None,):
        attempt = Attempt(time.monotonic() - began_s)
        run.attempts.append(attempt)
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            if kill_at is not None:
                wanted = kill_at * stage.model.size_bytes
                _wait_for_bytes(stage.hub, wanted, process)
                process.kill()
                attempt.was_killed = True
            _, said = process.communicate(timeout=ATTEMPT_TIMEOUT_S)
        finally:
            process.kill()
            process.wait()
        attempt.ended_s = time.monotonic() - began_s
        _take_ledger(stage.device, attempt, process.pid, began_s)
        if not attempt.was_killed and process.returncode != 0:
            raise RuntimeError(f"{name} ended with {process.returncode}: {said.decode()}")
        if attempt.was_killed:
            between()
    run.upstream_bytes = int(stage.hub.stats()["body_bytes"])
    return run


def _wait_for_bytes(hub: HubProcess, wanted: float, process: subprocess.Popen[bytes]) -> None:
    wait_until(
        lambda: process.poll() is not None or hub.stats()["body_bytes"] >= wanted,
        f"{wanted:.0f} bytes from the hub",
        timeout_s=ATTEMPT_TIMEOUT_S,
    )
    if process.poll() is not None:
        raise RuntimeError("the program ended before it could be killed; kill it earlier")


def _take_ledger(device: Path, attempt: Attempt, pid: int, began_s: float) -> None:
    """Copy what a process noted; `p2pcache exec` has the process id of its command."""
    ledger = device.with_suffix(".ledger")
    for line in ledger.read_text().splitlines() if ledger.exists() else ():
        entry = json.loads(line)
        if entry["pid"] == pid:
            setattr(attempt, f"{entry['event']}_s", entry["at_s"] - began_s)


def _clean_environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("P2PCACHE_", "HF_"))}


@contextlib.contextmanager
def _stage(model: BenchModel, rate_bytes_per_s: int, kill_at: float | None) -> Iterator[Stage]:
    with (
        tempfile.TemporaryDirectory(prefix="p2pcache-two-phase-") as scratch,
        HubProcess(model.root, rate_bytes_per_s=rate_bytes_per_s) as hub,
    ):
        yield Stage(hub, model, Path(scratch), kill_at)


def measure(size_bytes: int, rate_bytes_per_s: int, shares: Sequence[float | None]) -> list[Run]:
    """Do it in one phase and in two, for each share of the bytes to be killed at; None: not."""
    runs = []
    with tempfile.TemporaryDirectory(prefix="p2pcache-two-phase-model-") as folder:
        model = make_model(Path(folder) / "models", size_bytes)
        for share in shares:
            for do in (run_one_phase, run_two_phases):
                with _stage(model, rate_bytes_per_s, share) as stage:
                    run = do(stage)
                run.name += f", killed at {share:.0%}" if share else ""
                runs.append(run)
                print(show_row(run), flush=True)
    return runs


HEAD = f"{'run':<26}{'seconds':>9}{'idle claimed':>14}{'upstream ÷ model':>18}{'bytes right':>13}"


def show_row(run: Run) -> str:
    """Return a line of the table."""
    right = "yes" if not run.wrong_files else "NO"
    return (
        f"{run.name:<26}{run.attempts[-1].ready_s or 0:>9.1f}{run.idle_s:>12.2f} s"
        f"{run.upstream_ratio:>18.2f}{right:>13}"
    )


def make_rows(runs: list[Run]) -> list[Row]:
    """Return what the picture shows of runs."""
    rows = []
    for run in runs:
        bars: list[Bar] = []
        for attempt in run.attempts:
            claimed_s = attempt.ended_s if attempt.claimed_s is None else attempt.claimed_s
            used_s = attempt.ended_s if attempt.used_s is None else attempt.used_s
            bars.append(Bar("download", attempt.started_s, claimed_s))
            if attempt.claimed_s is not None:
                bars.append(Bar("idle", claimed_s, used_s))
            if attempt.used_s is not None:
                bars.append(Bar("used", used_s, attempt.ended_s))
        killed = tuple(a.ended_s for a in run.attempts if a.was_killed)
        note = f"idle {run.idle_s:.2f} s, upstream {run.upstream_ratio:.2f} × model"
        shown = [bar for bar in bars if bar.kind != "download" or bar.end_s - bar.start_s > 0.5]
        rows.append(Row(run.name, note, tuple(shown), killed))
    return rows


def find_misses(runs: list[Run], rate_bytes_per_s: int) -> list[str]:
    """Return what a measurement did not reach."""
    misses = []
    for run in runs:
        download_s = run.model_bytes / rate_bytes_per_s
        if run.wrong_files:
            misses.append(f"{run.name}: wrong files {run.wrong_files}")
        if run.name.startswith("one phase") and run.idle_s < 0.95 * download_s:
            misses.append(f"{run.name}: idle {run.idle_s:.2f} s is less than the download")
        if run.name.startswith("two phases") and run.idle_s > 1.0:
            misses.append(f"{run.name}: idle {run.idle_s:.2f} s is more than a second")
        if run.name.startswith("two phases") and run.upstream_ratio > 1.05:
            misses.append(f"{run.name}: the hub sent {run.upstream_ratio:.2f} × the model")
    return misses


def main() -> None:
    """Measure, print a table, write the picture; exits 1 if a promise was not kept."""
    parser = argparse.ArgumentParser(description="One phase against two.")
    parser.add_argument("--bytes", type=int, default=MODEL_BYTES)
    parser.add_argument("--rate", type=int, default=RATE_BYTES_PER_S, help="bytes per second")
    parser.add_argument("--kill-at", type=float, default=KILL_AT, help="share; 0 for no kill")
    parser.add_argument("--plot", type=Path, help="write the timelines as SVG")
    parser.add_argument("--json", type=Path, help="write all numbers")
    arguments = parser.parse_args()
    size, rate = arguments.bytes, arguments.rate
    print(f"{size / 1e6:.0f} MB at {rate / 1e6:.1f} MB/s: {size / rate:.0f} s at the least")
    print(HEAD, flush=True)
    shares = (None, arguments.kill_at) if arguments.kill_at else (None,)
    runs = measure(size, rate, shares)
    if arguments.plot:
        draw(f"{size / 1e6:.0f} MB at {rate / 1e6:.1f} MB/s", make_rows(runs), arguments.plot)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(run) for run in runs], indent=1))
    misses = find_misses(runs, rate)
    for miss in misses:
        print(miss)
    sys.exit(1 if misses else 0)


if __name__ == "__main__":
    main()
