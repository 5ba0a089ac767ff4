"""
Owns that ModelScope works as Hugging Face does: real daemons, a hub that speaks its API.

Knows nothing of the real client; tests/clients runs it.
Invariants: what is compared is bytes and counts; every daemon has its own store.
Source: docs/reference/modelscope-dialect.md; docs/decisions/0018-modelscope.md.
"""

from __future__ import annotations

import http.client
import json
import os
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.daemons import DaemonProcess, wait_until
from tests.hostile import FlippingWire
from tests.hub import HubProcess

MODEL, DATASET, SECRET = "org/m", "org/rows", "org/secret"
WEIGHTS = "weights/model.bin"
# Three chunks, of which two hubs have the same.
WEIGHTS_BYTES = 10_000_000
ROWS = 230
TOKEN = "ms_allowed"
# Above the hub's limit for files in git in one test: three chunks, without ranges.
TOKENIZER_BYTES = 9_000_000


class Maker:
    """Makes daemons whose two upstreams are one test hub."""

    def __init__(self, folder: Path, hub: HubProcess) -> None:
        self._folder = folder
        self._hub = hub
        self.made: list[DaemonProcess] = []

    def __call__(self, name: str, **options: Any) -> DaemonProcess:
        """Start one."""
        options.setdefault("extra", ())
        options["extra"] = [*options["extra"], "--ms-upstream", self._hub.url]
        daemon = DaemonProcess(self._folder / name, upstream=self._hub.url, **options)
        self.made.append(daemon)
        return daemon.start()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model, a data set of two pages, and a private model."""
    root = tmp_path_factory.mktemp("ms")
    chance = random.Random(18)
    contents = {
        f"{MODEL}/{WEIGHTS}": chance.randbytes(WEIGHTS_BYTES),
        f"{MODEL}/config.json": b'{"model_type": "bert"}\n',
        f"{MODEL}/empty.txt": b"",
        f"{MODEL}/deep/a+b c%20#?.txt": b"odd\n",
        f"{SECRET}/secret.bin": chance.randbytes(100_000),
        f"datasets/{DATASET}/rows.bin": chance.randbytes(200_000),
        **{f"datasets/{DATASET}/data/{n:04}.txt": b"%d\n" % n for n in range(ROWS)},
    }
    for name, content in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


@pytest.fixture
def hub(files: Path) -> Iterator[HubProcess]:
    """Run a hub."""
    with HubProcess(files, private=[SECRET], tokens=[TOKEN]) as running:
        yield running


@pytest.fixture
def make(tmp_path: Path, hub: HubProcess) -> Iterator[Maker]:
    """Return what makes daemons; ends them all."""
    maker = Maker(tmp_path, hub)
    yield maker
    for daemon in maker.made:
        daemon.stop()


def ask(
    daemon: DaemonProcess,
    path: str,
    headers: Mapping[str, str] | None = None,
    *,
    method: str = "GET",
    body: bytes = b"",
) -> tuple[int, dict[str, str], bytes]:
    """Send one request as a client would; returns (status, headers, body)."""
    connection = http.client.HTTPConnection(daemon.local.removeprefix("http://"), timeout=30)
    try:
        connection.request(method, path, body or None, headers=dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read()
    finally:
        connection.close()


def ask_data(daemon: DaemonProcess, path: str, headers: Mapping[str, str] | None = None) -> Any:
    """Return what is in the envelope of a good answer."""
    status, _, body = ask(daemon, path, headers)
    envelope = json.loads(body)
    assert (status, envelope["Success"], envelope["Code"]) == (200, True, 200), envelope
    return envelope["Data"]


def file_path(
    path: str, *, repo: str = MODEL, kind: str = "models", revision: str = "master"
) -> str:
    """Return the address of a file."""
    return f"/api/v1/{kind}/{repo}/repo?Revision={revision}&FilePath={quote(path, safe='')}"


def list_path(repo: str = MODEL, revision: str = "master") -> str:
    """Return the address of a model's listing."""
    return f"/api/v1/models/{repo}/repo/files?Revision={revision}&Recursive=True"


