"""
Owns the stand-in for a GPU, and the program that loads a model onto it: it claims the device, gets
the model's files, copies them there, and writes down when.

Knows nothing of p2pcache: it is given a folder, or asks the real huggingface_hub for one.
Invariants: a claim is exclusive and ends with its process, as a real one does; the device is
claimed before anything that takes time; times are of the clock that all processes share.
Source: issue "two phases"; flock(2).
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import time
from pathlib import Path
from typing import IO

PIECE_BYTES = 16 * 1024 * 1024
# Holding the whole model twice would measure this machine's memory.
DEVICE_BYTES_MAX = 64 * 1024 * 1024


class Device:
    """One GPU, as a file that is locked, and a ledger beside it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock: IO[str] | None = None
        self._memory = bytearray(DEVICE_BYTES_MAX)
        self._used_bytes = 0

    def claim(self) -> None:
        """
        Take it.

        Raises:
            BlockingIOError: Somebody else has it.
        """
        self._lock = self._path.open("a")
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._note("claimed")

    def put(self, piece: memoryview) -> None:
        """Copy bytes to it; the first ones are its first use."""
        offset = self._used_bytes % (DEVICE_BYTES_MAX - PIECE_BYTES)
        self._memory[offset : offset + len(piece)] = piece
        if not self._used_bytes:
            self._note("used")
        self._used_bytes += len(piece)

    def note_ready(self) -> None:
        """Write down that all of the model is on it."""
        self._note("ready", bytes=self._used_bytes)

    def _note(self, event: str, **fields: object) -> None:
        entry = {"event": event, "at_s": time.monotonic(), "pid": os.getpid(), **fields}
        with self._path.with_suffix(".ledger").open("a") as ledger:
            ledger.write(json.dumps(entry) + "\n")


def load(folder: Path, device: Device) -> None:
    """Copy every file of a model to the device."""
    buffer = memoryview(bytearray(PIECE_BYTES))
    for path in sorted(folder.rglob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                device.put(buffer[:count])
    device.note_ready()


def main() -> None:
    """Claim, get the files, load."""
    parser = argparse.ArgumentParser()
    parser.add_argument("device", type=Path)
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--download", metavar="MODEL", help="get it with huggingface_hub")
    chosen.add_argument("--folder", type=Path, help="it is here")
    arguments = parser.parse_args()
    device = Device(arguments.device)
    device.claim()
    folder = arguments.folder
    if arguments.download:
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(arguments.download))
    load(folder, device)


if __name__ == "__main__":
    main()
