"""
Owns the judgement on a store: an independent reading of all that it claims, held against the truth.

Knows nothing of the package: reads files, links, the have-record and the index by their
description alone (record.py, plain sqlite3, hashlib, blake3).
Invariants: changes nothing in the store; every finding names a rule, a place and a reason.
Source: reliability.md §3.2 (the oracle for all rows); docs/reference/store-layout.md.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from blake3 import blake3

from tests.faults.promises import Promises
from tests.faults.record import HaveRecord, read_record
from tests.faults.world import World, name_content

_ROOT_NAMES = re.compile(
    r"p2pcache-store\.json|lock(-owner\.json)?|pins\.json|check\.json|daemon\.json|admin-token|peer-id|blobs|partial|hub"
    r"|index\.sqlite(-wal|-shm)?|index\.sqlite\.corrupt-\d+(-wal|-shm)?|lost\+found"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST_BYTES = 32
_MARKER_SUFFIX = ".adopted"
_GIT_NAME = "0" * 40


class Rule(StrEnum):
    """What must never happen."""

    WRONG = "wrong bytes"
    LOST = "acknowledged loss"
    FALSE = "false have"
    ORPHAN = "orphan"
    BEHAVIOUR = "behaviour"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it must be."""

    rule: Rule
    text: str


class Oracle:
    """The judge of one store."""

    def __init__(
        self,
        root: Path,
        world: World,
        chunk_bytes: int,
        *,
        may_have_torn_index: bool = False,
        damaged: frozenset[str] = frozenset(),
    ) -> None:
        """
        Args:
            root: The store.
            world: What is true.
            chunk_bytes: The step of layouts without boundaries of their own.
            may_have_torn_index: The stage itself has one, which the next start sets aside.
            damaged: Blobs that the stage itself damaged, and nobody has looked at yet.
        """
        self.root = root
        self._may_have_torn_index = may_have_torn_index
        self._damaged = damaged
        self._world = world
        self._chunk_bytes = chunk_bytes
        self._findings: list[Finding] = []

    def examine(self, *, is_settled: bool) -> list[Finding]:
        """
        Look at everything.

        Args:
            is_settled: The store has recovered and been cleaned: what a crash may leave for the
                next start is not excused any more.
        """
        self._findings = []
        published = self._check_blobs()
        self._check_hub(is_settled=is_settled)
        self._check_partials(published, is_settled=is_settled)
        self._check_index(published, is_settled=is_settled)
        if is_settled:
            self._check_names()
        self._check_foreign()
        return self._findings

    def check_promises(self, promises: Promises) -> list[Finding]:
        """Look for everything that was acknowledged as durable."""
        self._findings = []
        for blob in promises.blobs:
            if not self._holds_blob(blob):
                self._add(Rule.LOST, f"blob {blob} was published and is not there")
        for (blob, index), digest in promises.chunks.items():
            if not self._holds_chunk(blob, index, digest):
                self._add(Rule.LOST, f"chunk {index} of {blob} was durable and is not held")
        for repo, has_ref in promises.snapshots.items():
            self._check_snapshot(repo, has_ref=has_ref)
        with self._index() as rows_of:
            query = "SELECT repo, commit_id FROM pins"
            rows = [] if rows_of is None else rows_of.execute(query)
            pins = {(row[0], row[1]) for row in rows}
        for repo in promises.pins:
            if (repo, self._world.commit_of(repo)) not in pins:
                self._add(Rule.LOST, f"the pin of {repo} is gone")
        return self._findings

    def check_claims(
        self, residency: dict[str, str], have: dict[str, list[int]], doubtful: frozenset[str]
    ) -> list[Finding]:
        """
        Hold what the engine itself says against the files.

        Args:
            residency: Repository → state.
            have: Blob → chunks that its partial is said to hold.
            doubtful: Blobs whose partial may hold wrong bytes until the proof.
        """
        self._findings = []
        for repo, state in residency.items():
            if state == "resident":
                for path, blob in self._world.names_of(repo).items():
                    if not self._holds_blob(blob) and blob not in self._damaged:
                        self._add(Rule.FALSE, f"{repo} is called resident, {path} is not here")
        for blob, indexes in have.items():
            content = self._world.contents.get(blob)
            partial = self._partial_path(blob)
            record = self._read_record(partial.with_name(partial.name + ".have"))
            for index in indexes:
                if record is None or content is None:
                    self._add(Rule.FALSE, f"chunk {index} of {blob} is said to be held; no record")
                    continue
                start, end = record.span_of(index)
                if blob not in doubtful and _read_span(partial, start, end) != content[start:end]:
                    self._add(
                        Rule.FALSE, f"chunk {index} of {blob} is said to be held; it is wrong"
                    )
        return self._findings

    # --- files ---

    def _check_blobs(self) -> dict[str, os.stat_result]:
        """Every published file is what its name says, at any moment."""
        published = {}
        for path in sorted((self.root / "blobs").glob("*/*/*")):
            algorithm = path.parent.parent.name
            if path.name.endswith(_MARKER_SUFFIX) or not path.is_file():
                continue
            status = path.stat()  # a blob may be a link to somebody else's file
            published[f"{algorithm}:{path.name}"] = status
            content = path.read_bytes()
            blob = f"{algorithm}:{path.name}"
            if name_content(content, algorithm) != blob and blob not in self._damaged:
                zeros = content.count(0)
                self._add(
                    Rule.WRONG,
                    f"{self._name(path)} is published with other bytes "
                    f"({len(content)} bytes, {zeros} of them zero)",
                )
        return published

    def _check_hub(self, *, is_settled: bool) -> None:
        for repo in self._world.files:
            folder = self.root / "hub" / f"models--{repo.replace('/', '--')}"
            commit = self._world.commit_of(repo)
            self._check_tree(folder, repo, commit)
            for path in _walk(folder / "refs"):
                if not path.name.startswith(".") and path.read_text() != commit:
                    self._add(Rule.WRONG, f"{self._name(path)} names {path.read_text()!r}")
            for path in _walk(folder / "snapshots" / commit):
                name = str(path.relative_to(folder / "snapshots" / commit))
                if name not in self._world.files[repo]:
                    continue
                if not path.exists():
                    if is_settled:
                        self._add(Rule.FALSE, f"{self._name(path)} is a link that leads nowhere")
                elif self._is_wrong(repo, name, path):
                    self._add(Rule.WRONG, f"{self._name(path)} leads to other bytes")

    def _is_wrong(self, repo: str, name: str, path: Path) -> bool:
        if self._world.names_of(repo)[name] in self._damaged:
            return False
        return path.read_bytes() != self._world.files[repo][name]

    def _check_tree(self, folder: Path, repo: str, commit: str) -> None:
        path = folder / "trees" / f"{commit}.json"
        has_links = any(_walk(folder / "snapshots" / commit))
        if not path.exists():
            if has_links:
                self._add(Rule.FALSE, f"{self._name(path)} is missing although files are linked")
            return
        try:
            listed = set(json.loads(path.read_bytes())["files"])
        except (ValueError, KeyError, TypeError) as error:
            self._add(Rule.WRONG, f"{self._name(path)} cannot be read: {error}")
            return
        if listed != set(self._world.files[repo]):
            self._add(Rule.WRONG, f"{self._name(path)} lists {sorted(listed)}")

    def _check_foreign(self) -> None:
        """Files beside the store that it was shown are still what they were."""
        for path in self.root.parent.glob("hf/hub/*/blobs/*"):
            algorithm = "gitsha1" if len(path.name) == len(_GIT_NAME) else "sha256"
            if name_content(path.read_bytes(), algorithm) != f"{algorithm}:{path.name}":
                self._add(Rule.WRONG, f"{path.name} of somebody else's cache was changed")

    def _check_partials(self, published: dict[str, os.stat_result], *, is_settled: bool) -> None:
        folder = self.root / "partial"
        for path in sorted(folder.glob("*.have")):
            partial = path.with_suffix("")
            record = self._read_record(path)
            size_bytes = partial.lstat().st_size if partial.is_file() else -1
            if record is None or record.size_bytes != size_bytes:
                continue  # speaks of bytes that are not there; the description voids it
            for index, digest in record.durable.items():
                if blake3(_read_span(partial, *record.span_of(index))).digest() != digest:
                    self._add(Rule.FALSE, f"{partial.name}: chunk {index} is committed and wrong")
        if not is_settled:
            return
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
        for name in sorted(names):
            stem = name.removesuffix(".have")
            if stem.replace("-", ":", 1) in published:
                self._add(Rule.ORPHAN, f"partial/{name} is left although the blob is published")
            elif {stem, f"{stem}.have"} - names or not re.fullmatch(r"\w+-[0-9a-f]+", stem):
                self._add(Rule.ORPHAN, f"partial/{name} is left without its other half")

    # --- the index ---

    @contextmanager
    def _index(self) -> Iterator[sqlite3.Connection | None]:
        """Open a copy of the index; None when there is none yet."""
        path = self.root / "index.sqlite"
        if not path.exists() or not path.stat().st_size:
            yield None
            return
        with tempfile.TemporaryDirectory(prefix="oracle-") as folder:
            for name in ("index.sqlite", "index.sqlite-wal"):
                if (self.root / name).exists():
                    shutil.copyfile(self.root / name, Path(folder) / name)
            with closing(sqlite3.connect(Path(folder) / "index.sqlite")) as connection:
                connection.row_factory = sqlite3.Row
                yield connection

    def _check_index(self, published: dict[str, os.stat_result], *, is_settled: bool) -> None:
        try:
            with self._index() as index:
                if index is None:
                    return
                (verdict,) = index.execute("PRAGMA integrity_check(1)").fetchone()
                if verdict != "ok":
                    raise sqlite3.DatabaseError(verdict)
                tables = {row[0] for row in index.execute("SELECT name FROM sqlite_master")}
                if "blobs" in tables:
                    self._check_rows(index, published, is_settled=is_settled)
        except sqlite3.DatabaseError as error:
            if self._may_have_torn_index and not is_settled:
                return
            self._add(Rule.LOST, f"the index is damaged: {error}")

    def _check_rows(
        self,
        index: sqlite3.Connection,
        published: dict[str, os.stat_result],
        *,
        is_settled: bool,
    ) -> None:
        rows = {row["digest"]: row for row in index.execute("SELECT * FROM blobs")}
        for blob, row in rows.items():
            status = published.get(blob)
            if status is None:
                if is_settled:
                    self._add(Rule.FALSE, f"the index lists {blob}, which is not there")
                continue
            is_same = (row["size_bytes"], row["mtime_ns"]) == (status.st_size, status.st_mtime_ns)
            if row["is_proven"] and is_same and row["chunk_digests"] is not None:
                self._check_table(blob, row)
        if is_settled:
            for blob in published.keys() - rows.keys():
                self._add(Rule.ORPHAN, f"{blob} is on the disk and in no row")

    def _check_table(self, blob: str, row: sqlite3.Row) -> None:
        """The chunk digests that peers are given are those of the content."""
        content = self._world.contents.get(blob)
        if content is None:
            return
        keys = row.keys()
        spans = row["layout_spans"] if "layout_spans" in keys else None
        lengths: list[int] = []
        if spans:
            for at in range(0, len(spans), 8):
                length = int.from_bytes(spans[at : at + 4], "little")
                lengths += [length] * int.from_bytes(spans[at + 4 : at + 8], "little")
        else:
            lengths = [self._chunk_bytes] * -(-len(content) // self._chunk_bytes)
        start, digests = 0, row["chunk_digests"]
        if len(digests) != len(lengths) * _DIGEST_BYTES:
            self._add(Rule.FALSE, f"the index has {len(digests)} bytes of digests for {blob}")
            return
        for number, length in enumerate(lengths):
            digest = digests[number * _DIGEST_BYTES : (number + 1) * _DIGEST_BYTES]
            if blake3(content[start : start + length]).digest() != digest:
                self._add(Rule.WRONG, f"the index has a wrong digest for chunk {number} of {blob}")
            start += length

    # --- nothing is left over ---

    def _check_names(self) -> None:
        """Every name in the store is one that the layout's description has."""
        for path in self.root.iterdir():
            if not _ROOT_NAMES.fullmatch(path.name):
                self._add(Rule.ORPHAN, f"{path.name} is no file of a store")
        for path in (self.root / "blobs").glob("*/*/*"):
            blob = path.with_name(path.name.removesuffix(_MARKER_SUFFIX))
            if not path.name.startswith(path.parent.name) or not blob.is_file():
                self._add(Rule.ORPHAN, f"{self._name(path)} is no blob")
        for path in (self.root / "blobs" / ".adopting").glob("*"):
            self._add(Rule.ORPHAN, f"{self._name(path)} is being adopted by nobody")
        known = {f"models--{repo.replace('/', '--')}": repo for repo in self._world.files}
        for folder in (self.root / "hub").iterdir() if (self.root / "hub").exists() else ():
            if folder.name not in known:
                self._add(Rule.ORPHAN, f"hub/{folder.name} is no repository")
            else:
                self._check_repository_names(folder, known[folder.name])

    def _check_repository_names(self, folder: Path, repo: str) -> None:
        commit = self._world.commit_of(repo)
        paths = {f"snapshots/{commit}/{path}" for path in self._world.files[repo]}
        blobs = {blob.split(":")[1]: blob for blob in self._world.names_of(repo).values()}
        allowed = {"refs/main", f"trees/{commit}.json", *(f"blobs/{name}" for name in blobs)}
        for path in _walk(folder):
            name = str(path.relative_to(folder))
            if name not in paths | allowed:
                self._add(Rule.ORPHAN, f"{self._name(path)} is left over")
            elif name.startswith("blobs/") and not self._blob_path(blobs[path.name]).exists():
                self._add(Rule.ORPHAN, f"{self._name(path)} outlived its blob")

    # --- what was promised ---

    def _check_snapshot(self, repo: str, *, has_ref: bool) -> None:
        folder = self.root / "hub" / f"models--{repo.replace('/', '--')}"
        commit = self._world.commit_of(repo)
        for path, content in self._world.files[repo].items():
            link = folder / "snapshots" / commit / path
            if not link.exists() or link.read_bytes() != content:
                self._add(Rule.LOST, f"{repo} was complete and {path} is not linked any more")
        if not (folder / "trees" / f"{commit}.json").exists():
            self._add(Rule.LOST, f"{repo} was complete and its tree file is gone")
        if has_ref and not (folder / "refs" / "main").exists():
            self._add(Rule.LOST, f"{repo} was complete and its refs/main is gone")

    def _holds_blob(self, blob: str) -> bool:
        path = self._blob_path(blob)
        return path.is_file() and path.read_bytes() == self._world.contents[blob]

    def _holds_chunk(self, blob: str, index: int, digest: str) -> bool:
        if self._blob_path(blob).is_file():
            return True
        partial = self._partial_path(blob)
        record = self._read_record(partial.with_name(partial.name + ".have"))
        if record is None or not partial.is_file() or record.size_bytes != partial.stat().st_size:
            return False
        kept = {**record.hinted, **record.durable}.get(index)
        content = _read_span(partial, *record.span_of(index)) if kept is not None else b""
        return kept is not None and kept.hex() == digest and blake3(content).digest() == kept

    # --- small parts ---

    def _blob_path(self, blob: str) -> Path:
        algorithm, _, digits = blob.partition(":")
        return self.root / "blobs" / algorithm / digits[:2] / digits

    def _partial_path(self, blob: str) -> Path:
        return self.root / "partial" / blob.replace(":", "-", 1)

    def _read_record(self, path: Path) -> HaveRecord | None:
        return read_record(path.read_bytes(), self._chunk_bytes) if path.is_file() else None

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.root))

    def _add(self, rule: Rule, text: str) -> None:
        self._findings.append(Finding(rule, text))


def _read_span(path: Path, start: int, end: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(end - start)


def _walk(folder: Path) -> Iterator[Path]:
    """Iterate over files and links below a folder."""
    for root, _, names in os.walk(folder):
        for name in sorted(names):
            yield Path(root) / name