def body_bytes(hub: HubProcess) -> int:
    """Return how many bytes of files the hub sent."""
    return int(hub.stats()["body_bytes"])


def read_tree(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder, by path, links followed."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_pull_by_reference_brings_every_file_once(
    files: Path, hub: HubProcess, make: Maker
) -> None:
    """`ms:org/m` means master; the folder holds the model, by its commit and by its name."""
    daemon = make("a")
    result = daemon.pull(f"ms:{MODEL}")
    assert result.returncode == 0, result.stderr
    truth = read_tree(files / MODEL)
    folder = Path(result.stdout.splitlines()[-1])
    assert read_tree(folder) == truth
    assert read_tree(folder.parent / "master") == truth
    assert folder.is_relative_to(daemon.store / "modelscope" / "models" / "org--m" / "snapshots")
    assert not list((daemon.store / "hub").iterdir()), "Hugging Face's tree is not concerned"
    sent = body_bytes(hub)
    assert sent == sum(map(len, truth.values()))
    assert daemon.pull(f"ms:{MODEL}@master").returncode == 0
    assert body_bytes(hub) == sent


def test_file_that_the_other_hub_brought_is_not_fetched_again(
    files: Path, hub: HubProcess, make: Maker
) -> None:
    """Two hubs, one SHA-256, one blob: the second costs nothing upstream."""
    daemon = make("a")
    assert daemon.pull(MODEL).returncode == 0
    hub.reset()
    result = daemon.pull(f"ms:{MODEL}")
    assert result.returncode == 0, result.stderr
    assert read_tree(Path(result.stdout.splitlines()[-1])) == read_tree(files / MODEL)
    assert f"{MODEL}/{WEIGHTS}" not in hub.stats()["path_bytes"]
    blobs = [p for p in (daemon.store / "blobs").rglob("*") if p.is_file()]
    assert sum(p.stat().st_size == WEIGHTS_BYTES for p in blobs) == 1
    assert daemon.run("rm", MODEL).returncode == 0
    assert read_tree(Path(result.stdout.splitlines()[-1])) == read_tree(files / MODEL)


def test_listing_and_files_are_what_the_hub_has(files: Path, hub: HubProcess, make: Maker) -> None:
    """Sizes, digests, folders, ranges: as a client needs them."""
    daemon = make("a")
    listed = ask_data(daemon, list_path())["Files"]
    direct = json.loads(_ask_hub(hub, list_path()))["Data"]["Files"]
    fields = ("Path", "Name", "Type", "Size", "Sha256")
    assert [{f: e[f] for f in fields} for e in listed] == [
        {f: e[f] for f in fields} for e in direct
    ]
    inside = ask_data(daemon, f"/api/v1/models/{MODEL}/repo/files?Root=weights")["Files"]
    assert [e["Path"] for e in inside] == [WEIGHTS]
    for path, content in read_tree(files / MODEL).items():
        status, headers, body = ask(daemon, file_path(path))
        assert (status, body) == (200, content)
        head_status, head, _ = ask(daemon, file_path(path), method="HEAD")
        same = ("Content-Length", "ETag", "X-Linked-ETag", "Accept-Ranges")
        assert head_status == 200
        assert {f: head[f] for f in same} == {f: headers[f] for f in same}
    content = (files / MODEL / WEIGHTS).read_bytes()
    status, headers, body = ask(daemon, file_path(WEIGHTS), {"Range": "bytes=5000000-"})
    assert (status, body) == (206, content[5_000_000:])
    assert headers["Content-Range"] == f"bytes 5000000-{WEIGHTS_BYTES - 1}/{WEIGHTS_BYTES}"
    status, headers, _ = ask(daemon, file_path(WEIGHTS), {"Range": f"bytes={WEIGHTS_BYTES}-"})
    assert (status, headers["Content-Range"]) == (416, f"bytes */{WEIGHTS_BYTES}")


