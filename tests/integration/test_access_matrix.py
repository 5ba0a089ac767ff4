"""
Owns the check of who gets what: every token × repository × mood of the hub × way of asking.

Knows nothing of the daemon's code.
Invariants: a real daemon, a real hub; judged by what the hub itself answers to the same question.
Source: docs/explanation/trust-and-threats.md (who may read); design.md §7.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from urllib.parse import quote

import pytest
from aiohttp import ClientSession, ClientTimeout, TCPConnector

from tests.daemons import DaemonProcess
from tests.hub import HubProcess
from tests.integration.matrix import (
    ELSEWHERE,
    INSIDERS,
    KINDS_OF,
    MOODS,
    OPENED,
    REFUSING,
    REVOKED,
    SLOW_MOODS,
    SMALL,
    TOKENS,
    VALID,
    WEIGHTS,
    Answer,
    Cell,
    Dialect,
    Repo,
    Rules,
    World,
    ask,
    list_cells,
    list_repos,
)

INFLIGHT_MAX = 200
# Cached here for one caller; the hub tells nobody else that they are.
HIDDEN = ("org/hidden", "org/veiled")
# Names as long that nobody has.
MISSING = ("org/absent", "org/nobody")
STRANGERS = ("none", "garbage", "elsewhere")
LATENCY_S = 1.0
COUNTING = ("date", "x-request-id", "ratelimit")
# Longer than a no is remembered.
FORGETTING_S = 2.1
TIMEOUT_S = 60.0
# A daemon leaves a hub alone for some seconds that did not answer.
WARM_S_MAX, POLL_S = 20.0, 0.3


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    """Run a hub with all repositories of all moods, open to anybody."""
    root = tmp_path_factory.mktemp("repositories")
    for mood in MOODS:
        for dialect in KINDS_OF:
            for repo in list_repos(mood, dialect):
                repo.write(root)
    for name in HIDDEN:
        (root / name).mkdir(parents=True)
        (root / name / SMALL).write_text(name)
    # The quota is not what is tried here: one address asks more than a site does in a day.
    with HubProcess(root, quota_requests=1_000_000) as running:
        yield running


@pytest.fixture(scope="module")
def daemon(hub: HubProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """Run a daemon that asks anew what is public each time."""
    store = tmp_path_factory.mktemp("daemon") / "a"
    extra = ("--public-ttl", "0s", "--ms-upstream", hub.url)
    # The daemon's own environment lets nobody in.
    environment = {"HF_TOKEN": "hf_valid", "HUGGING_FACE_HUB_TOKEN": "hf_valid"}
    with DaemonProcess(store, upstream=hub.url, extra=extra, environment=environment) as running:
        yield running


@dataclass
class Tally:
    """What was asked and given."""

    asked: int = 0
    served: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    unlike: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)


class Trial:
    """One mood of the hub: warm up, change, ask everything, judge."""

    def __init__(self, session: ClientSession, hub: HubProcess, daemon: DaemonProcess) -> None:
        self._session = session
        self._hub = hub
        self._daemon = daemon
        self._turns = asyncio.Semaphore(INFLIGHT_MAX)
        self.tally = Tally()

    async def run(self, mood: str, dialect: Dialect = "hf") -> Tally:
        """Try all cells of a mood."""
        repos, world = list_repos(mood, dialect), World(self._hub)
        world.recover()
        commits = {repo: await self._find_commit(repo) for repo in repos}
        world.open(repos)
        await self._warm([repo for repo in repos if repo.is_warm and repo.kind != "missing"])
        world.change(repos)
        cells = [cell for repo in repos for cell in list_cells(repo, commits[repo])]
        if MOODS[mood] != {}:
            # What changed is heard of as long as the hub can be heard.
            changed = [repo for repo in repos if repo.is_warm and repo.kind in OPENED]
            await asyncio.gather(*(self._read(repo, None) for repo in changed))
        else:
            # A token is asked about once a minute where anybody may read.
            await self._read(next(repo for repo in repos if repo.kind == "private"), REVOKED)
        rules = Rules(self._session, self._hub.url)
        await rules.learn(cells)
        world.fall_into(mood)
        # What is told without a question is so until somebody hears a no: last.
        for asks_hub in (True, False):
            turn = [cell for cell in cells if cell.asks_hub is asks_hub]
            await asyncio.gather(*(self._try(cell, mood, rules) for cell in turn))
        return self.tally

    async def _find_commit(self, repo: Repo) -> str:
        url = f"{self._hub.url}/api/models/{repo.id}"
        answer = await ask(self._session, url, "GET", {})
        assert answer.status == 200, url
        return str(json.loads(answer.body)["sha"])

    async def _warm(self, repos: list[Repo]) -> None:
        """Have everything here, and a fresh grant for everybody who will be put out."""
        for token in (*INSIDERS, None):
            wanted = [repo for repo in repos if token is not None or repo.kind in OPENED]
            for path in (SMALL, WEIGHTS):
                await asyncio.gather(*(self._read_at_last(repo, token, path) for repo in wanted))
            asked = [(repo, path) for repo in wanted for path in repo.warming_paths]
            await asyncio.gather(*(self._ask(path, token) for _, path in asked))

    async def _read_at_last(self, repo: Repo, token: str | None, path: str) -> None:
        """Read, as soon as the daemon asks the hub again after its last mood."""
        async with asyncio.timeout(WARM_S_MAX):
            while await self._read(repo, token, path) != 200:  # noqa: ASYNC110 (another process)
                await asyncio.sleep(POLL_S)

    async def _read(self, repo: Repo, token: str | None, path: str = WEIGHTS) -> int:
        answer = await self._ask(repo.file_path(path), token)
        assert answer.status != 200 or path != WEIGHTS or answer.body == repo.weights
        return answer.status

    async def _ask(self, path: str, token: str | None) -> Answer:
        async with self._turns:
            return await ask(self._session, self._daemon.local + path, "GET", bearer(token))

    async def _try(self, cell: Cell, mood: str, rules: Rules) -> None:
        base = f"http://{self._daemon.peer}" if cell.is_peer else self._daemon.local
        headers = cell.headers(TOKENS[cell.token])
        async with self._turns:
            answer = await ask(self._session, base + cell.path, cell.method, headers)
        tally, is_served = self.tally, cell.was_served(answer)
        warmth = "warm" if cell.repo.is_warm else "cold"
        shown = f"{mood}: {cell.token} {warmth} {cell.repo.kind} {cell.way}: {answer.status}"
        tally.asked += 1
        tally.served[cell.way] += is_served
        if is_served and (mood in REFUSING or not rules.may_have(cell)):
            tally.wrong.append(shown)
        if mood == "up" and not cell.is_peer and cell.way != "residency":
            status = 200 if answer.status == 206 else answer.status
            if status != rules.status_for(cell):
                tally.unlike.append(f"{shown}, the hub says {rules.status_for(cell)}")
        is_needed = cell.repo.kind in ("public", "renamed") and cell.repo.is_warm
        # What the hub alone knows is here for those who asked before.
        is_needed = is_needed and cell.way != "commits"
        if mood != "up" and mood not in REFUSING and is_needed and not is_served:
            tally.missed.append(shown)


def make_session() -> ClientSession:
    """Return a session for many questions at once."""
    return ClientSession(
        timeout=ClientTimeout(total=TIMEOUT_S),
        connector=TCPConnector(limit=INFLIGHT_MAX),
        auto_decompress=False,
    )


def is_slow(mood: str) -> pytest.MarkDecorator:
    """Return what leaves a mood out of a short run."""
    is_left_out = mood in SLOW_MOODS and not os.environ.get("P2PCACHE_SLOW")
    return pytest.mark.skipif(is_left_out, reason="only with P2PCACHE_SLOW=1")


# A hub that is slow for want of a core is answered for from the cache, and is not like itself.
@pytest.mark.alone
@pytest.mark.timeout(180)
@pytest.mark.parametrize("mood", [pytest.param(mood, marks=is_slow(mood)) for mood in MOODS])
async def test_no_answer_is_given_that_the_hub_would_refuse(
    hub: HubProcess, daemon: DaemonProcess, mood: str
) -> None:
    """
    Nobody gets what the hub would not give him; while it is well, he hears what it would say;
    while it is not, what is public and here is for everybody.
    """
    async with make_session() as session:
        tally = await Trial(session, hub, daemon).run(mood)
    judge(mood, tally)
    assert tally.asked == 2 * 9 * (6 * 11 + 3)


def judge(mood: str, tally: Tally) -> None:
    """Insist that nothing was given that should not have been, and that something was."""
    print(f"{mood}: {tally.asked} asked, {sum(tally.served.values())} served: {tally.served}")
    faults = {"wrong": tally.wrong, "unlike": tally.unlike, "missed": tally.missed}
    assert not any(faults.values()), json.dumps(faults, indent=1)
    if mood not in REFUSING:
        assert set(filter(tally.served.get, tally.served)) == set(tally.served), (
            "nothing is vacuous"
        )


@pytest.mark.alone
@pytest.mark.timeout(180)
@pytest.mark.parametrize("mood", [pytest.param(mood, marks=is_slow(mood)) for mood in MOODS])
async def test_no_answer_of_the_modelscope_gateway_is_one_that_its_hub_would_refuse(
    hub: HubProcess, daemon: DaemonProcess, mood: str
) -> None:
    """The same for the other dialect: listings, descriptions and branches are asked about too."""
    async with make_session() as session:
        tally = await Trial(session, hub, daemon).run(mood, "ms")
    judge(mood, tally)
    assert tally.asked == 2 * 7 * (6 * 12 + 3)


async def test_token_that_one_hub_lets_pass_is_refused_where_it_is_nobodys(
    hub: HubProcess, daemon: DaemonProcess
) -> None:
    """ModelScope gives what is public whoever asks; that makes no token known elsewhere."""
    world = World(hub)
    world.recover()
    statuses = {}
    async with make_session() as session:
        for dialect in ("ms", "hf"):
            repo = next(repo for repo in list_repos("up", dialect) if repo.kind == "public")
            for token in (None, "hf_passer_by"):
                url = daemon.local + repo.file_path(SMALL)
                statuses[dialect, token] = (await ask(session, url, "GET", bearer(token))).status
    assert statuses == {
        ("ms", None): 200,
        ("ms", "hf_passer_by"): 200,
        ("hf", None): 200,
        ("hf", "hf_passer_by"): 401,
    }


@pytest.fixture
async def veil(hub: HubProcess, daemon: DaemonProcess) -> AsyncIterator[ClientSession]:
    """Have what is hidden here, for a caller whom the hub lets in; the hub is well afterwards."""
    world = World(hub)
    world.recover()
    hub.set_tokens([VALID, ELSEWHERE])
    async with make_session() as session:
        for name in HIDDEN:
            hub.set_rights(name, private=True, tokens=[VALID])
            for path in (list_questions(name)[0][1], list_modelscope_questions(name)[0][1]):
                async with asyncio.timeout(WARM_S_MAX):
                    answer = await ask(session, daemon.local + path, "GET", bearer(VALID))
                    while answer.status != 200:
                        await asyncio.sleep(POLL_S)
                        answer = await ask(session, daemon.local + path, "GET", bearer(VALID))
        # A daemon does not ask about unknown names for some seconds after an outage.
        unknown = f"{daemon.local}/org/u{time.monotonic_ns()}/resolve/main/{SMALL}"
        async with asyncio.timeout(WARM_S_MAX):
            answer = await ask(session, unknown, "HEAD", {})
            while answer.status == 504:
                await asyncio.sleep(POLL_S)
                answer = await ask(session, unknown, "HEAD", {})
        yield session
    world.recover()


def bearer(token: str | None) -> dict[str, str]:
    """Return the header that shows a token."""
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def list_questions(name: str) -> list[tuple[str, str]]:
    """Return every way to ask about a repository, without knowing more than its name."""
    api = f"/api/models/{name}"
    return [
        ("HEAD", f"/{name}/resolve/main/{SMALL}"),
        ("GET", f"/{name}/resolve/main/{SMALL}"),
        ("GET", f"/{name}/resolve/main/no-such-file"),
        ("GET", f"/{name}/resolve/v9/{SMALL}"),
        ("GET", f"{api}"),
        ("GET", f"{api}/revision/main"),
        ("GET", f"{api}/tree/main"),
        ("GET", f"{api}/tree/main?expand=true"),
        ("GET", f"{api}/refs"),
        ("GET", f"{api}/commits/main"),
        ("GET", f"/_p2pcache/v1/residency/{quote(name, safe='')}"),
    ]


def list_modelscope_questions(name: str) -> list[tuple[str, str]]:
    """Return the ways to ask about files; of descriptions the hub itself says which are hidden."""
    api = f"/api/v1/models/{name}"
    return [
        ("HEAD", f"{api}/repo?Revision=master&FilePath={SMALL}"),
        ("GET", f"{api}/repo?Revision=master&FilePath={SMALL}"),
        ("GET", f"{api}/repo?Revision=master&FilePath=no-such-file"),
        ("GET", f"{api}/repo/files?Revision=master&Recursive=True"),
        ("GET", f"{api}/repo/tree?Revision=master&PageNumber=1"),
        ("GET", f"/_p2pcache/v1/residency/{quote(f'ms:{name}', safe='')}"),
    ]


def read_plainly(answer: Answer, name: str) -> tuple[int, dict[str, str], str]:
    """Return what an answer says, without what differs between any two: times, ids, counts."""
    headers = {k: v for k, v in answer.headers.items() if k.lower() not in COUNTING}
    body = re.sub(r'"disk_free": \d+', '"disk_free": N', answer.body.decode())
    body = re.sub(r'"RequestId": "\w+"', '"RequestId": "N"', body)
    return answer.status, headers, body.replace(name, "NAME")


@pytest.mark.parametrize("mood", ["up", "fails", "away"])
async def test_hidden_repository_looks_like_one_that_is_not(
    hub: HubProcess, daemon: DaemonProcess, veil: ClientSession, mood: str
) -> None:
    """Status, headers and body are the same to the last letter, whatever the hub does."""
    World(hub).fall_into(mood)
    if mood != "up":
        await asyncio.sleep(FORGETTING_S)  # nothing is remembered of what was asked before
    asked = list_questions(HIDDEN[0]) + list_modelscope_questions(HIDDEN[0])
    others = list_questions(MISSING[0]) + list_modelscope_questions(MISSING[0])
    for stranger in STRANGERS:
        shown = bearer(TOKENS[stranger])
        for hidden, missing in zip(asked, others, strict=True):
            for _ in range(2):  # what was refused a moment ago may be remembered
                seen = await ask(veil, daemon.local + hidden[1], hidden[0], shown)
                unseen = await ask(veil, daemon.local + missing[1], missing[0], shown)
                assert seen.status != 200 or "residency" in hidden[1], (stranger, hidden)
                assert read_plainly(seen, HIDDEN[0]) == read_plainly(unseen, MISSING[0]), (
                    stranger,
                    hidden,
                )


async def test_hidden_repository_takes_as_long_as_one_that_is_not(
    hub: HubProcess, daemon: DaemonProcess, veil: ClientSession
) -> None:
    """As many questions to the hub, one after the other, are waited for."""
    hub.faults(latency_s=LATENCY_S)

    async def count_waits(name: str, way: tuple[str, str], token: str | None) -> int:
        """Return how many answers of the hub were waited for in turn."""
        started_s = time.monotonic()
        await ask(veil, daemon.local + way[1], way[0], bearer(token))
        return int((time.monotonic() - started_s) / LATENCY_S)

    pairs = list(zip(list_questions(HIDDEN[1]), list_questions(MISSING[1]), strict=True))
    for group in ((pairs[0],), (pairs[6], pairs[10])):
        await asyncio.sleep(FORGETTING_S)  # nothing is remembered of what was asked before
        asked = [(way, TOKENS[stranger]) for way in group for stranger in STRANGERS]
        hidden = [count_waits(HIDDEN[1], way[0], token) for way, token in asked]
        missing = [count_waits(MISSING[1], way[1], token) for way, token in asked]
        waits = await asyncio.gather(*hidden, *missing)
        assert waits[: len(asked)] == waits[len(asked) :], (group, waits)
        assert max(waits) == 1, (group, waits)
