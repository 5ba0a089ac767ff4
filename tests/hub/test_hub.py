"""
Owns the proof that the real client works against the hub exactly as against the real one.

Knows nothing of the hub's modules; raw answers are in test_protocol.
Invariants: each client call runs in its own process and home.
Source: huggingface_hub's public calls.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from tests.hub.client import RealClient
from tests.hub.content import git_sha1
from tests.hub.repository import Repository
from tests.hub.samples import CONFIG, FILES, LARGE, OTHER_TOKEN, TOKEN, digests
from tests.hub.server import Hub

pytestmark = pytest.mark.timeout(60)
SMALL_SIZE_BYTES = sum(len(content) for content in FILES.values()) - len(LARGE)


async def test_client_single_files_are_equal_and_counted(hub: Hub, tmp_path: Path) -> None:
    """A git file and an LFS file arrive; no token reaches the CDN; bytes are counted once."""
    client = RealClient(hub.url, tmp_path, token=TOKEN)
    blobs = await client.run("""
        names = ("config.json", "model.safetensors")
        paths = [hf_hub_download("org/model", name) for name in names]
        result = [[Path(path).resolve().name, Path(path).stat().st_size] for path in paths]
    """)
    wanted = digests(FILES)
    assert blobs[0] == [git_sha1(CONFIG), len(CONFIG)]
    assert blobs[1] == [wanted["model.safetensors"], len(LARGE)]
    stats = hub.stats
    assert stats.token_leaks == []
    assert stats.body_bytes_hub == len(CONFIG)
    assert stats.body_bytes_cdn == len(LARGE)
    assert stats.path_bytes["org/model/model.safetensors"] == len(LARGE)
    assert stats.requests["HEAD resolve"] == 2
    tokens = {r.listener: r.headers.get("authorization") for r in stats.recorded}
    assert tokens == {"hub": "<present>", "cdn": None}


async def test_client_snapshots_follow_every_kind_of_revision(
    hub: Hub, real_client: RealClient
) -> None:
    """A branch, a tag, a PR ref, a sha and a dataset give the files of their commits."""
    model = hub.state.catalog.find("models", "org/model")
    assert model is not None
    first = model.get_commit("v1").sha
    found = await real_client.run(f"""
        result = [digests(snapshot_download("org/model", revision=revision))
            for revision in (None, "v1", "refs/pr/1", {first!r})]
        result.append(digests(snapshot_download("org/set", repo_type="dataset")))
    """)
    tagged = digests({**FILES, "config.json": b"{}\n"})
    extra = digests({"extra.txt": b"from a pull request\n"})
    dataset = digests({"rows.bin": LARGE[:200_000], "README.md": b"# set\n"})
    assert found[0] == digests(FILES)
    assert found[1] == found[3] == tagged
    assert found[2] == digests(FILES) | extra
    assert found[4] == dataset
    assert hub.stats.count_requests(route="revision") == 4
    assert hub.stats.count_requests(route="tree") == 4


async def test_client_long_listing_is_read_page_by_page(tmp_path: Path) -> None:
    """1001 files in pages of 100 are all listed, by eleven requests."""
    files = {f"file-{number:04}.txt": b"%d" % number for number in range(1001)}
    async with Hub([Repository("org/many", files)], page_size=100) as hub:
        listed = await RealClient(hub.url, tmp_path).run("""
            entries = HfApi().list_repo_tree("org/many", recursive=True)
            result = [entry.path for entry in entries]
        """)
        assert listed == sorted(files)
        assert hub.stats.requests["GET tree"] == 11


async def test_client_errors_are_the_ones_of_the_real_hub(hub: Hub, tmp_path: Path) -> None:
    """Each refusal becomes the exception that users catch."""
    script = """
        calls = [
            lambda: hf_hub_download("org/gated", "config.json"),
            lambda: hf_hub_download("org/secret", "config.json"),
            lambda: HfApi().model_info("org/absent"),
            lambda: hf_hub_download("org/model", "config.json", revision="absent"),
            lambda: hf_hub_download("org/model", "absent.json"),
            lambda: HfApi().auth_check("org/gated"),
            lambda: HfApi().model_info("org/gated"),
        ]
        result = [name_error(call) for call in calls]
        marks = Path(os.environ["HF_HOME"]).glob("hub/*/.no_exist/*/absent.json")
        result.append(len(list(marks)))
    """
    common = ["RevisionNotFoundError", "RemoteEntryNotFoundError", "GatedRepoError", "no error", 1]
    hidden = "RepositoryNotFoundError"
    signed_in = await RealClient(hub.url, tmp_path / "a", token=OTHER_TOKEN).run(script)
    assert signed_in == ["GatedRepoError", hidden, hidden, *common]
    anonymous = await RealClient(hub.url, tmp_path / "b").run(script)
    # A bare 401 over http:// is no RepositoryNotFoundError: the real hub sends no code with it.
    assert anonymous == ["GatedRepoError", "HfHubHTTPError", "HfHubHTTPError", *common]
    invalid = await RealClient(hub.url, tmp_path / "c", token="hf_invalid").run("""
        try:
            HfApi().model_info("org/model")
        except huggingface_hub.errors.HfHubHTTPError as error:
            result = [type(error).__name__, str(error)]
    """)
    assert invalid[0] == "HfHubHTTPError"
    assert "Invalid credentials in Authorization header" in invalid[1]


async def test_client_allowed_token_opens_private_and_gated(hub: Hub, tmp_path: Path) -> None:
    """The token of the repository reads what others may not."""
    found = await RealClient(hub.url, tmp_path, token=TOKEN).run("""
        paths = [hf_hub_download(name, "config.json") for name in ("org/secret", "org/gated")]
        result = [Path(path).read_text() for path in paths] + [HfApi().whoami()["name"]]
    """)
    assert found == [CONFIG.decode(), CONFIG.decode(), "tester"]


async def test_client_metadata_calls_parse(hub: Hub, real_client: RealClient) -> None:
    """Description, refs, commits, paths and the file system read what the hub holds."""
    hub.rename(hub.add(Repository("org/before", {"a.txt": b"moved"})), "org/after")
    found = await real_client.run("""
        api = HfApi()
        described = api.model_info("org/model", files_metadata=True)
        refs = api.list_repo_refs("org/model", include_pull_requests=True)
        wanted = ["config.json", "deep", "no"]
        fs = HfFileSystem()
        with fs.open("org/model/model.safetensors") as stream:
            stream.seek(1000)
            read = stream.read(16).hex()
        result = {
            "sizes": {sibling.rfilename: sibling.size for sibling in described.siblings},
            "lfs": [s.lfs.sha256 for s in described.siblings if s.lfs],
            "expanded": api.model_info("org/model", expand=["sha", "gated"]).sha == described.sha,
            "refs": [[ref.name for ref in group]
                for group in (refs.branches, refs.tags, refs.pull_requests)],
            "commits": [commit.title for commit in api.list_repo_commits("org/model")],
            "paths": [path.path for path in api.get_paths_info("org/model", wanted)],
            "folder": [p.path for p in api.list_repo_tree("org/model", "deep/er", expand=True)],
            "exists": [api.file_exists("org/model", name) for name in ("config.json", "no")],
            "ls": sorted(fs.ls("org/model", detail=False)),
            "read": read,
            "moved": Path(hf_hub_download("org/before", "a.txt")).read_text(),
            "moved_api": api.model_info("org/before").id,
            "legacy": Path(hf_hub_download("old", "config.json")).read_text(),
        }
    """)
    assert found["sizes"] == {path: len(content) for path, content in FILES.items()}
    assert found["lfs"] == [digests(FILES)["model.safetensors"]]
    assert found["expanded"]
    assert found["refs"] == [["main"], ["v1"], ["refs/pr/1"]]
    assert found["commits"] == ["Change the configuration", "Upload files"]
    assert found["paths"] == ["config.json", "deep"]
    assert found["folder"] == ["deep/er/a+b c%20#?.txt"]
    assert found["exists"] == [True, False]
    assert len(found["ls"]) == 4
    assert found["read"] == LARGE[1000:1016].hex()
    assert [found["moved"], found["moved_api"]] == ["moved", "org/after"]
    assert found["legacy"] == CONFIG.decode()


async def test_client_with_xet_goes_to_the_token_route(hub: Hub, real_client: RealClient) -> None:
    """Xet is signalled as the real hub does: the client asks for a token, not for the CDN."""
    script = "from huggingface_hub import *; hf_hub_download('org/model', 'model.safetensors')"
    child = await replace(real_client, xet=True).start("python", "-c", script)
    try:
        await hub.wait_for(lambda stats: stats.count_requests(route="xet-read-token") > 0)
    finally:
        child.kill()
        await child.communicate()
    assert hub.stats.body_bytes == 0


async def test_client_without_xet_signals_takes_plain_http(
    hub: Hub, real_client: RealClient
) -> None:
    """With the signals switched off, a client that could use Xet does not."""
    hub.set_faults(xet=False)
    found = await replace(real_client, xet=True).run("""
        result = digests(snapshot_download("org/model"))
    """)
    assert found == digests(FILES)
    assert hub.stats.count_requests(route="xet-read-token") == 0


async def test_client_command_line_downloads_and_verifies(
    hub: Hub, real_client: RealClient
) -> None:
    """`hf download` and then `hf cache verify` succeed."""
    download = await real_client.run_command("hf", "download", "org/model")
    assert download.exit_code == 0, download.stderr
    verify = await real_client.run_command("hf", "cache", "verify", "org/model")
    assert verify.exit_code == 0, verify.stderr
    assert hub.stats.body_bytes == len(LARGE) + SMALL_SIZE_BYTES


async def test_client_small_files_by_redirect_are_equal(hub: Hub, real_client: RealClient) -> None:
    """The relative 307 in front of a small file is followed to its metadata."""
    hub.set_faults(small_files_by_redirect=True)
    found = await real_client.run("""
        result = digests(snapshot_download("org/model"))
    """)
    assert found == digests(FILES)
    assert hub.stats.statuses["resolve 307"] >= 4
    assert hub.stats.count_requests(route="resolve-cache") >= 4


async def test_client_survives_a_broken_body_and_refusals(
    hub: Hub, real_client: RealClient
) -> None:
    """A body cut once and two 429s cost more requests, not the download."""
    hub.set_faults(
        paths="org/model/model.safetensors",
        break_after_bytes=1_000_000,
        break_times=1,
        routes=["resolve"],
        refuse_status=429,
        refuse_times=1,
        retry_after_s=0,
    )
    found = await asyncio.wait_for(
        real_client.run("""
            path = hf_hub_download("org/model", "model.safetensors")
            result = digests(Path(path).parent)["model.safetensors"]
        """),
        timeout=40,
    )
    assert found == digests(FILES)["model.safetensors"]
    assert hub.stats.statuses["resolve 429"] == 1
    assert hub.stats.count_requests(method="GET", route="cdn") == 2
