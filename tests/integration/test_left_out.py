"""
Owns what a pull leaves out, as the usual client sees it: a snapshot that is whole, offline.

Knows nothing of how files are chosen.
Invariants: a real daemon, the real client in a process of its own, no network for it.
Source: docs/decisions/0021-downloads.md; design.md §4 (the hub tree).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.daemons import DaemonProcess
from tests.hub import HubProcess
from tests.integration.conftest import MakeDaemon

FILES = {
    "config.json": b"{}",
    "model.safetensors": b"s" * 300_000,
    "pytorch_model.bin": b"p" * 300_000,
    "onnx/model.onnx": b"o" * 400_000,
}
KEPT = {"config.json", "model.safetensors"}
SCRIPT = """
import json, os, sys
from huggingface_hub import snapshot_download
folder = snapshot_download("org/twins", revision=sys.argv[1])
print(json.dumps(sorted(
    os.path.relpath(os.path.join(at, name), folder)
    for at, _, names in os.walk(folder) for name in names
)))
"""


def load_offline(daemon: DaemonProcess, revision: str) -> set[str]:
    """Let the client open the model from the daemon's tree, offline; returns what it sees."""
    environment = {
        **os.environ,
        "HF_HUB_CACHE": str(daemon.store / "hub"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, revision],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout))


@pytest.mark.timeout(90)
def test_snapshot_without_its_second_format_is_whole_offline(
    tmp_path: Path, make_daemon: MakeDaemon
) -> None:
    """A default pull is resident and loads by name and by commit; an include brings the rest."""
    for name, content in FILES.items():
        path = tmp_path / "models" / "org" / "twins" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with HubProcess(tmp_path / "models") as hub:
        daemon = make_daemon("a", upstream=hub.url).start()
        result = daemon.pull("org/twins")
        assert result.returncode == 0, result.stderr
        assert "Left out 2 files of 700.0 kB" in result.stderr
        residency = daemon.client.residency("org/twins")
        assert (residency["state"], residency["bytes_missing"]) == ("resident", 0)
        assert residency["path"] == result.stdout.strip()
        assert hub.stats()["body_bytes"] < 400_000
        for revision in ("main", str(residency["commit"])):
            assert load_offline(daemon, revision) == KEPT
        assert daemon.pull("org/twins", "--include", "*").returncode == 0
        assert load_offline(daemon, "main") == FILES.keys()
