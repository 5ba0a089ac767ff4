"""
Owns measuring how long the answer "is it here?" takes, on an index as large as a fleet's.

Knows nothing of how it is computed; asks over HTTP and in this process, as a scheduler would.
Invariants: the index is a real one, with a row for every chunk, a file for every blob and a link
for every file; what is printed was measured in this run.
Source: the goals in docs/explanation/goals.md: 10 ms over HTTP, 1 ms in process, 99 of 100 times.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from urllib.parse import quote

from p2pcache.client import read_index
from p2pcache.core.chunktable import ChunkTable, Standing
from p2pcache.core.digest import BlobDigest, ChunkDigest
from p2pcache.core.layout import CHUNK_SIZE_BYTES, Layout
from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.core.tensors import Format
from p2pcache.core.weights import FileWeights, ShapeCount
from p2pcache.store.bloblist import BlobRow
from p2pcache.store.blobs import FileBlobStore, stamp_of
from p2pcache.store.catalogue import RefRow
from p2pcache.store.home import StoreHome
from p2pcache.store.hubtree import HubTree
from p2pcache.store.index import Index
from tests.daemons import DaemonProcess

SNAPSHOTS = 500
CHUNKS = 2_000_000
ASKS = 5_000
# Of a usual model; the first one is the large one of the goal.
FILES = 30
LARGE_FILES, LARGE_BYTES = 300, 700_000_000_000
COMMIT = "0123456789abcdef0123456789abcdef01234567"
# Nobody listens there: residency asks no hub.
NO_HUB = "http://127.0.0.1:9"
# A weight file in the shape of a decoder's shard.
WEIGHTS = FileWeights(
    Format.SAFETENSORS,
    37,
    4_900_000_000,
    1_050_673_152,
    (("BF16", 2_450_000_000),),
    (ShapeCount((4096, 14336), 117_440_512, 30), ShapeCount((4096,), 8192, 7)),
)


@dataclass(frozen=True, slots=True)
class Timing:
    """
    Seconds of many answers, and where we compute them ourselves those of this thread's processor:
    what another program takes from a busy machine is not in these.
    """

    times_s: Sequence[float]
    cpu_s: Sequence[float] = ()

    def quantile_ms(self, share: float) -> float:
        """Return the time that this share of the answers took at most, in milliseconds."""
        return _quantile_ms(self.times_s, share)

    def to_json(self) -> dict[str, float]:
        """Return what is printed."""
        found = {
            "asks": len(self.times_s),
            "p50_ms": round(self.quantile_ms(0.50), 3),
            "p99_ms": round(self.quantile_ms(0.99), 3),
            "worst_ms": round(1000 * max(self.times_s), 3),
        }
        if self.cpu_s:
            found["cpu_p99_ms"] = round(_quantile_ms(self.cpu_s, 0.99), 3)
        return found


def _quantile_ms(times_s: Sequence[float], share: float) -> float:
    ordered = sorted(times_s)
    return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> None:
    """Build the index, ask, print."""
    parser = argparse.ArgumentParser(description="How long residency takes on a large index.")
    parser.add_argument("--snapshots", type=int, default=SNAPSHOTS)
    parser.add_argument("--chunks", type=int, default=CHUNKS)
    parser.add_argument("--asks", type=int, default=ASKS)
    parser.add_argument("--keep", type=Path, help="Build the store here and leave it, or reuse it.")
    parser.add_argument("--json", action="store_true", dest="is_json")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="residency-")) if arguments.keep is None else None
    root = arguments.keep or (folder or Path()) / "store"
    try:
        built_s = 0.0
        if not (root / "index.sqlite").exists():
            started_s = time.monotonic()
            build(root, arguments.snapshots, arguments.chunks)
            built_s = time.monotonic() - started_s
        measured = measure(root, arguments.snapshots, arguments.asks)
    finally:
        if folder is not None:
            shutil.rmtree(folder)
    report = {
        "snapshots": arguments.snapshots,
        "chunks": arguments.chunks,
        "built_s": round(built_s, 1),
        **{name: timing.to_json() for name, timing in measured.items()},
    }
    if arguments.is_json:
        print(json.dumps(report))
        return
    print(f"{arguments.snapshots} snapshots, {arguments.chunks:,} chunks; built in {built_s:.0f} s")
    for name, timing in measured.items():
        shown = timing.to_json()
        cpu = f", p99 of its processor {shown['cpu_p99_ms']:.3f} ms" if timing.cpu_s else ""
        print(f"{name:24} p50 {shown['p50_ms']:8.3f} ms   p99 {shown['p99_ms']:8.3f} ms   "
              f"worst {shown['worst_ms']:8.3f} ms   ({shown['asks']} answers{cpu})")  # fmt: skip


# --- the index ---


def build(root: Path, snapshot_count: int, chunk_count: int) -> None:
    """Make a store with so many snapshots that are all here, and so many chunks."""
    home = StoreHome(root).open()
    with contextlib.closing(home):
        index = Index(home.index_path)
        store, tree = FileBlobStore(home.root), HubTree(home.hub_path)
        try:
            index._db.execute("PRAGMA synchronous=OFF")  # nothing of it must survive a crash
            chance = Random(23)
            large_chunks = LARGE_FILES * -(-LARGE_BYTES // LARGE_FILES // CHUNK_SIZE_BYTES)
            rest = max(0, chunk_count - large_chunks)
            each = max(1, rest // max(1, (snapshot_count - 1) * FILES))
            for number in range(snapshot_count):
                is_large = number == 0
                sizes = (
                    [LARGE_BYTES // LARGE_FILES] * LARGE_FILES
                    if is_large
                    else [each * CHUNK_SIZE_BYTES - 1000] * FILES
                )
                with index.batch():
                    repo = _put_snapshot(index, store, tree, number, sizes, chance)
                index.catalogue.set_public(SnapshotId(repo, COMMIT), time.time())
                index.catalogue.put_ref(RefRow(repo, "main", COMMIT, time.time()))
            index.note_filled()
        finally:
            index.close()


def _put_snapshot(
    index: Index,
    store: FileBlobStore,
    tree: HubTree,
    number: int,
    sizes: list[int],
    chance: Random,
) -> RepoId:
    repo = RepoId.of("hf", "models", f"org/model-{number}")
    entries, first_chunk = [], 0
    for n, size in enumerate(sizes):
        blob = BlobDigest("sha256", chance.randbytes(32).hex())
        entries.append(FileEntry(f"model-{n:05}.safetensors", size, blob, COMMIT))
    snapshot = Snapshot.of(SnapshotId(repo, COMMIT), entries)
    index.catalogue.put_snapshot(snapshot, is_confirmed=True, about=None, wall_s=time.time())
    folder = tree.snapshot_path(snapshot.id)
    folder.mkdir(parents=True)
    for entry in snapshot.files:
        path = store.path_of(entry.digest)
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            os.truncate(file.fileno(), entry.size_bytes)
        path.chmod(0o444)
        os.symlink(path, folder / entry.path)
        layout = Layout(entry.size_bytes)
        table = ChunkTable(entry.digest, layout, Standing.PROVEN)
        for chunk_index in range(layout.chunk_count):
            # In rising order, or filling the index would take longer than all that is measured.
            raw = (number << 40 | first_chunk).to_bytes(8, "big") + chance.randbytes(24)
            table.set(chunk_index, ChunkDigest(raw))
            first_chunk += 1
        stamp = stamp_of(path.stat())
        index.blobs.put(BlobRow(entry.digest, stamp, table, True, True, time.time()))
        index.weights.put(entry.digest, WEIGHTS)
    return repo


# --- the questions ---


def measure(root: Path, snapshot_count: int, asks: int) -> dict[str, Timing]:
    """Ask in this process, without a daemon and beside one, and over HTTP."""
    chance = Random(7)
    refs = [f"org/model-{chance.randrange(snapshot_count)}" for _ in range(asks)]
    large = ["org/model-0"] * min(asks, 1000)
    firsts = [
        f"org/model-{number}" for number in chance.sample(range(snapshot_count), snapshot_count)
    ]
    measured = {}
    with read_index(root) as view:
        measured["in process"] = _time(refs, lambda ref: view.residency(ref)["state"])
        measured["in process, 300 files"] = _time(large, lambda ref: view.residency(ref)["state"])
    with read_index(root) as view:
        measured["in process, each once"] = _time(firsts, lambda ref: view.residency(ref)["state"])
    with DaemonProcess(root, upstream=NO_HUB) as daemon:
        with read_index(root) as view:
            measured["beside a daemon"] = _time(refs, lambda ref: view.residency(ref)["state"])
        host, _, port = daemon.local.removeprefix("http://").rpartition(":")
        connection = http.client.HTTPConnection(host, int(port))

        def ask(ref: str) -> object:
            connection.request("GET", f"/_p2pcache/v1/residency/{quote(ref, safe='')}")
            return json.loads(connection.getresponse().read())["state"]

        measured["over HTTP"] = Timing(_time(refs, ask).times_s)
        measured["over HTTP, 300 files"] = Timing(_time(large, ask).times_s)
        connection.close()
    return measured


def _time(refs: list[str], ask: Callable[[str], object]) -> Timing:
    times_s, cpu_s = [], []
    for ref in refs:
        started_cpu_s, started_s = time.thread_time(), time.perf_counter()
        state = ask(ref)
        times_s.append(time.perf_counter() - started_s)
        cpu_s.append(time.thread_time() - started_cpu_s)
        if state != "resident":
            sys.exit(f"{ref} is {state}; the index was built wrongly")
    return Timing(times_s, cpu_s)


if __name__ == "__main__":
    main()
