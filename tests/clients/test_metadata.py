"""
Owns the acceptance cases of metadata: descriptions, lists, pages, refs, the file system of clients.

Knows nothing of downloads.
Invariants: what a client is told with the hub away is what it was told before.
Source: acceptance cases 9, 10, 20, 25 and 30 of the hub protocols.
"""

from __future__ import annotations

import json
import urllib.request

import pytest

from tests.clients.conftest import LONG, MakeClient, MakeDaemon, MakeSample, ask, over_hubs
from tests.clients.environments import NEWEST
from tests.clients.samples import CONFIG, WEIGHTS, Sample
from tests.daemons import DaemonProcess, wait_until
from tests.hub import HubProcess

FILE_COUNT = 1_004
COMMIT_COUNT = 55
SMALL_FLOATS = 1_000
# The daemon asks where a branch points once a minute; a second for the question itself.
PINNED_S = 75.0


@pytest.fixture(scope="module")
def many(shared_hub: HubProcess) -> str:
    """Return a repository of more files and commits than a page of the hub has."""
    repo = "org/many"
    files = {f"part-{i:04}.txt": b"%d\n" % i for i in range(FILE_COUNT)}
    shared_hub.commit(repo, files)
    for number in range(COMMIT_COUNT - 1):
        shared_hub.commit(repo, {"part-0000.txt": b"again %d\n" % number}, title=f"{number}")
    return repo


@over_hubs(quick=[NEWEST])
def test_case_09_every_page_is_at_the_daemon(
    daemon: DaemonProcess, many: str, make_client: MakeClient, environment: str
) -> None:
    """Files and commits beyond a page are all listed, and no client leaves for the next page."""
    client = make_client(daemon, environment)
    listed = client.run(
        f"""
        api = HfApi()
        result = [
            len(api.list_repo_files({many!r})),
            len(list(api.list_repo_tree({many!r}, expand=True))),
            len(api.list_repo_commits({many!r})),
        ]
        """
    )
    assert listed == [FILE_COUNT, FILE_COUNT, COMMIT_COUNT]


def test_case_09_link_is_absolute_and_on_the_daemon(daemon: DaemonProcess, many: str) -> None:
    """A page's link is a whole address, as clients want it, and never the hub's."""
    _, headers, body = ask(daemon, f"/api/models/{many}/tree/main?recursive=true&limit=100")
    assert len(json.loads(body)) == 100
    assert headers["Link"].startswith(f"<{daemon.local}/api/models/{many}/tree/main?")
    assert 'rel="next"' in headers["Link"]
    _, headers, body = ask(daemon, f"/api/models/{many}/tree/main?recursive=true")
    assert headers["Link"] is None, "one page: llama.cpp reads no second one"
    assert len(json.loads(body)) == FILE_COUNT


def make_questions(sample: Sample) -> str:
    """Return a script that asks for all metadata that a client asks for."""
    return f"""
        api = HfApi()
        repo = {sample.repo!r}
        info = api.model_info(repo, files_metadata=True)
        pinned = api.model_info(repo, revision=info.sha)
        chosen = api.model_info(repo, expand=["sha", "siblings"])
        files = {{s.rfilename: [s.size, s.blob_id, s.lfs and s.lfs["sha256"]]
                 for s in info.siblings}}
        paths = api.get_paths_info(repo, ["config.json", "missing", "one/two"])
        below = [item.path for item in api.list_repo_tree(repo, "one/two", recursive=True)]
        refs = api.list_repo_refs(repo, include_pull_requests=True)
        named = {{r.ref: r.target_commit for r in [*refs.branches, *refs.tags]}}
        result = [
            info.sha, pinned.sha, chosen.sha, sorted(s.rfilename for s in chosen.siblings),
            files, [p.path for p in paths], below, named, len(refs.pull_requests),
            api.file_exists(repo, "config.json"), api.file_exists(repo, "missing"),
            api.repo_exists(repo), api.repo_exists(repo + "-not"),
        ]
    """


@over_hubs(quick=[])
def test_case_10_metadata_is_told_with_the_hub(
    daemon: DaemonProcess, sample: Sample, make_client: MakeClient, environment: str
) -> None:
    """Descriptions, sizes, digests, single paths, folders and refs are the hub's own."""
    told = make_client(daemon, environment).run(make_questions(sample))
    assert told[:3] == [sample.commit] * 3
    assert told[3] == sorted(sample.files)
    for path, content in sample.files.items():
        size, blob, lfs = told[4][path]
        assert size == len(content), path
        assert sample.etag(path) == (lfs or blob), path
    assert told[5] == [CONFIG, "one/two"]
    assert "one/two/three/four/né.txt" in told[6]
    assert told[7] == {"refs/heads/main": sample.commit, "refs/tags/v1": sample.commits["v1"]}
    assert told[8:] == [1, True, False, True, False]


