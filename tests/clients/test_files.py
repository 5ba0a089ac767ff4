"""
Owns the acceptance cases of files: what each release of the client downloads, and how it files it.

Knows nothing of failures.
Invariants: every client is a real one in its own process; one that connects elsewhere fails.
Source: acceptance cases 1-8, 19 and 22 of the hub protocols.
"""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

from tests.clients.client import HubClient
from tests.clients.conftest import LONG, MakeClient, MakeDaemon, MakeSample, ask, over_hubs
from tests.clients.environments import NEWEST
from tests.clients.samples import CONFIG, PULL_REQUEST, WEIGHTS, Sample
from tests.daemons import DaemonProcess, wait_until
from tests.hub import HubProcess

XET_HUBS = ("hub-0.36", "hub-1.10", NEWEST)
WIDE_BYTES = 60_000_000
NAMING_HEADERS = (
    "ETag",
    "X-Linked-Etag",
    "X-Linked-Size",
    "X-Repo-Commit",
    "Content-Length",
    "Accept-Ranges",
)


def assert_filed(client: HubClient, sample: Sample, path: str) -> None:
    """Assert that the client filed a file of main as it does with the hub itself."""
    folder = client.cache / f"models--{sample.repo.replace('/', '--')}"
    linked = folder / "snapshots" / sample.commit / path
    assert (folder / "refs" / "main").read_text() == sample.commit
    assert linked.read_bytes() == sample.files[path]
    assert linked.resolve() == (folder / "blobs" / sample.etag(path)).resolve()


@over_hubs()
def test_case_01_small_file_is_named_by_its_git_digest(
    daemon: DaemonProcess, sample: Sample, make_client: MakeClient, environment: str
) -> None:
    """A cold hf_hub_download of a git file: right bytes, filed under the git sha1."""
    client = make_client(daemon, environment)
    client.run(f"result = hf_hub_download({sample.repo!r}, {CONFIG!r})")
    assert_filed(client, sample, CONFIG)
    for method in ("HEAD", "GET"):
        status, headers, _ = ask(daemon, sample.resolve(CONFIG), method)
        assert status == 200
        assert headers["X-Repo-Commit"] == sample.commit
        assert headers["ETag"] == f'"{sample.etag(CONFIG)}"'
        assert headers["Content-Length"] == str(len(sample.files[CONFIG]))


@over_hubs(quick=[NEWEST])
def test_case_02_large_file_is_named_by_its_sha256(
    daemon: DaemonProcess, sample: Sample, make_client: MakeClient, environment: str
) -> None:
    """A cold hf_hub_download of an LFS file: right bytes, filed under the sha256."""
    client = make_client(daemon, environment)
    client.run(f"result = hf_hub_download({sample.repo!r}, {WEIGHTS!r})")
    assert_filed(client, sample, WEIGHTS)
    _, headers, _ = ask(daemon, sample.resolve(WEIGHTS), "HEAD")
    digest = hashlib.sha256(sample.files[WEIGHTS]).hexdigest()
    assert headers["ETag"] == headers["X-Linked-Etag"] == f'"{digest}"'
    assert headers["X-Linked-Size"] == str(len(sample.files[WEIGHTS]))


@over_hubs(quick=[])
def test_case_03_second_node_serves_from_its_peer_without_the_hub(
    hub: HubProcess,
    make_daemon: MakeDaemon,
    sample: Sample,
    make_client: MakeClient,
    environment: str,
) -> None:
    """With the hub gone, another node gives the same bytes under the same headers."""
    first = make_daemon("a")
    assert first.pull(sample.repo).returncode == 0
    paths = (CONFIG, WEIGHTS)
    before = [ask(first, sample.resolve(path), "HEAD")[1] for path in paths]
    second = make_daemon("b", peers=[first.peer], trust_peers=True)
    hub.set_listening(hub=False, cdn=False)
    wait_until(lambda: second.client.peers()["peers"], "the second node knows the first")
    client = make_client(second, environment)
    script = f"result = [hf_hub_download({sample.repo!r}, name) for name in {paths!r}]"
    client.run(script)
    for path, headers in zip(paths, before, strict=True):
        assert_filed(client, sample, path)
        after = ask(second, sample.resolve(path), "HEAD")[1]
        assert {n: after[n] for n in NAMING_HEADERS} == {n: headers[n] for n in NAMING_HEADERS}


@over_hubs(*XET_HUBS, quick=[NEWEST])
def test_case_04_client_with_xet_never_asks_for_it(
    hub: HubProcess,
    daemon: DaemonProcess,
    sample: Sample,
    make_client: MakeClient,
    environment: str,
) -> None:
    """With hf_xet installed and a hub that offers Xet, everything comes from the daemon."""
    client = make_client(daemon, environment)
    got = client.run(
        f"""
        import hf_xet
        result = digests(snapshot_download({sample.repo!r}))
        """
    )
    assert got == sample.truth()
    asked = {request["route"] for request in hub.stats()["recorded"]}
    assert asked >= {"resolve", "cdn"}
    assert "xet-read-token" not in asked
    trees = [json.loads(path.read_text()) for path in client.home.rglob("trees/*.json")]
    assert bool(trees) == (environment == NEWEST), "the newest alone keeps the list"
    hashes = [entry.get("xet_hash") for tree in trees for entry in tree["files"].values()]
    assert [known for known in hashes if known is not None] == []


