"""
Owns the world of the authorisation matrix: repositories, tokens, the hub's moods, the questions.

Knows nothing of the daemon's code: what a caller may have is what the hub answers to the very same
question, asked directly while it is well.
Invariants: every repository has bytes of its own, so that none is public through another; a cell is
asked once.
Source: docs/explanation/trust-and-threats.md (who may read).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Literal
from urllib.parse import quote, urljoin

from aiohttp import ClientSession
from yarl import URL

from tests.hub import HubProcess

Kind = Literal[
    "public", "gated", "private", "deleted", "renamed", "moved", "flipped", "closed", "missing"
]
KINDS: tuple[Kind, ...] = (
    "public", "gated", "private", "deleted", "renamed", "moved", "flipped", "closed", "missing",
)  # fmt: skip
Dialect = Literal["hf", "ms"]
# Those that a hub of a dialect can have: ModelScope knows no former names.
KINDS_OF: Mapping[Dialect, tuple[Kind, ...]] = {
    "hf": KINDS,
    "ms": ("public", "gated", "private", "deleted", "flipped", "closed", "missing"),
}
# Open to anybody before the change; what becomes of them is change()'s.
OPENED = ("public", "deleted", "renamed", "flipped", "closed")
VALID, ELSEWHERE, REVOKED, DROPPED = "hf_valid", "hf_elsewhere", "hf_revoked", "hf_dropped"
TOKENS: Mapping[str, str | None] = {
    "none": None,
    "garbage": "hf_garbage",
    "valid": VALID,
    "elsewhere": ELSEWHERE,
    # Was let in, and is nobody's any more.
    "revoked": REVOKED,
    # Was let in, and is somebody's whom the owner has put out.
    "dropped": DROPPED,
}
INSIDERS = (VALID, REVOKED, DROPPED)
SMALL, WEIGHTS = "config.json", "model.bin"
WEIGHTS_BYTES = 70_000
# What the hub does while the cells are asked; None stands for not listening.
MOODS: Mapping[str, Mapping[str, object] | None] = {
    "up": {},
    "refuses": {"refuse_status": 401},
    "forbids": {"refuse_status": 403},
    "fails": {"refuse_status": 501},
    "away": None,
    # Asked again and again, for some seconds each time.
    "fails slowly": {"refuse_status": 503},
    "slows": {"refuse_status": 429, "retry_after_s": 1},
}
# Left out of a short run: like others, or minutes long.
SLOW_MOODS = ("forbids", "fails", "fails slowly", "slows")
# In these nobody hears anything from the hub but a no.
REFUSING = ("refuses", "forbids")


@dataclass(frozen=True)
class Repo:
    """One repository: what it goes through, in which mood of the hub, cached before or not."""

    kind: Kind
    mood: str
    is_warm: bool
    dialect: Dialect = "hf"

    @property
    def id(self) -> str:
        """Return its id before the change."""
        mood = self.mood.replace(" ", "-")
        hub = "" if self.dialect == "hf" else "ms-"
        return f"org/{hub}{self.kind}-{mood}-{'warm' if self.is_warm else 'cold'}"

    @property
    def reference(self) -> str:
        """Return what a caller types."""
        return self.id if self.dialect == "hf" else f"ms:{self.id}"

    def file_path(self, path: str, revision: str = "") -> str:
        """Return the address of a file, of the first branch if no revision is named."""
        if self.dialect == "hf":
            return f"/{self.id}/resolve/{revision or 'main'}/{path}"
        return f"/api/v1/models/{self.id}/repo?Revision={revision or 'master'}&FilePath={path}"

    @property
    def warming_paths(self) -> list[str]:
        """Return what is asked, beyond files, to have everything here before the change."""
        if self.dialect == "hf":
            return [f"/api/models/{self.id}/refs", f"/api/models/{self.id}/commits/main"]
        api = f"/api/v1/models/{self.id}"
        return [api, f"{api}/revisions", f"{api}/repo/files?Revision=master&Recursive=True"]

    @property
    def weights(self) -> bytes:
        """Return bytes that no other repository has."""
        return Random(self.id).randbytes(WEIGHTS_BYTES)

    @property
    def digest(self) -> str:
        """Return the name of the blob."""
        return f"sha256:{hashlib.sha256(self.weights).hexdigest()}"

    def write(self, root: Path) -> None:
        """Put it where the hub finds it."""
        folder = root / self.id
        folder.mkdir(parents=True)
        (folder / WEIGHTS).write_bytes(self.weights)
        (folder / SMALL).write_text(json.dumps({"of": self.id}))


def list_repos(mood: str, dialect: Dialect = "hf") -> list[Repo]:
    """Return the repositories that a mood needs."""
    kinds = KINDS_OF[dialect]
    return [Repo(kind, mood, is_warm, dialect) for kind in kinds for is_warm in (True, False)]


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes


async def ask(session: ClientSession, url: str, method: str, headers: Mapping[str, str]) -> Answer:
    """Ask once, following nothing."""
    async with session.request(
        method, URL(url, encoded=True), headers=headers, allow_redirects=False
    ) as response:
        return Answer(response.status, response.headers, await response.read())


@dataclass(frozen=True)
class Cell:
    """One question: to the daemon under `path`, and what the hub would have to be asked instead."""

    repo: Repo
    token: str
    way: str
    method: str
    path: str
    hub_method: str
    hub_path: str
    is_peer: bool = False
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def asks_hub(self) -> bool:
        """Return whether the daemon asks the hub, if its word is old, before it answers this."""
        return not self.is_peer and self.way != "residency"

    def headers(self, token: str | None) -> dict[str, str]:
        """Return what is sent."""
        shown = {} if token is None else {"Authorization": f"Bearer {token}"}
        return {**self.extra, **shown}

    def was_served(self, answer: Answer) -> bool:
        """Return whether the daemon gave something away."""
        if self.way == "residency":
            said = json.loads(answer.body)
            return said.get("commit") is not None or bool(said.get("bytes_local"))
        if b'"Success": false' in answer.body[:1000]:
            return False  # refused with status 200, as ModelScope may
        return answer.status in (200, 206, 304)


def list_cells(repo: Repo, commit: str) -> Iterator[Cell]:
    """Yield every question about a repository."""
    first = repo.file_path(WEIGHTS)
    for name in TOKENS:
        for way, method, path, extra in list_ways(repo, commit):
            yield Cell(repo, name, way, method, path, method, path, extra=extra)
        residency = f"/_p2pcache/v1/residency/{quote(repo.reference, safe='')}"
        yield Cell(repo, name, "residency", "GET", residency, "HEAD", first)
    for way, path in {
        "peer chunk": f"/v1/blobs/{repo.digest}/chunks/0-0",
        "peer table": f"/v1/blobs/{repo.digest}/table",
        "peer list": f"/v1/snapshots/{repo.dialect}/{quote(f'models/{repo.id}', safe='')}/{commit}",
    }.items():
        yield Cell(repo, "none", way, "GET", path, "HEAD", first, is_peer=True)


def list_ways(repo: Repo, commit: str) -> list[tuple[str, str, str, dict[str, str]]]:
    """Return the name, method, path and headers of every question that the hub is asked too."""
    first, fixed = repo.file_path(WEIGHTS), repo.file_path(WEIGHTS, commit)
    ways: list[tuple[str, str, str, dict[str, str]]] = [
        ("HEAD", "HEAD", first, {}),
        ("HEAD of a commit", "HEAD", fixed, {}),
        ("GET", "GET", first, {}),
        ("GET of a commit", "GET", fixed, {}),
        ("range", "GET", first, {"Range": "bytes=5-99"}),
        ("small file", "GET", repo.file_path(SMALL), {}),
    ]
    if repo.dialect == "hf":
        info = f"/api/models/{repo.id}"
        return [
            *ways,
            ("tree", "GET", f"{info}/tree/main?recursive=true", {}),
            ("info", "GET", f"{info}/revision/main", {}),
            ("branches", "GET", f"{info}/refs", {}),
            ("commits", "GET", f"{info}/commits/main", {}),
        ]
    info = f"/api/v1/models/{repo.id}"
    return [
        *ways,
        ("listing", "GET", f"{info}/repo/files?Revision=master&Recursive=True", {}),
        ("listing of a commit", "GET", f"{info}/repo/files?Revision={commit}", {}),
        ("pages", "GET", f"{info}/repo/tree?Revision=master&PageNumber=1&PageSize=50", {}),
        ("info", "GET", info, {}),
        ("revisions", "GET", f"{info}/revisions", {}),
    ]


class Rules:
    """The hub's own answers, asked directly, to the questions of the cells."""

    def __init__(self, session: ClientSession, hub_url: str) -> None:
        self._session = session
        self._hub_url = hub_url
        self._answers: dict[tuple[str, str, str | None], int] = {}

    async def learn(self, cells: Iterable[Cell]) -> None:
        """Ask the hub what it gives whom; it has to be well."""
        for cell in cells:
            for token in (TOKENS[cell.token], None):
                key = (cell.hub_method, cell.hub_path, token)
                if key not in self._answers:
                    self._answers[key] = await self._ask(cell, token)

    def status_for(self, cell: Cell) -> int:
        """Return what the hub says to this caller."""
        return self._answers[cell.hub_method, cell.hub_path, TOKENS[cell.token]]

    def may_have(self, cell: Cell) -> bool:
        """Return whether the hub gives this to this caller: with his token, or with none."""
        anonymously = self._answers[cell.hub_method, cell.hub_path, None]
        return 200 in (self.status_for(cell), anonymously)

    async def _ask(self, cell: Cell, token: str | None) -> int:
        """Return 200 where the hub leads to bytes, else its refusal."""
        url = self._hub_url + cell.hub_path
        shown = {} if token is None else {"Authorization": f"Bearer {token}"}
        for _ in range(3):
            answer = await ask(self._session, url, cell.hub_method, shown)
            location = answer.headers.get("Location", "")
            if answer.status == 307:  # a former id
                url = urljoin(url, location)
                continue
            return 200 if answer.status == 302 else answer.status
        raise AssertionError(f"{cell.hub_path} leads in a circle")


