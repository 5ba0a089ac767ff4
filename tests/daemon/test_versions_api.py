"""
Owns the tests of daemon.versions_api: commits listed, compared, and the older ones removed.

Knows nothing of the command line.
Invariants: the hub is not asked; field names are those of the reference.
Source: docs/reference/http-api.md ("Versions").
"""

from __future__ import annotations

from tests.daemon.local import Served
from tests.hub import Hub, Repository

BASE = "/_p2pcache/v1/versions"
REPO = "org/grown"
WEIGHTS = b"w" * 5_000


async def pull_three(served: Served, hub: Hub) -> list[str]:
    """Pull three commits of one model, the last as main; returns them, oldest first."""
    repository = Repository(REPO, {"config.json": b"1", "model.safetensors": WEIGHTS})
    repository.add_commit({"config.json": b"22"})
    repository.add_commit({"config.json": b"333", "new.txt": b"new"})
    hub.add(repository)
    commits = list(repository.commits)
    for commit in commits:
        revision = "main" if commit == commits[-1] else commit
        job = await served.engine.pull(f"{REPO}@{revision}")
        assert (job.commit, job.error) == (commit, None)
    return commits


async def test_versions_lists_compares_and_keeps(served: Served, hub: Hub) -> None:
    """Three commits are here; two are compared by bytes; the last two stay, and what is pinned."""
    first, second, third = await pull_three(served, hub)
    answer = (await served.ask(f"{BASE}/{REPO}")).json
    assert answer["model"] == REPO
    assert [row["commit"] for row in answer["versions"]] == [first, second, third]
    assert [row["revisions"] for row in answer["versions"]] == [[], [], ["main"]]
    assert {row["state"] for row in answer["versions"]} == {"resident"}

    diff = (await served.ask(f"{BASE}/{REPO}?from={first}&to=main")).json
    assert (diff["from"], diff["to"]) == (first, third)
    assert diff["files"] == {"added": 1, "removed": 0, "changed": 1, "same": 1}
    assert (diff["bytes_shared"], diff["bytes_new"], diff["bytes_gone"]) == (5_000, 6, 1)
    assert diff["bytes_new_in_known_chunks"] == 0
    assert [change["path"] for change in diff["changes"]] == ["config.json", "new.txt"]

    await served.change("/_p2pcache/v1/pins", body={"model": REPO, "revision": first})
    body = {"model": REPO, "keep": 1, "dry_run": True}
    plan = (await served.change(BASE, body=body)).json
    assert [row["commit"] for row in plan["removed"]] == [second]
    assert len((await served.ask(f"{BASE}/{REPO}")).json["versions"]) == 3
    done = (await served.change(BASE, body={"model": REPO, "keep": 1})).json
    assert ([row["commit"] for row in done["removed"]], done["kept"]) == ([second], 2)
    left = (await served.ask(f"{BASE}/{REPO}")).json["versions"]
    assert [row["commit"] for row in left] == [first, third]
    assert {row["state"] for row in left} == {"resident"}


async def test_versions_of_nothing_and_nonsense(served: Served, hub: Hub) -> None:
    """Unknown is empty or 404, malformed is 400, and the hub hears of none of it."""
    assert (await served.ask(f"{BASE}/org/none")).json == {"model": "org/none", "versions": []}
    assert (await served.ask(f"{BASE}/org/none?from=a&to=b")).error == (404, "NotFound")
    assert (await served.ask(f"{BASE}/org/none?from=a")).error[0] == 400
    for body in ({"model": "org/none"}, {"model": "org/none", "keep": 0}, {"keep": 1}):
        assert (await served.change(BASE, body=body)).error[0] == 400
    reply = await served.change(BASE, body={"model": "org/none", "keep": 1})
    assert reply.error == (404, "NotFound")
    assert hub.stats.requests_total == 0
