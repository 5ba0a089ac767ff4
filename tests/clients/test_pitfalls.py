"""
Owns the guards of pitfalls that no acceptance case covers, and the page that lists all of them.

Knows nothing of single clients beyond what broke them at other mirrors.
Invariants: every pitfall of the page names a test that exists.
Source: docs/explanation/pitfalls.md.
"""

from __future__ import annotations

import http.client
import json
import os
import re
from pathlib import Path

from tests.clients.client import HubClient
from tests.clients.conftest import MakeDaemon, ask
from tests.clients.samples import CONFIG, WEIGHTS, Sample
from tests.daemons import DaemonProcess
from tests.hub import HubProcess

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "explanation" / "pitfalls.md"
PITFALLS = 31
_ROW = re.compile(r"^\| (\d+) \| .+ \| `(tests/[\w/]+\.py)::(test_\w+)` \|$", re.MULTILINE)
READS = 8
READ_BYTES = 25_000_000
# gzip takes ten seconds for what this allows one; copies in pieces of 50 MB take two.
CPU_S_MAX = 1.0


def test_every_pitfall_names_a_test_that_exists() -> None:
    """Thirty-one rows, numbered in order, each with a guard that pytest would find."""
    rows = _ROW.findall(PAGE.read_text(encoding="utf-8"))
    assert [int(number) for number, _, _ in rows] == list(range(1, PITFALLS + 1))
    absent = [
        f"{path}::{name}"
        for _, path, name in rows
        if f"def {name}(" not in (ROOT / path).read_text(encoding="utf-8")
    ]
    assert absent == []


def test_no_answer_names_the_hub_or_its_storage(
    hub: HubProcess, daemon: DaemonProcess, sample: Sample
) -> None:
    """Neither a header nor a JSON field leads past the daemon, or to Xet."""
    repo = sample.repo
    for method, path in (
        ("HEAD", sample.resolve(WEIGHTS)),
        ("GET", sample.resolve(CONFIG)),
        ("GET", f"/api/models/{repo}"),
        ("GET", f"/api/models/{repo}/revision/main?blobs=true"),
        ("GET", f"/api/models/{repo}?expand=xetEnabled&expand=siblings"),
        ("GET", f"/api/models/{repo}/tree/main?recursive=true"),
        ("GET", f"/api/models/{repo}/tree/main?recursive=true&expand=true"),
        ("GET", f"/api/models/{repo}/refs"),
        ("GET", f"/api/models/{repo}/commits/main"),
    ):
        status, headers, body = ask(daemon, path, method)
        assert status == 200, path
        said = f"{headers}{body.decode()}".lower()
        for strange in (hub.url, hub.cdn_url, "huggingface.co", "xet"):
            assert strange not in said, (path, strange)


def test_redirects_of_the_hub_stay_inside(
    hub: HubProcess, daemon: DaemonProcess, sample: Sample
) -> None:
    """A renamed repository and small files behind a second hop are 200 at the first address."""
    hub.faults(small_files_by_redirect=True)
    new = f"{sample.repo}-renamed"
    hub.rename(sample.repo, new)
    for path in (CONFIG, WEIGHTS):
        for method in ("HEAD", "GET"):
            status, headers, body = ask(daemon, sample.resolve(path), method)
            assert (status, headers["Location"]) == (200, None)
            assert headers["X-Repo-Commit"] == sample.commit
            assert headers["Content-Length"] == str(len(sample.files[path]))
            assert method == "HEAD" or body == sample.files[path]


def test_next_commit_costs_only_what_changed(
    hub: HubProcess, daemon: DaemonProcess, sample: Sample
) -> None:
    """What an earlier commit brought is neither fetched nor stored a second time."""
    assert daemon.pull(f"{sample.repo}@v1").returncode == 0
    hub.reset()
    assert daemon.pull(sample.repo).returncode == 0
    fetched = hub.stats()["path_bytes"]
    assert fetched == {f"{sample.repo}/{CONFIG}": len(sample.files[CONFIG])}
    digest = sample.etag(WEIGHTS)
    assert len(list(daemon.store.rglob(f"sha256/{digest[:2]}/{digest}"))) == 1


def test_slash_prefix_and_double_slash_are_taken(
    daemon: DaemonProcess, sample: Sample, tmp_path: Path
) -> None:
    """HF_ENDPOINT may end in a slash or have a path, and addresses may begin with two slashes."""
    script = f"result = digests(snapshot_download({sample.repo!r}))"
    for number, endpoint in enumerate((f"{daemon.local}/", f"{daemon.local}/mirror/hf")):
        client = HubClient(endpoint, tmp_path / str(number))
        assert client.run(script) == sample.truth(), endpoint
    assert ask(daemon, f"//api/models/{sample.repo}")[0] == 200


def test_body_that_is_too_short_is_never_the_file(
    hub: HubProcess, make_daemon: MakeDaemon, sample: Sample
) -> None:
    """A hub that promises the whole and sends less gives no file, and later the right one."""
    daemon = make_daemon("a")
    hub.faults(short_by_bytes=1000, paths=f"*{WEIGHTS}")
    connection = http.client.HTTPConnection(daemon.local.removeprefix("http://"), timeout=50)
    connection.request("GET", sample.resolve(WEIGHTS))
    answer = connection.getresponse()
    try:
        body = answer.read()
    except http.client.IncompleteRead as error:
        body = error.partial
    connection.close()
    assert answer.status != 200 or len(body) < len(sample.files[WEIGHTS])
    assert not list(daemon.store.rglob(f"snapshots/*/{WEIGHTS}"))
    hub.faults()
    assert ask(daemon, sample.resolve(WEIGHTS))[2] == sample.files[WEIGHTS]


def test_routes_of_other_protocols_are_refused_whole(daemon: DaemonProcess) -> None:
    """What is not served is a 404 with a sentence, not half an answer that a client begins with."""
    for path in ("/v2/", "/v2/library/llama3.2/manifests/1b", "/org/x/raw/main/config.json"):
        status, _, body = ask(daemon, path)
        assert status == 404, path
        assert json.loads(body)["message"], path


def test_cached_file_costs_little_processor_time(
    hub: HubProcess, daemon: DaemonProcess, sample: Sample
) -> None:
    """Bytes go out as they lie there: no compression, no copies through Python."""
    hub.commit(sample.repo, {"large.bin": os.urandom(READ_BYTES)}, branch="wide")
    path = sample.resolve("large.bin", "wide")
    assert len(ask(daemon, path)[2]) == READ_BYTES
    before_s = measure_cpu_s(daemon.pid)
    for _ in range(READS):
        assert len(ask(daemon, path, Accept_Encoding="gzip, br")[2]) == READ_BYTES
    assert measure_cpu_s(daemon.pid) - before_s < CPU_S_MAX


def measure_cpu_s(pid: int) -> float:
    """Return the processor time that a process has used outside of the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / os.sysconf("SC_CLK_TCK")
