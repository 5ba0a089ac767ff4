"""
Owns the whole job once: hub → peer → peer → an unmodified client, with the hub gone halfway.

Knows nothing of how it is done.
Invariants: the real client in a process of its own; bytes compared by sha256.
Source: the first lines of README.md.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tests.hub import HubProcess
from tests.hub.client import RealClient
from tests.integration.conftest import MODEL, MakeDaemon, assert_same_files


def digests(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


async def test_model_reaches_an_unmodified_client_through_two_daemons_without_the_hub(
    models: Path, model_bytes: int, make_daemon: MakeDaemon, tmp_path: Path
) -> None:
    """A pulls, the hub stops, B takes all from A, a client loads through B and from B's tree."""
    truth = digests(models / MODEL)
    with HubProcess(models) as hub:
        first = make_daemon("a", upstream=hub.url).start()
        assert first.pull(MODEL).returncode == 0
        upstream = hub.url
    second = make_daemon("b", upstream=upstream, peers=[first.peer], trust_peers=True).start()
    pulled = second.pull(MODEL, "--json")
    assert pulled.returncode == 0, pulled.stderr
    job = json.loads(pulled.stdout)
    assert (job["bytes_from_peers"], job["bytes_from_upstream"]) == (model_bytes, 0)
    commit = job["commit"]
    by_commit = second.pull(f"{MODEL}@{commit}")
    assert by_commit.returncode == 0, by_commit.stderr
    assert_same_files(Path(by_commit.stdout.splitlines()[-1]), models)

    client = RealClient(second.local, tmp_path / "home", xet=True)
    assert await client.run(f"result = digests(snapshot_download({MODEL!r}))") == truth
    pinned = f"result = digests(snapshot_download({MODEL!r}, revision={commit!r}))"
    assert await client.run(pinned) == truth

    second.stop()
    first.stop()
    offline = f"""
        os.environ["HF_HUB_CACHE"] = {str(second.store / "hub")!r}
        os.environ["HF_HUB_OFFLINE"] = "1"
        import subprocess
        code = (
            "import json; from huggingface_hub import snapshot_download as load; "
            "print(json.dumps([load('{MODEL}'), load('{MODEL}', revision='{commit}')]))"
        )
        answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert answer.returncode == 0, answer.stderr
        result = [digests(folder) for folder in json.loads(answer.stdout)]
    """
    closed = RealClient("http://127.0.0.1:9", tmp_path / "offline", xet=True)
    assert await closed.run(offline) == [truth, truth]


async def test_peer_pulls_by_commit_first_without_the_hub(
    models: Path, model_bytes: int, make_daemon: MakeDaemon
) -> None:
    """A commit that this daemon never heard of is resolved by a trusted peer alone."""
    with HubProcess(models) as hub:
        first = make_daemon("a", upstream=hub.url).start()
        commit = json.loads(first.pull(MODEL, "--json").stdout)["commit"]
        upstream = hub.url
    second = make_daemon("b", upstream=upstream, peers=[first.peer], trust_peers=True).start()
    job = json.loads(second.pull(f"{MODEL}@{commit}", "--json").stdout)
    assert (job["state"], job["bytes_from_peers"]) == ("done", model_bytes)


def test_untrusted_peer_is_not_believed_about_a_repository_without_the_hub(
    models: Path, make_daemon: MakeDaemon
) -> None:
    """Without the hub and without --trust-peers, what peers say of `main` does not count."""
    with HubProcess(models) as hub:
        first = make_daemon("a", upstream=hub.url).start()
        assert first.pull(MODEL).returncode == 0
        upstream = hub.url
    second = make_daemon("b", upstream=upstream, peers=[first.peer]).start()
    result = second.pull(MODEL)
    assert result.returncode == 12
    assert "--trust-peers" in result.stderr
    assert "Traceback" not in result.stderr