def _without_id(body: bytes) -> dict[str, Any]:
    return {name: value for name, value in json.loads(body).items() if name != "RequestId"}


def _ask_hub(hub: HubProcess, path: str) -> bytes:
    connection = http.client.HTTPConnection(hub.url.removeprefix("http://"), timeout=30)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


def test_data_set_is_listed_in_the_pages_that_are_asked_for(make: Maker) -> None:
    """Two pages of 200: the second is not full, and nothing is on both."""
    daemon = make("a")
    base = f"/api/v1/datasets/{DATASET}/repo/tree?Revision=master&Recursive=True&PageSize=200"
    pages = [ask_data(daemon, f"{base}&PageNumber={n}")["Files"] for n in (1, 2, 3)]
    assert [len(page) for page in pages] == [200, ROWS + 2 - 200, 0]
    paths = [entry["Path"] for page in pages for entry in page]
    assert len(set(paths)) == ROWS + 2
    result = daemon.pull(f"ms:datasets/{DATASET}", "--include", "data/01*")
    assert result.returncode == 0, result.stderr
    assert len(read_tree(Path(result.stdout.splitlines()[-1]))) == 100


def test_revisions_are_kept_apart_and_a_moved_branch_is_followed(
    hub: HubProcess, make: Maker
) -> None:
    """Master, a tag and a commit; master moves and is asked for again once its time is over."""
    first = hub.set_ref(MODEL, "refs/tags/v1", "main")
    second = hub.commit(MODEL, {"config.json": b"{}\n"})
    daemon = make("a")
    config = {"v1": b'{"model_type": "bert"}\n', first: b'{"model_type": "bert"}\n'}
    for revision, content in {**config, "master": b"{}\n", second: b"{}\n"}.items():
        status, headers, body = ask(daemon, file_path("config.json", revision=revision))
        assert (status, body) == (200, content), revision
        assert headers["X-Repo-Commit"] in (first, second)
    named = ask_data(daemon, f"/api/v1/models/{MODEL}/revisions")["RevisionMap"]
    assert [b["Revision"] for b in named["Branches"]] == ["master"]
    assert [t["Revision"] for t in named["Tags"]] == ["v1"]
    result = daemon.pull(f"ms:{MODEL}@v1")
    assert result.stdout.splitlines()[-1].endswith(first)


def test_everything_cached_is_served_without_the_hub_and_after_a_restart(
    files: Path, hub: HubProcess, make: Maker
) -> None:
    """Listing, branches, repository, files; what is not cached is refused with a reason."""
    daemon = make("a")
    assert daemon.pull(f"ms:{MODEL}").returncode == 0
    listed = ask_data(daemon, list_path())["Files"]
    named = ask_data(daemon, f"/api/v1/models/{MODEL}/revisions")
    hub.set_listening(hub=False, cdn=False)
    daemon.stop()
    (daemon.store / "index.sqlite").unlink()  # the tree knows what the index knew
    daemon.start()
    assert ask_data(daemon, list_path())["Files"] == listed
    assert (
        ask_data(daemon, f"/api/v1/models/{MODEL}/revisions")["RevisionMap"]["Branches"][0][
            "Revision"
        ]
        == "master"
    )
    assert named["RevisionMap"]["Branches"][0]["Revision"] == "master"
    for path, content in read_tree(files / MODEL).items():
        assert ask(daemon, file_path(path))[0::2] == (200, content)
    status, _, body = ask(daemon, file_path("nope.txt"))
    assert (status, json.loads(body)["Success"]) == (404, False)
    status, _, body = ask(daemon, list_path("org/other"))
    assert (status, json.loads(body)["Success"]) == (504, False)


