"""
Owns the acceptance cases of clients that are not huggingface_hub: curl, and what llama.cpp and the
Rust client send.

Knows nothing of Python clients.
Invariants: curl is the real one; the other two are their requests, sent by it.
Source: acceptance cases 17, 18, 47 and 48 of the hub protocols.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients.conftest import MakeSample
from tests.clients.environments import find_curl
from tests.clients.samples import CONFIG, WEIGHTS, Sample
from tests.daemons import DaemonProcess

CURL_TIMEOUT_S = 50.0


@dataclass(frozen=True)
class Answer:
    """What curl saw. Header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


def curl(daemon: DaemonProcess, path: str, folder: Path, *arguments: str) -> Answer:
    """Ask the daemon for a path with curl."""
    body, head = folder / "body", folder / "head"
    for stale in (body, head):
        stale.unlink(missing_ok=True)
    subprocess.run(
        [
            *(find_curl(), "-sS", "--noproxy", "*", "-D", str(head), "-o", str(body)),
            *(*arguments, f"{daemon.local}{path}"),
        ],
        check=True,
        timeout=CURL_TIMEOUT_S,
    )
    # Interim answers come first; the last block is the answer.
    block = head.read_text().replace("\r\n", "\n").strip().split("\n\n")[-1].splitlines()
    fields = [line.partition(":") for line in block[1:]]
    headers = {name.lower(): value.strip() for name, _, value in fields}
    return Answer(int(block[0].split()[1]), headers, body.read_bytes() if body.exists() else b"")


@pytest.mark.parametrize("when", ["cold", "warm"])
def test_case_17_curl_ranges_are_exact(
    daemon: DaemonProcess, make_sample: MakeSample, tmp_path: Path, when: str
) -> None:
    """206 with the exact Content-Range for what can be met, 416 with the size for what cannot."""
    sample = make_sample()
    content = sample.files[WEIGHTS]
    size, path = len(content), sample.resolve(WEIGHTS)
    if when == "warm":
        assert curl(daemon, path, tmp_path).body == content
    for asked, first, last in (
        ("0-0", 0, 0),
        ("5-9", 5, 9),
        ("-10", size - 10, size - 1),
        ("100-", 100, size - 1),
        (f"{size - 3}-{size + 100}", size - 3, size - 1),
    ):
        answer = curl(daemon, path, tmp_path, "-r", asked)
        assert answer.status == 206, asked
        assert answer.headers["content-range"] == f"bytes {first}-{last}/{size}"
        assert answer.headers["content-length"] == str(last - first + 1)
        assert answer.body == content[first : last + 1]
    refused = curl(daemon, path, tmp_path, "-r", f"{size}-")
    assert (refused.status, refused.headers["content-range"]) == (416, f"bytes */{size}")
    empty = curl(daemon, sample.resolve("empty.txt"), tmp_path, "-r", "0-0")
    assert (empty.status, empty.headers["content-range"]) == (416, "bytes */0")


def test_case_17_curl_resumes(daemon: DaemonProcess, sample: Sample, tmp_path: Path) -> None:
    """`curl -C -` completes what an earlier run left."""
    content, kept = sample.files[WEIGHTS], tmp_path / "kept"
    kept.write_bytes(content[:123_457])
    subprocess.run(
        [
            *(find_curl(), "-sS", "--noproxy", "*", "-C", "-", "-o", str(kept)),
            f"{daemon.local}{sample.resolve(WEIGHTS)}",
        ],
        check=True,
        timeout=CURL_TIMEOUT_S,
    )
    assert kept.read_bytes() == content


def test_case_18_curl_conditions_are_honoured(
    daemon: DaemonProcess, sample: Sample, tmp_path: Path
) -> None:
    """304 for what the caller has, If-Range both ways, and no compression though it is offered."""
    content, path = sample.files[WEIGHTS], sample.resolve(WEIGHTS)
    etag = f'"{sample.etag(WEIGHTS)}"'
    assert curl(daemon, path, tmp_path, "-H", f"If-None-Match: {etag}").status == 304
    matching = curl(daemon, path, tmp_path, "-r", "0-3", "-H", f"If-Range: {etag}")
    assert (matching.status, matching.body) == (206, content[:4])
    other = curl(daemon, path, tmp_path, "-r", "0-3", "-H", 'If-Range: "other"')
    assert (other.status, other.body) == (200, content)
    compressed = curl(daemon, path, tmp_path, "-H", "Accept-Encoding: gzip, deflate, br")
    assert compressed.body == content
    assert "content-encoding" not in compressed.headers


def test_case_47_llama_cpp_lists_in_one_page_and_resumes(
    daemon: DaemonProcess, sample: Sample, tmp_path: Path
) -> None:
    """Refs, the whole tree in one page, a HEAD with all it needs, then a strict 206."""
    refs = json.loads(curl(daemon, f"/api/models/{sample.repo}/refs", tmp_path).body)
    commits = {ref["name"]: ref["targetCommit"] for ref in refs["branches"]}
    assert commits == {"main": sample.commit}
    path = f"/api/models/{sample.repo}/tree/{sample.commit}?recursive=true"
    listed = curl(daemon, path, tmp_path)
    assert "link" not in listed.headers
    files = {e["path"]: e for e in json.loads(listed.body) if e["type"] == "file"}
    assert sorted(files) == sorted(sample.files)
    assert files[WEIGHTS]["lfs"]["oid"] == sample.etag(WEIGHTS)
    content = sample.files[WEIGHTS]
    address = sample.resolve(WEIGHTS, sample.commit)
    head = curl(daemon, address, tmp_path, "-I")
    assert head.status == 200
    assert head.headers["etag"] == f'"{sample.etag(WEIGHTS)}"'
    assert head.headers["content-length"] == str(len(content))
    assert head.headers["accept-ranges"] == "bytes"
    rest = curl(daemon, address, tmp_path, "-r", "1000-")
    assert (rest.status, rest.body) == (206, content[1000:])


def test_case_48_rust_probe_of_one_byte_tells_all(
    daemon: DaemonProcess, sample: Sample, tmp_path: Path
) -> None:
    """`Range: bytes=0-0` of large and small files: 206, the size, the ETag and the commit."""
    for name in (WEIGHTS, CONFIG):
        size = len(sample.files[name])
        answer = curl(daemon, sample.resolve(name), tmp_path, "-H", "Range: bytes=0-0")
        assert (answer.status, answer.body) == (206, sample.files[name][:1])
        assert answer.headers["content-range"] == f"bytes 0-0/{size}"
        assert answer.headers["x-repo-commit"] == sample.commit
        assert answer.headers["etag"] == f'"{sample.etag(name)}"'