class World:
    """The hub, and what happens to its repositories. Blocking: it speaks to another process."""

    def __init__(self, hub: HubProcess) -> None:
        self._hub = hub

    def recover(self) -> None:
        """Let the hub be well."""
        self._hub.faults()
        self._hub.set_listening()

    def open(self, repos: Iterable[Repo]) -> None:
        """Let everybody in who will be put out later."""
        self._hub.set_tokens([VALID, ELSEWHERE, REVOKED, DROPPED])
        for repo in repos:
            if repo.kind in ("gated", "private", "moved"):
                self._set(repo, INSIDERS, is_gated=repo.kind == "gated")
            elif repo.kind == "missing":
                self._hub.delete(repo.id)

    def change(self, repos: Iterable[Repo]) -> None:
        """Put out whom the owner puts out; delete, rename, close."""
        self._hub.set_tokens([VALID, ELSEWHERE, DROPPED])
        for repo in repos:
            if repo.kind in ("gated", "private", "moved", "flipped", "closed"):
                self._set(repo, [VALID], is_gated=repo.kind in ("gated", "closed"))
            if repo.kind in ("renamed", "moved"):
                self._hub.rename(repo.id, f"{repo.id}-now")
            elif repo.kind == "deleted":
                self._hub.delete(repo.id)

    def fall_into(self, mood: str) -> None:
        """Let the hub be like that from now on."""
        switches = MOODS[mood]
        if switches is None:
            self._hub.set_listening(hub=False, cdn=False)
        else:
            self._hub.faults(**switches)

    def _set(self, repo: Repo, tokens: Iterable[str], *, is_gated: bool) -> None:
        rights = {"gated": True} if is_gated else {"private": True}
        self._hub.set_rights(repo.id, tokens=list(tokens), **rights)