def test_failure_with_status_200_reaches_the_client_as_it_is(hub: HubProcess, make: Maker) -> None:
    """The client decides by the envelope; the same bytes arrive."""
    daemon = make("a")
    hub.faults(business_failure=True)
    status, headers, body = ask(daemon, list_path())
    assert status == 200
    assert headers["Content-Type"].startswith("application/json")
    envelope = json.loads(body)
    assert (envelope["Success"], envelope["Code"]) == (False, 10010010001)
    hub.faults()
    wait_until(lambda: ask(daemon, list_path())[0] == 200, "an answer")
    wait_until(lambda: json.loads(ask(daemon, list_path())[2])["Success"], "a good answer")


def test_private_model_is_for_those_whom_the_hub_lets_in(
    files: Path, hub: HubProcess, make: Maker, tmp_path: Path
) -> None:
    """By cookie or by header; to others it does not exist; the token is kept nowhere."""
    daemon = make("a")
    content = (files / SECRET / "secret.bin").read_bytes()
    path = file_path("secret.bin", repo=SECRET)
    for headers in ({"Cookie": f"m_session_id={TOKEN}"}, {"Authorization": f"Bearer {TOKEN}"}):
        assert ask(daemon, path, headers)[0::2] == (200, content)
        assert ask_data(daemon, list_path(SECRET), headers)["Files"]
    paths = [path, list_path(SECRET)]
    cases: list[tuple[dict[str, str], list[str]]] = [
        ({}, paths),
        ({"Cookie": "m_session_id=other"}, paths),
        ({"Authorization": "Bearer third"}, paths[::-1]),
    ]
    for headers, order in cases:
        for where in order:
            status, _, body = ask(daemon, where, headers)
            assert (status, json.loads(body)["Success"]) == (404, False)
            assert content[:64] not in body
            missing = ask(daemon, where.replace("secret", "other"), headers)
            assert (missing[0], _without_id(missing[2])) == (status, _without_id(body))
    assert hub.stats()["token_leaks"] == []
    daemon.stop()
    kept = [p for p in tmp_path.rglob("*") if p.is_file() and not p.is_symlink()]
    assert [p for p in kept if TOKEN.encode() in p.read_bytes()] == []


def test_second_daemon_gets_it_from_the_first(files: Path, hub: HubProcess, make: Maker) -> None:
    """One copy comes from the hub, whatever hub it is; a wire that flips bits is found out."""
    first = make("a")
    assert first.pull(f"ms:{MODEL}").returncode == 0
    second = make("b", peers=[first.peer])
    before = body_bytes(hub)
    assert ask(second, file_path(WEIGHTS))[2] == (files / MODEL / WEIGHTS).read_bytes()
    assert body_bytes(hub) == before
    with FlippingWire(first.peer) as wire:
        third = make("c", peers=[wire.address], listen="127.0.0.2:0")
        assert ask(third, file_path(WEIGHTS))[2] == (files / MODEL / WEIGHTS).read_bytes()
        assert wire.flipped > 0
        faults = {fault["reason"] for fault in third.client.status()["faults"]}
        third.stop()  # before the wire goes, so that it closes what it opened
    assert faults == {"wrong bytes"}


def test_trusted_peer_stands_in_for_the_hub(files: Path, hub: HubProcess, make: Maker) -> None:
    """What master is and which files it has, from a peer, while the hub is away."""
    first = make("a")
    assert first.pull(f"ms:{MODEL}").returncode == 0
    hub.set_listening(hub=False, cdn=False)
    second = make("b", peers=[first.peer], trust_peers=True)
    result = second.pull(f"ms:{MODEL}")
    assert result.returncode == 0, result.stderr
    assert read_tree(Path(result.stdout.splitlines()[-1])) == read_tree(files / MODEL)


