"""
Owns what integration tests share: a model as large as a small real one, a hub that serves it.

Knows nothing of single tests.
Invariants: the model's bytes are the same every time; every test has its own hub and stores.
Source: sizes of sentence-transformers/all-MiniLM-L6-v2.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.daemons import DaemonProcess
from tests.hub import HubProcess

MODEL = "org/minilm"
WEIGHTS_BYTES = 90_868_376
SMALL_FILES = {
    "config.json": 612,
    "tokenizer.json": 466_247,
    "vocab.txt": 231_508,
    "1_Pooling/config.json": 190,
    "empty.txt": 0,
}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with org/minilm: 90 MB of weights and five small files."""
    root = tmp_path_factory.mktemp("models")
    chance = random.Random(90)
    for name, size in {**SMALL_FILES, "model.safetensors": WEIGHTS_BYTES}.items():
        path = root / MODEL / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(size))
    return root


@pytest.fixture(scope="session")
def model_bytes(models: Path) -> int:
    """Return the size of all files of the model."""
    return sum(p.stat().st_size for p in (models / MODEL).rglob("*") if p.is_file())


@pytest.fixture
def hub(models: Path) -> Iterator[HubProcess]:
    """Run a hub that serves the model."""
    with HubProcess(models) as running:
        yield running


MakeDaemon = Callable[..., DaemonProcess]


@pytest.fixture
def make_daemon(tmp_path: Path) -> Iterator[MakeDaemon]:
    """Return a function that makes daemons, each with a store of its own; ends them all."""
    made: list[DaemonProcess] = []

    def make(name: str, **options: object) -> DaemonProcess:
        daemon = DaemonProcess(tmp_path / name, **options)  # type: ignore[arg-type]
        made.append(daemon)
        return daemon

    yield make
    for daemon in made:
        daemon.stop()


def assert_same_files(folder: Path, models: Path) -> None:
    """Assert that a snapshot folder holds exactly the model."""
    truth = models / MODEL
    expected = {str(p.relative_to(truth)): p for p in truth.rglob("*") if p.is_file()}
    found = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    assert sorted(found) == sorted(expected)
    for name, path in found.items():
        assert path.read_bytes() == expected[name].read_bytes(), name


@contextlib.contextmanager
def mount_small_disk(folder: Path, size_mib: int) -> Iterator[Path]:
    """Mount a real file system of so many MiB; skips the test where that cannot be."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
