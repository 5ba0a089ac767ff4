"""
Owns the check of the hub as a process: its ready line, control routes and end.

Knows nothing of answers that the other tests check in process.
Invariants: no child outlives its test.
Source: the options in __main__.py.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.process import HubProcess
from tests.hub.samples import CONFIG, LARGE, TOKEN

MODEL = "/org/model/resolve/main"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Lay out two models and a dataset."""
    contents = {
        "org/model/config.json": CONFIG,
        "org/model/sub/model.safetensors": LARGE,
        "org/secret/config.json": CONFIG,
        "datasets/org/set/rows.csv": b"1,2\n",
    }
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.fixture
def process(directory: Path) -> Iterator[HubProcess]:
    """Run the hub over the directory."""
    with HubProcess(directory, private=["org/secret"], tokens=[TOKEN], page_size=1) as running:
        yield running


def read(url: str, **headers: str) -> bytes:
    """Fetch a URL."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, headers=headers), timeout=10) as answer:
        body: bytes = answer.read()
        return body


def read_status(url: str, **headers: str) -> int:
    """Fetch a URL that is refused and return the status."""
    with pytest.raises(urllib.error.HTTPError) as refusal:
        read(url, **headers)
    with refusal.value as error:
        return error.code


def test_process_serves_the_directory(process: HubProcess) -> None:
    """Files of models and datasets come; counts are read and reset over HTTP."""
    assert read(f"{process.url}{MODEL}/config.json") == CONFIG
    assert read(f"{process.url}{MODEL}/sub/model.safetensors") == LARGE
    assert read(f"{process.url}/datasets/org/set/resolve/main/rows.csv") == b"1,2\n"
    assert read_status(f"{process.url}/org/secret/resolve/main/config.json") == 401
    private = f"{process.url}/org/secret/resolve/main/config.json"
    assert read(private, Authorization=f"Bearer {TOKEN}") == CONFIG
    stats = process.wait_for(lambda stats: stats["requests_total"] == 6)
    assert stats["body_bytes_cdn"] == len(LARGE)
    assert stats["body_bytes_hub"] == 2 * len(CONFIG) + 4
    assert stats["path_bytes"]["datasets/org/set/rows.csv"] == 4
    assert stats["requests"] == {"GET resolve": 5, "GET cdn": 1}
    assert stats["token_leaks"] == []
    assert stats["recorded"][-1]["headers"]["authorization"] == "<present>"
    process.reset()
    assert process.stats()["requests_total"] == 0


def test_process_faults_and_commits_act(process: HubProcess) -> None:
    """Switches, new commits, moved refs, renames and closed ports reach the child."""
    url = f"{process.url}{MODEL}/config.json"
    before = json.loads(read(f"{process.url}/api/models/org/model"))["sha"]
    process.faults(refuse_status=503)
    assert read_status(url) == 503
    process.faults()
    after = process.commit("org/model", {"config.json": b"new"}, title="Second")
    assert read(url) == b"new"
    process.set_ref("org/model", "main", before)
    assert read(url) == CONFIG
    process.set_ref("org/model", "refs/tags/v2", after)
    assert read(url.replace("main", "v2")) == b"new"
    process.commit("org/made", {"a.txt": b"a"})
    process.rename("org/made", "org/renamed")
    assert read(f"{process.url}/org/made/resolve/main/a.txt") == b"a"
    process.set_listening(hub=False)
    with pytest.raises(urllib.error.URLError, match="refused"):
        read(url)
    process.set_listening()
    assert read(url) == CONFIG
    with pytest.raises(ValueError, match="unknown faults"):
        process.faults(no_such=1)


def test_process_rights_and_tokens_act(process: HubProcess) -> None:
    """Who may read, who is somebody, and what is there can be changed while it runs."""
    url = f"{process.url}{MODEL}/config.json"
    process.set_tokens([TOKEN, "hf_put_out"])
    process.set_rights("org/model", gated=True, tokens=[TOKEN])
    assert read_status(url) == 401
    assert read(url, Authorization=f"Bearer {TOKEN}") == CONFIG
    assert read_status(url, Authorization="Bearer hf_put_out") == 403
    process.set_tokens(["hf_put_out"])
    assert read_status(url, Authorization=f"Bearer {TOKEN}") == 401
    process.set_rights("org/model")
    assert read(url) == CONFIG
    process.delete("org/model")
    assert read_status(url) == 401
    with pytest.raises(ValueError, match="KeyError"):
        process.delete("org/model")


def test_process_same_directory_gives_same_commits(directory: Path) -> None:
    """Commits depend on content only; SIGTERM ends the process with 0."""
    shas = set()
    for _ in range(2):
        process = HubProcess(directory)
        process.start()
        shas.add(json.loads(read(f"{process.url}/api/models/org/model"))["sha"])
        assert process.stop() == 0
    assert len(shas) == 1


def test_process_without_directory_says_so(tmp_path: Path) -> None:
    """A hub that cannot start raises at once."""
    process = HubProcess(tmp_path, rate_bytes_per_s=1000, port=-1)
    with pytest.raises(RuntimeError, match="before it was ready"):
        process.start()