@pytest.mark.skipif(not os.environ.get("P2PCACHE_SLOW"), reason="only with P2PCACHE_SLOW=1")
def test_reference_works_in_bundles_pins_and_the_api(
    files: Path, hub: HubProcess, make: Maker, tmp_path: Path
) -> None:
    """What takes a reference takes one of ModelScope's; a pin outlives the index."""
    daemon = make("a")
    job = ask(
        daemon,
        "/api/v1/models/download",
        {
            "Authorization": f"Bearer {(daemon.store / 'admin-token').read_text().strip()}",
            "X-P2PCache": "1",
            "Content-Type": "application/json",
        },
        method="POST",
        body=json.dumps({"model_id": f"ms:{MODEL}"}).encode(),
    )
    assert job[0] == 202, job
    assert daemon.run("pin", f"ms:{MODEL}@master").returncode == 0
    bundle = tmp_path / "m.bundle"
    exported = daemon.run("export", f"ms:{MODEL}", str(bundle))
    assert exported.returncode == 0, exported.stderr
    daemon.stop()
    (daemon.store / "index.sqlite").unlink()
    daemon.start()
    refused = daemon.run("rm", f"ms:{MODEL}")
    assert "pin" in refused.stderr
    hub.set_listening(hub=False, cdn=False)
    other = make("b")
    imported = other.run("import-bundle", str(bundle))
    assert imported.returncode == 0, imported.stderr
    shown = other.run("status", f"ms:{MODEL}@master", "--json")
    assert json.loads(shown.stdout)["state"] == "resident", shown.stdout + shown.stderr
    found = read_tree(other.store / "modelscope" / "models" / "org--m" / "snapshots" / "master")
    assert found == read_tree(files / MODEL)


def test_file_in_git_comes_whole_from_a_hub_that_knows_no_ranges_for_it(
    tmp_path: Path, make: Maker
) -> None:
    """Three chunks of a file that is answered 200 whatever is asked."""
    content = random.Random(9).randbytes(TOKENIZER_BYTES)
    folder = tmp_path / "git" / "org" / "g"
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_bytes(content)
    with HubProcess(tmp_path / "git", lfs_threshold_bytes=TOKENIZER_BYTES) as git_hub:
        daemon = DaemonProcess(
            tmp_path / "g", upstream=git_hub.url, extra=["--ms-upstream", git_hub.url]
        )
        with daemon:
            path = file_path("tokenizer.json", repo="org/g")
            assert ask(daemon, path)[2] == content


def test_removed_model_leaves_no_name_behind(make: Maker) -> None:
    """Snapshot, revision names and listing go; `ls`, `status` and `pin` know the reference."""
    daemon = make("a")
    assert daemon.run("pin", f"ms:{MODEL}").returncode == 0
    assert f"ms:{MODEL}" in daemon.run("ls").stdout
    assert daemon.run("status", f"ms:{MODEL}").returncode == 0
    assert daemon.run("rm", f"ms:{MODEL}").returncode != 0
    assert daemon.run("unpin", f"ms:{MODEL}").returncode == 0
    assert daemon.run("rm", f"ms:{MODEL}").returncode == 0
    assert [p for p in (daemon.store / "modelscope").rglob("*") if p.name == "master"] == []
    assert not (daemon.store / "modelscope" / "models" / "org--m").exists()


def test_what_is_no_download_is_refused_or_answered_here(hub: HubProcess, make: Maker) -> None:
    """Uploads go to the hub itself; a region, a count: nobody else's business."""
    daemon = make("a")
    region = ask_data(daemon, "/api/v1/repos/internalAccelerationInfo")
    assert region == {"InternalRegionQueryAddress": ""}
    counted = ask(daemon, f"/api/v1/datasets/{DATASET}/download/increase", method="POST")
    assert counted[0] == 200
    assert hub.stats()["requests_total"] == 0
    status, _, body = ask(daemon, f"/api/v1/models/{MODEL}/repo/tag", method="POST")
    assert status == 403
    assert "MODELSCOPE_ENDPOINT" in json.loads(body)["Message"]
    assert ask(daemon, "/api/v1/models/org/m/unknown")[0] == 404
    metrics = ask(daemon, "/metrics")[2].decode()
    assert 'p2pcache_gateway_requests_total{dialect="ms",code="200"} 2' in metrics