@over_hubs(quick=[NEWEST])
def test_case_05_pull_request_of_a_dataset_is_routed(
    daemon: DaemonProcess, make_sample: MakeSample, make_client: MakeClient, environment: str
) -> None:
    """A ref with slashes and a repository of another kind, both in one call."""
    sample = make_sample(kind="datasets")
    client = make_client(daemon, environment)
    call = f"snapshot_download({sample.repo!r}, revision={PULL_REQUEST!r}, repo_type='dataset')"
    assert client.run(f"result = digests({call})") == sample.truth(PULL_REQUEST)
    folder = client.cache / f"datasets--{sample.repo.replace('/', '--')}"
    assert (folder / PULL_REQUEST.replace("refs/", "refs/refs/", 1)).exists()


@over_hubs()
def test_case_06_commit_is_a_revision(
    daemon: DaemonProcess, sample: Sample, make_client: MakeClient, environment: str
) -> None:
    """A pinned sha works with releases that ask for the tree, and with those that do not."""
    client = make_client(daemon, environment)
    for revision in ("main", "v1"):
        call = f"snapshot_download({sample.repo!r}, revision={sample.commits[revision]!r})"
        assert client.run(f"result = digests({call})") == sample.truth(revision)


@over_hubs("hub-1.10", NEWEST)
def test_case_07_command_line_downloads_and_verifies(
    daemon: DaemonProcess, sample: Sample, make_client: MakeClient, environment: str
) -> None:
    """`hf download`, into the cache and into a folder, and `hf cache verify` of both."""
    client = make_client(daemon, environment)
    folder = client.home / "here"
    for command in (
        ["download", sample.repo, "--local-dir", str(folder)],
        ["cache", "verify", sample.repo, "--local-dir", str(folder)],
        ["download", sample.repo],
        ["cache", "verify", sample.repo],
    ):
        outcome = client.run_command("hf", *command)
        assert outcome.exit_code == 0, f"{command}: {outcome.stdout}{outcome.stderr}"
    for path, content in sample.files.items():
        assert (folder / path).read_bytes() == content, path


@over_hubs("hub-1.10", NEWEST)
def test_case_08_dry_run_fetches_no_body(
    hub: HubProcess,
    daemon: DaemonProcess,
    sample: Sample,
    make_client: MakeClient,
    environment: str,
) -> None:
    """`hf download --dry-run` shows the right sizes, and the hub sends no byte of a file."""
    client = make_client(daemon, environment)
    outcome = client.run_command("hf", "download", sample.repo, "--dry-run")
    assert outcome.exit_code == 0, outcome.stderr
    assert all(path in outcome.stdout for path in (CONFIG, WEIGHTS)), outcome.stdout
    planned = client.run(
        f"""
        plan = snapshot_download({sample.repo!r}, dry_run=True)
        result = {{item.filename: item.file_size for item in plan}}
        """
    )
    assert planned == {path: len(content) for path, content in sample.files.items()}
    assert hub.stats()["body_bytes"] == 0


@LONG
def test_case_19_parallel_ranges_of_hf_transfer_are_clamped(
    hub: HubProcess, daemon: DaemonProcess, make_client: MakeClient
) -> None:
    """hf_transfer asks for ranges at once, the last one past the end, and drops one answer."""
    content = random.Random(19).randbytes(WIDE_BYTES)
    hub.commit("org/wide", {"weights.bin": content})
    client = make_client(daemon, "hub-0.36", variables={"HF_HUB_ENABLE_HF_TRANSFER": "1"})
    path = client.run(
        """
        import hf_transfer
        result = hf_hub_download("org/wide", "weights.bin")
        """
    )
    assert Path(path).read_bytes() == content
    last = WIDE_BYTES - WIDE_BYTES % (10 << 20)
    status, headers, body = ask(
        daemon, "/org/wide/resolve/main/weights.bin", Range=f"bytes={last}-{WIDE_BYTES}"
    )
    assert (status, body) == (206, content[last:])
    assert headers["Content-Range"] == f"bytes {last}-{WIDE_BYTES - 1}/{WIDE_BYTES}"


@over_hubs(quick=[NEWEST])
def test_case_22_odd_files_are_equal(
    daemon: DaemonProcess, sample: Sample, make_client: MakeClient, environment: str
) -> None:
    """An empty file, signs that addresses reserve, five folders, a name that is not ASCII."""
    client = make_client(daemon, environment)
    got = client.run(
        f"""
        paths = [hf_hub_download({sample.repo!r}, name) for name in {list(sample.files)!r}]
        result = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths]
        """
    )
    assert got == list(sample.truth().values())
