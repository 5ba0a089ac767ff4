"""
Owns the states of a store that operations start from, made by the product itself and by hand.

Knows nothing of faults.
Invariants: a stage is made once and copied for every case; a copy's index knows the copy's inodes.
Source: docs/reference/store-layout.md, "What a crash leaves".
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from blake3 import blake3
from sqlite_utils import Database

from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import Layout
from p2pcache.core.verify import verify_chunk
from p2pcache.store.blobs import FileBlobStore
from p2pcache.store.schema import migrations
from tests.faults.bench import Act, Bench, open_bench
from tests.faults.child import Channel, run_child
from tests.faults.world import CHUNK_BYTES, MODEL, OLD, WANTED, WORLD

PEER_ID = "ab" * 16
MODEL_BLOB = BlobDigest.parse(WORLD.names_of(MODEL)["model.safetensors"])
DAMAGED_BLOB = MODEL_BLOB
WANTED_BLOB = BlobDigest.parse(WORLD.names_of(WANTED)["wanted.bin"])
# The schema of the release before spaces, leases and layouts with boundaries of their own.
OLDER_SCHEMA_END = "m003_space"
# Beside a store whose index is damaged by the stage itself.
TORN_INDEX_NAME = "index-is-torn"
# Beside the store: a Hugging Face cache, a bundle.
CACHE_NAME, BUNDLE_NAME = "hf", "model.p2pbundle"


class Stages:
    """The stages of one run of the harness, in a folder."""

    def __init__(self, folder: Path, hub_url: str) -> None:
        self._folder = folder
        self._hub_url = hub_url

    def lay_out(self, name: str, site: Path) -> None:
        """Make SITE a copy of a stage."""
        source = self._folder / name
        if not source.exists():
            building = self._folder / f".{name}"
            building.mkdir(parents=True)
            self._build(name, building)
            building.rename(source)
        subprocess.run(["cp", "-a", "--", str(source), str(site)], check=True)
        renew_inodes(site / "store")

    def _build(self, name: str, site: Path) -> None:
        build = _BUILDERS[name]
        if build is not None:
            build(self, site)

    def act(self, site: Path, act: Act) -> None:
        """Do something with the engine over a site that is being built."""

        async def run(channel: Channel) -> None:
            async with open_bench(site, self._hub_url, channel, {}) as bench:
                await act(bench)

        outcome = run_child(lambda channel: asyncio.run(run(channel)))
        assert outcome.is_well, f"the stage could not be built:\n{outcome.log}"

    def start_from(self, name: str, site: Path) -> None:
        """Begin a stage with another one."""
        site.rmdir()
        self.lay_out(name, site)


def renew_inodes(store: Path) -> None:
    """Let the index name the inodes that copied files have."""
    index = store / "index.sqlite"
    if not index.exists() or not index.stat().st_size:
        return
    with closing(sqlite3.connect(index)) as connection, connection:
        try:
            rows = connection.execute("SELECT digest FROM blobs").fetchall()
        except sqlite3.DatabaseError:
            return  # a stage with a damaged index
        for (digest,) in rows:
            algorithm, _, digits = digest.partition(":")
            path = store / "blobs" / algorithm / digits[:2] / digits
            if path.exists():
                inode = path.stat().st_ino & ((1 << 63) - 1)
                connection.execute("UPDATE blobs SET inode = ? WHERE digest = ?", (inode, digest))


def put_chunks(store: Path, blob: BlobDigest, indexes: list[int], *, wrong: int = -1) -> None:
    """Put chunks of a blob into its partial and commit all but the last; one may be wrong."""
    content = WORLD.contents[str(blob)]
    layout = Layout(len(content))
    partial = FileBlobStore(store).open_partial(blob, layout)
    for index in indexes:
        offset, length = layout.span_of(index, index)
        view = content[offset : offset + length]
        view = bytes(length) if index == wrong else view
        chunk = verify_chunk(
            blob, layout, index, memoryview(view), expected=None, source_id=PEER_ID
        )
        if index == indexes[-1] and len(indexes) > 1:
            partial.flush()
        partial.put(chunk, PEER_ID if wrong >= 0 else "upstream")
    partial.close()


def _build_nothing(_: Stages, site: Path) -> None:
    (site / "store").mkdir(exist_ok=True)


async def _do_nothing(_: Bench) -> None:
    return


def _build_fresh(stages: Stages, site: Path) -> None:
    stages.act(site, _do_nothing)


def _build_partial(stages: Stages, site: Path) -> None:
    stages.start_from("fresh", site)
    count = Layout(len(WORLD.contents[str(MODEL_BLOB)])).chunk_count
    put_chunks(site / "store", MODEL_BLOB, [0, 2, 3, count - 1, 5])


def _build_doubtful(stages: Stages, site: Path) -> None:
    stages.start_from("fresh", site)
    count = Layout(len(WORLD.contents[str(WANTED_BLOB)])).chunk_count
    put_chunks(site / "store", WANTED_BLOB, list(range(count)), wrong=1)


async def _pull_model(bench: Bench) -> None:
    await bench.pull(MODEL, is_pin=True)


async def _pull_part(bench: Bench) -> None:
    await bench.pull(MODEL, include=("*.json",))


async def _pull_old(bench: Bench) -> None:
    await bench.pull(OLD)


def _build_pulled(stages: Stages, site: Path) -> None:
    stages.start_from("fresh", site)
    stages.act(site, _pull_model)
    stages.act(site, _pull_old)


def _build_begun(stages: Stages, site: Path) -> None:
    """Some files of a commit are here, and its ref."""
    stages.start_from("fresh", site)
    stages.act(site, _pull_part)


def _build_loose(stages: Stages, site: Path) -> None:
    """What several crashes may leave together."""
    stages.start_from("pulled", site)
    store = site / "store"
    old = WORLD.names_of(OLD)["old.bin"].split(":")[1]
    with closing(sqlite3.connect(store / "index.sqlite")) as connection, connection:
        # A blob without a row, and a row without a blob.
        connection.execute("DELETE FROM chunk_places WHERE blob = ?", (f"sha256:{old}",))
        connection.execute(
            "UPDATE blobs SET digest = ? WHERE digest = ?", (f"sha256:{'5' * 64}", f"sha256:{old}")
        )
    put_chunks(store, WANTED_BLOB, [0, 2])
    partial = store / "partial"
    wanted = partial / f"sha256-{WANTED_BLOB.hex}"
    record = wanted.with_name(wanted.name + ".have").read_bytes()
    wanted.with_name(wanted.name + ".have.new").write_bytes(record[:77])
    wanted.chmod(0o444)
    (partial / f"sha256-{old}.have").write_bytes(record)
    (partial / f"sha256-{'7' * 64}.have").write_bytes(record)
    hub = store / "hub" / "models--org--model"
    for path in (store / ".1.2.new", hub / "trees" / ".1.2.new", hub / "blobs" / f".{old}.77"):
        path.write_bytes(b"torn")
    (hub / "snapshots" / WORLD.commit_of(MODEL) / ".77.link").symlink_to("nowhere")


def _build_lost(stages: Stages, site: Path) -> None:
    stages.start_from("loose", site)
    (site / "store" / "index.sqlite").unlink()


def _build_torn(stages: Stages, site: Path) -> None:
    stages.start_from("loose", site)
    (site / TORN_INDEX_NAME).touch()
    (site / "store" / "index.sqlite").write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 40)


def _build_older(stages: Stages, site: Path) -> None:
    """A store of the release before, with its index and a partial of its making."""
    stages.start_from("pulled", site)
    store = site / "store"
    path = store / "index.sqlite"
    newer = path.with_name("newer.sqlite")
    path.rename(newer)
    with closing(sqlite3.connect(path)) as connection:
        migrations.apply(Database(connection), stop_before=OLDER_SCHEMA_END)
        connection.execute("ATTACH ? AS newer", (str(newer),))
        for table in ("blobs", "snapshots", "files", "refs", "pins", "refuted"):
            names = [row[1] for row in connection.execute(f"PRAGMA main.table_info({table})")]
            columns = ", ".join(names)
            connection.execute(f"INSERT INTO {table} SELECT {columns} FROM newer.{table}")  # noqa: S608
        for blob, content in WORLD.contents.items():
            chunks = [content[at : at + CHUNK_BYTES] for at in range(0, len(content), CHUNK_BYTES)]
            digests = [blake3(chunk).digest() for chunk in chunks]
            connection.execute(
                "UPDATE blobs SET layout = 'fixed-4m', chunk_digests = ? WHERE digest = ?",
                (b"".join(digests), blob),
            )
            for index, digest in enumerate(digests):
                connection.execute(
                    "INSERT OR IGNORE INTO chunks SELECT ?, digest, ? FROM blobs WHERE digest = ?",
                    (digest, index, blob),
                )
        connection.commit()
        connection.execute("PRAGMA journal_mode=WAL")
    newer.unlink()
    put_chunks(store, WANTED_BLOB, [0, 2])


def _build_cached(stages: Stages, site: Path) -> None:
    """An empty store beside a Hugging Face cache, as its client makes one."""
    stages.start_from("fresh", site)
    folder = site / CACHE_NAME / "hub" / f"models--{WANTED.replace('/', '--')}"
    commit = WORLD.commit_of(WANTED)
    (folder / "blobs").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    for path, blob in WORLD.names_of(WANTED).items():
        name = blob.split(":")[1]
        (folder / "blobs" / name).write_bytes(WORLD.contents[blob])
        link = folder / "snapshots" / commit / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(folder / "blobs" / name, link.parent))


async def _export(bench: Bench) -> None:
    await bench.write_bundle(MODEL, bench.site / BUNDLE_NAME)


def _build_bundled(stages: Stages, site: Path) -> None:
    """An empty store beside a bundle."""
    stages.start_from("pulled", site)
    stages.act(site, _export)
    shutil.rmtree(site / "store")
    stages.act(site, _do_nothing)


def _build_littered(stages: Stages, site: Path) -> None:
    """What gc is for: blobs and partials that no snapshot lists, a lease that ended, litter."""
    stages.start_from("pulled", site)
    store = site / "store"
    put_chunks(store, WANTED_BLOB, [0, 2])
    with closing(sqlite3.connect(store / "index.sqlite")) as connection, connection:
        for table in ("files", "snapshots", "refs"):
            connection.execute(f"DELETE FROM {table} WHERE repo = ?", (OLD,))  # noqa: S608
        row = ("old", "hf", "models", MODEL, WORLD.commit_of(MODEL), "nobody", 1.0)
        connection.execute("INSERT INTO leases VALUES (?, ?, ?, ?, ?, ?, ?)", row)


def _build_damaged(stages: Stages, site: Path) -> None:
    """One byte of a proven file has changed, and nothing shows it."""
    stages.start_from("pulled", site)
    path = site / "store" / "blobs" / "sha256" / DAMAGED_BLOB.hex[:2] / DAMAGED_BLOB.hex
    status = path.stat()
    path.chmod(0o600)
    content = bytearray(path.read_bytes())
    content[3 * CHUNK_BYTES] ^= 1
    path.write_bytes(content)
    path.chmod(status.st_mode)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


_BUILDERS: dict[str, Callable[[Stages, Path], None] | None] = {
    "nothing": _build_nothing,
    "fresh": _build_fresh,
    "partial": _build_partial,
    "doubtful": _build_doubtful,
    "pulled": _build_pulled,
    "begun": _build_begun,
    "loose": _build_loose,
    "lost": _build_lost,
    "torn": _build_torn,
    "older": _build_older,
    "cached": _build_cached,
    "bundled": _build_bundled,
    "littered": _build_littered,
    "damaged": _build_damaged,
}