@over_hubs(quick=[NEWEST])
def test_case_10_metadata_is_told_without_the_hub(
    hub: HubProcess,
    make_daemon: MakeDaemon,
    sample: Sample,
    make_client: MakeClient,
    environment: str,
) -> None:
    """With the hub gone, the answers about the repository are those of before."""
    daemon = make_daemon("a")
    # A repository that was never asked for cannot be told from one that is missing.
    script = make_questions(sample).replace(', api.repo_exists(repo + "-not"),', "")
    before = make_client(daemon, environment).run(script)
    assert daemon.pull(f"{sample.repo}@v1").returncode == 0
    hub.set_listening(hub=False, cdn=False)
    after = make_client(daemon, environment).run(script)
    assert after == before


@over_hubs(quick=[NEWEST])
def test_case_20_file_system_reads_ranges(
    daemon: DaemonProcess, make_sample: MakeSample, make_client: MakeClient, environment: str
) -> None:
    """HfFileSystem lists, seeks and copies; headers of tensors are read, of tiny files too."""
    large, tiny = make_sample(), make_sample(floats=SMALL_FLOATS)
    told = make_client(daemon, environment).run(
        f"""
        fs, found = HfFileSystem(), []
        for repo in {[large.repo, tiny.repo]!r}:
            name = repo + "/model.safetensors"
            with fs.open(name, block_size=1000) as file:
                file.seek(1000)
                middle = file.read(500)
                file.seek(-7, 2)
                tail = file.read()
            fs.get_file(name, "here/copy")
            header = HfApi().get_safetensors_metadata(repo)
            copied = hashlib.sha256(Path("here/copy").read_bytes()).hexdigest()
            found.append([
                middle.hex(), tail.hex(), copied,
                sorted(fs.ls(repo, detail=False)), header.parameter_count["F32"],
            ])
        result = found
        """
    )
    for sample, (middle, tail, digest, listed, count) in zip((large, tiny), told, strict=True):
        content = sample.files[WEIGHTS]
        assert bytes.fromhex(middle) == content[1000:1500]
        assert bytes.fromhex(tail) == content[-7:]
        assert digest == sample.truth()[WEIGHTS]
        assert listed == sorted(f"{sample.repo}/{p.split('/')[0]}" for p in sample.files)
        assert count in (75_000, SMALL_FLOATS)


def test_case_25_branch_that_moves_between_head_and_get_is_pinned(
    hub: HubProcess, daemon: DaemonProcess, sample: Sample
) -> None:
    """The body is of the commit that HEAD named, and says so, though main is elsewhere by now."""
    _, head, _ = ask(daemon, sample.resolve(CONFIG), "HEAD")
    moved = hub.commit(sample.repo, {CONFIG: b'{"moved": true}'}, title="Move")
    assert moved != sample.commit
    _, got, body = ask(daemon, sample.resolve(CONFIG))
    assert body == sample.files[CONFIG]
    assert head["X-Repo-Commit"] == got["X-Repo-Commit"] == sample.commit
    _, _, listed = ask(daemon, f"/api/models/{sample.repo}/revision/main")
    assert json.loads(listed)["sha"] == sample.commit


@LONG
@pytest.mark.timeout(300)
def test_case_25_branch_that_moved_is_seen_after_its_time(
    hub: HubProcess, daemon: DaemonProcess, sample: Sample, make_client: MakeClient
) -> None:
    """A minute later, HEAD, GET and the description name the new commit."""
    assert ask(daemon, sample.resolve(CONFIG))[0] == 200
    moved = hub.commit(sample.repo, {CONFIG: b'{"moved": true}'}, title="Move")

    def has_moved() -> bool:
        return ask(daemon, sample.resolve(CONFIG), "HEAD")[1]["X-Repo-Commit"] == moved

    wait_until(has_moved, "the branch's new commit is seen", timeout_s=PINNED_S)
    assert ask(daemon, sample.resolve(CONFIG))[2] == b'{"moved": true}'
    client = make_client(daemon, NEWEST)
    script = f"result = Path(snapshot_download({sample.repo!r})).name"
    assert client.run(script) == moved


def test_case_30_other_routes_are_answered(
    hub: HubProcess, daemon: DaemonProcess, sample: Sample
) -> None:
    """Telemetry stays here; harnesses, whoami, paths-info and the unknown are never a 500."""
    assert ask(daemon, "/api/telemetry/x/y", "HEAD")[0] in (200, 204)
    assert ask(daemon, "/api/agent-harnesses")[0] == 200
    assert not hub.stats()["requests"].get("HEAD telemetry"), "nobody else's business"
    assert ask(daemon, "/api/whoami-v2")[0] == 401
    assert ask(daemon, "/api/whoami-v2", Authorization="Bearer hf_allowed")[0] == 200
    assert ask(daemon, f"/api/models/{sample.repo}/auth-check")[0] == 200
    assert ask(daemon, "/api/organizations/x/overview")[0] == 404
    assert ask(daemon, f"/api/models/{sample.repo}?expand=xetEnabled")[0] == 200


def test_case_30_paths_info_is_a_post(daemon: DaemonProcess, sample: Sample) -> None:
    """The one POST of readers, as a form, is answered from the list."""
    request = urllib.request.Request(
        f"{daemon.local}/api/models/{sample.repo}/paths-info/main",
        data=b"paths=config.json&paths=one%2Ftwo&expand=False",
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=30) as answer:
        listed = json.load(answer)
    assert [entry["path"] for entry in listed] == ["config.json", "one/two"]
