"""
Owns the acceptance cases of refusals: what is missing, closed, malformed or out of reach.

Knows nothing of what is served.
Invariants: every client raises what it raises at the hub itself, though the daemon speaks http;
what is out of reach is never reported as missing.
Source: acceptance cases 11, 12, 13, 23 and 28 of the hub protocols.
"""

from __future__ import annotations

import json

import pytest

from tests.clients.conftest import (
    GATED,
    PRIVATE,
    TOKEN,
    MakeClient,
    MakeDaemon,
    MakeSample,
    ask,
    over_hubs,
)
from tests.clients.environments import NEWEST
from tests.clients.samples import CONFIG, WEIGHTS, Sample
from tests.daemons import DaemonProcess, wait_until
from tests.hub import HubProcess

MISSING = "adapter_config.json"
OLD_HUBS = ("hub-0.24", "hub-0.36")


@over_hubs()
def test_case_11_refusals_are_the_clients_own_exceptions(
    daemon: DaemonProcess, sample: Sample, make_client: MakeClient, environment: str
) -> None:
    """Missing repository, hidden one, gated one, missing revision and missing file, over http."""
    client = make_client(daemon, environment)
    names = client.run(
        f"""
        repo = {sample.repo!r}
        result = [
            name_error(lambda: hf_hub_download("org/none", "config.json")),
            name_error(lambda: snapshot_download("org/none")),
            name_error(lambda: HfApi().model_info("org/none")),
            name_error(lambda: hf_hub_download({PRIVATE!r}, "config.json")),
            name_error(lambda: hf_hub_download({GATED!r}, "config.json")),
            name_error(lambda: hf_hub_download(repo, "config.json", revision="none")),
            name_error(lambda: snapshot_download(repo, revision="none")),
            name_error(lambda: hf_hub_download(repo, {MISSING!r})),
        ]
        """
    )
    missing = "EntryNotFoundError" if environment in OLD_HUBS else "RemoteEntryNotFoundError"
    assert names == [
        *["RepositoryNotFoundError"] * 4,
        "GatedRepoError",
        *["RevisionNotFoundError"] * 2,
        missing,
    ]
    folder = client.cache / f"models--{sample.repo.replace('/', '--')}"
    assert (folder / ".no_exist" / sample.commit / MISSING).exists()


@over_hubs(quick=[])
def test_case_11_missing_file_of_a_known_commit_is_missing_without_the_hub(
    hub: HubProcess,
    make_daemon: MakeDaemon,
    sample: Sample,
    make_client: MakeClient,
    environment: str,
) -> None:
    """A second node, offline, gives the same 404 with the commit, so `.no_exist` is written."""
    first = make_daemon("a")
    assert first.pull(sample.repo).returncode == 0
    second = make_daemon("b", peers=[first.peer], trust_peers=True)
    wait_until(lambda: second.client.peers()["peers"], "the second node knows the first")
    assert second.pull(sample.repo).returncode == 0
    hub.set_listening(hub=False, cdn=False)
    client = make_client(second, environment)
    client.run(f"result = name_error(lambda: hf_hub_download({sample.repo!r}, {MISSING!r}))")
    folder = client.cache / f"models--{sample.repo.replace('/', '--')}"
    assert (folder / ".no_exist" / sample.commit / MISSING).exists()
    status, headers, _ = ask(second, sample.resolve(MISSING), "HEAD")
    assert (status, headers["X-Error-Code"]) == (404, "EntryNotFound")
    assert headers["X-Repo-Commit"] == sample.commit


@over_hubs(quick=[NEWEST])
def test_case_12_invalid_token_is_said_to_be_one(
    daemon: DaemonProcess, make_client: MakeClient, environment: str
) -> None:
    """The hub's sentence about the token arrives unchanged, and no repository is called missing."""
    client = make_client(daemon, environment, token="hf_garbage")
    name, message = client.run(
        f"""
        try:
            HfApi().model_info({GATED!r})
        except Exception as error:
            result = [type(error).__name__, str(error)]
        """
    )
    assert name == "HfHubHTTPError"
    assert "Invalid credentials in Authorization header" in message
    status, headers, _ = ask(
        daemon, f"/{GATED}/resolve/main/config.json", "HEAD", Authorization="Bearer hf_garbage"
    )
    assert (status, headers["X-Error-Code"]) == (401, None)
    assert headers["X-Error-Message"] == "Invalid credentials in Authorization header"


