"""
Owns the promise that the how-to of two phases can be followed: its blocks are run as written.

Knows nothing of prose.
Invariants: as in tests/test_docs.py.
Source: docs/how-to/run-with-a-gpu.md.
"""

from __future__ import annotations

import random
from pathlib import Path

from tests.hub import HubProcess
from tests.test_docs import README_MODEL, make_script, run_script


def test_commands_of_running_with_a_gpu_work(tmp_path: Path) -> None:
    """A daemon, exec with the real library, wait: as written."""
    folder = tmp_path / "models" / README_MODEL
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(random.Random(3).randbytes(5_000_000))
    with HubProcess(tmp_path / "models") as hub:
        environment = {
            "P2PCACHE_STORE": str(tmp_path / "store"),
            "P2PCACHE_LOCAL": "127.0.0.1:0",
            "P2PCACHE_LISTEN": "127.0.0.1:0",
            "P2PCACHE_DISCOVER": "none",
            "P2PCACHE_HF_UPSTREAM": hub.url,
        }
        seen = run_script(make_script("docs/how-to/run-with-a-gpu.md"), tmp_path, environment)
    said, path = seen.splitlines()[-2:]
    assert said == "True"
    assert (Path(path) / "model.safetensors").stat().st_size == 5_000_000