@over_hubs(quick=[NEWEST])
@pytest.mark.parametrize("trouble", ["silent", "failing"])
def test_case_13_hub_in_trouble_is_no_missing_file(
    hub: HubProcess,
    make_daemon: MakeDaemon,
    make_sample: MakeSample,
    make_client: MakeClient,
    environment: str,
    trouble: str,
) -> None:
    """What is not cached is 504 and LocalEntryNotFoundError; what is cached is served, as stale."""
    cached, other = make_sample(), make_sample()
    daemon = make_daemon("a")
    assert daemon.pull(cached.repo).returncode == 0
    if trouble == "silent":
        hub.set_listening(hub=False, cdn=False)
    else:
        hub.faults(refuse_status=503)
    status, headers, body = ask(daemon, other.resolve(CONFIG), "GET")
    assert status == 504, body
    assert headers["X-Error-Code"] not in ("RepoNotFound", "EntryNotFound", "RevisionNotFound")
    assert json.loads(body)["error"]
    client = make_client(daemon, environment)
    got = client.run(
        f"""
        import time
        time.sleep = lambda seconds: None  # some wait for half a minute before they give up
        result = [
            digests(snapshot_download({cached.repo!r})),
            name_error(lambda: hf_hub_download({other.repo!r}, "config.json")),
        ]
        """
    )
    assert got == [cached.truth(), "LocalEntryNotFoundError"]


@pytest.mark.parametrize(
    "path",
    [
        "/org/m/resolve/main/..%2F..%2Fx",
        "/org/m/resolve/main/a/../../../x",
        "/org/m/resolve/..%2F..%2Fetc/passwd",
        "/org/m/resolve/main/%2Fetc%2Fpasswd",
        "/api/models/org/m/tree/main/..%2F..%2F",
    ],
)
def test_case_23_traversal_reads_nothing(hub: HubProcess, daemon: DaemonProcess, path: str) -> None:
    """A path that leads outside is refused, and the hub is not even asked for it."""
    status, _, body = ask(daemon, path)
    assert status in (400, 404), body
    assert b"root:" not in body
    assert hub.stats()["requests_total"] == 0


@over_hubs(quick=[NEWEST])
def test_case_28_private_repository_is_hidden_on_another_node(
    make_daemon: MakeDaemon, make_client: MakeClient, environment: str
) -> None:
    """What one caller cached on one node is RepoNotFound for a caller without token on another."""
    first = make_daemon("a")
    allowed = make_client(first, environment, token=TOKEN)
    got = allowed.run(f"result = sorted(digests(snapshot_download({PRIVATE!r})))")
    assert got == ["config.json", "weights.bin"]
    second = make_daemon("b", peers=[first.peer], trust_peers=True)
    wait_until(lambda: second.client.peers()["peers"], "the second node knows the first")
    stranger = make_client(second, environment)
    script = f"result = name_error(lambda: hf_hub_download({PRIVATE!r}, 'weights.bin'))"
    assert stranger.run(script) == "RepositoryNotFoundError"
    for daemon in (first, second):
        for name in ("weights.bin", WEIGHTS):
            status, headers, body = ask(daemon, f"/{PRIVATE}/resolve/main/{name}")
            assert (status, headers["X-Error-Code"]) == (401, "RepoNotFound"), body
            assert PRIVATE.encode() * 2 not in body
    _, headers, _ = ask(second, "/org/none/resolve/main/weights.bin")
    assert headers["X-Error-Code"] == "RepoNotFound", "a hidden one looks like a missing one"
    assert make_client(first, NEWEST, token=TOKEN).run(script) == "no error"
