"""
Owns the acceptance cases of ModelScope: what its newest client downloads through a daemon.

Knows nothing of huggingface_hub.
Invariants: the client is the real one in its own process; one that connects elsewhere fails.
Source: acceptance cases 31-36 of the hub protocols; docs/reference/modelscope-dialect.md.
"""

from __future__ import annotations

import hashlib
import random
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.clients.client import HubClient, Outcome
from tests.clients.conftest import LONG
from tests.daemons import DaemonProcess, wait_until
from tests.hostile import FlippingWire
from tests.hub import HubProcess

MODEL, DATASET, SECRET, WIDE = "org/m", "org/rows", "org/secret", "org/wide"
WEIGHTS = "weights/model.bin"
TOKEN = "ms_allowed"
ROWS = 230
WIDE_BYTES = 40_000_000
# More than the client's own threshold for parallel parts, and not a multiple of its part.
HUGE_BYTES = 540_000_123
_PRELUDE = """
import hashlib, json, os, sys
from pathlib import Path

def digests(root):
    files = [path for path in sorted(Path(root).rglob("*")) if path.is_file()]
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files}

from modelscope import dataset_snapshot_download, snapshot_download
from modelscope.hub.file_download import dataset_file_download, model_file_download
"""
_EPILOGUE = "\nimport json\nprint('RESULT ' + json.dumps(result))\n"


@dataclass(frozen=True)
class ModelScopeClient(HubClient):
    """The newest modelscope on one machine."""

    environment: str = "modelscope"

    def run_script(self, script: str) -> Outcome:
        """Run a script to its end, however it ends."""
        text = _PRELUDE + textwrap.dedent(script) + _EPILOGUE
        return self.finish(self._start([str(self.python), "-c", text]))

    def _make_variables(self) -> dict[str, str]:
        chosen = super()._make_variables()
        kept = {name: text for name, text in chosen.items() if not name.startswith("HF_")}
        own = {
            "MODELSCOPE_ENDPOINT": self.endpoint,
            "MODELSCOPE_CACHE": str(self.cache),
            "MODELSCOPE_HOME": str(self.home / "modelscope"),
        }
        if self.token is not None:
            own["MODELSCOPE_API_TOKEN"] = self.token
        return {**kept, **own, **self.variables}


class Site:
    """A hub, and what starts daemons and clients of it."""

    def __init__(self, folder: Path, hub: HubProcess, truth: Path) -> None:
        self.hub = hub
        self.truth = truth
        self.daemons: list[DaemonProcess] = []
        self._folder = folder

    def daemon(self, name: str, **options: Any) -> DaemonProcess:
        """Start a daemon."""
        daemon = DaemonProcess(
            self._folder / name,
            upstream=self.hub.url,
            extra=["--ms-upstream", self.hub.url],
            **options,
        )
        self.daemons.append(daemon)
        return daemon.start()

    def client(self, daemon: DaemonProcess, name: str = "home", **options: Any) -> ModelScopeClient:
        """Return a client that has downloaded nothing yet, if its name is new."""
        return ModelScopeClient(daemon.local, self._folder / name, **options)

    def digests(self, repo: str) -> dict[str, str]:
        """Return the SHA-256 of every file of a repository."""
        paths = [path for path in (self.truth / repo).rglob("*") if path.is_file()]
        return {
            str(path.relative_to(self.truth / repo)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in paths
        }


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the repositories."""
    root = tmp_path_factory.mktemp("modelscope")
    chance = random.Random(31)
    contents = {
        f"{MODEL}/{WEIGHTS}": chance.randbytes(9_000_000),
        f"{MODEL}/config.json": b'{"model_type": "bert"}\n',
        f"{MODEL}/empty.txt": b"",
        f"{MODEL}/deep/a+b c%20#?.txt": b"odd\n",
        f"{SECRET}/secret.bin": chance.randbytes(100_000),
        f"{WIDE}/model.bin": chance.randbytes(WIDE_BYTES),
        f"datasets/{DATASET}/rows.bin": chance.randbytes(200_000),
        **{f"datasets/{DATASET}/data/{n:04}.txt": b"%d\n" % n for n in range(ROWS)},
    }
    for name, content in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


@pytest.fixture
def site(truth: Path, tmp_path: Path) -> Iterator[Site]:
    """Run a hub; ends every daemon."""
    with HubProcess(truth, private=[SECRET], tokens=[TOKEN]) as hub:
        site = Site(tmp_path, hub, truth)
        yield site
        for daemon in site.daemons:
            daemon.stop()


def count_answers(daemon: DaemonProcess, status: int) -> int:
    """Return how often the ModelScope dialect answered with a status."""
    from tests.clients.conftest import ask

    wanted = f'p2pcache_gateway_requests_total{{dialect="ms",code="{status}"}} '
    lines = ask(daemon, "/metrics")[2].decode().splitlines()
    return sum(int(float(line.removeprefix(wanted))) for line in lines if line.startswith(wanted))


def test_case_31_snapshot_download_cold_warm_offline_and_from_the_store(site: Site) -> None:
    """Every file is right; a warm run asks the hub nothing, nor does one without a hub."""
    daemon = site.daemon("a")
    script = f"result = digests(snapshot_download({MODEL!r}))"
    assert site.client(daemon, "cold").run(script) == site.digests(MODEL)
    site.hub.reset()
    assert site.client(daemon, "warm").run(script) == site.digests(MODEL)
    assert site.hub.stats()["requests_total"] == 0
    site.hub.set_listening(hub=False, cdn=False)
    daemon.stop()
    daemon.start()
    assert site.client(daemon, "offline").run(script) == site.digests(MODEL)
    # The store itself is a cache of the client: no daemon, no copy.
    store = {"MODELSCOPE_CACHE": str(daemon.store / "modelscope")}
    client = site.client(daemon, "store", variables=store)
    daemon.stop()
    found = client.run(
        f"""
        folder = snapshot_download({MODEL!r}, local_files_only=True)
        one = model_file_download({MODEL!r}, {WEIGHTS!r}, revision="master", local_files_only=True)
        result = [digests(folder), os.path.samefile(one, Path(folder) / {WEIGHTS!r}), folder]
        """
    )
    assert found[:2] == [site.digests(MODEL), True]
    assert found[2].startswith(str(daemon.store))


def test_case_32_file_download_by_master_tag_and_commit(site: Site) -> None:
    """One file of each revision; what is not there is an error that names it."""
    site.hub.set_ref(MODEL, "refs/tags/v1", "main")
    newest = site.hub.commit(MODEL, {"config.json": b"{}\n"})
    daemon = site.daemon("a")
    found = site.client(daemon).run(
        f"""
        revisions = ["v1", "master", {newest!r}]
        result = [Path(model_file_download({MODEL!r}, "config.json", revision=r)).read_text()
                  for r in revisions]
        result.append(digests(Path(model_file_download({MODEL!r}, {WEIGHTS!r})).parent))
        result.append(Path(model_file_download({MODEL!r}, "deep/a+b c%20#?.txt")).read_text())
        try:
            model_file_download({MODEL!r}, "nope.txt", revision="master")
        except Exception as error:
            result.append(str(error))
        """
    )
    assert found[:3] == ['{"model_type": "bert"}\n', "{}\n", "{}\n"]
    assert found[3] == {"model.bin": site.digests(MODEL)[WEIGHTS]}
    assert found[4] == "odd\n"
    assert "nope.txt" in found[5]
    assert count_answers(daemon, 404) >= 1


@LONG
def test_case_33_data_set_of_two_pages(site: Site) -> None:
    """All files of both pages, and one file by itself."""
    daemon = site.daemon("a")
    found = site.client(daemon).run(
        f"""
        one = dataset_file_download({DATASET!r}, "rows.bin")
        result = [digests(dataset_snapshot_download({DATASET!r})), Path(one).stat().st_size]
        """
    )
    assert found == [site.digests(f"datasets/{DATASET}"), 200_000]
    assert site.hub.stats()["requests"]["GET ms-tree"] == 2


@LONG
def test_case_34_wrong_bytes_from_a_peer_never_reach_the_client(site: Site) -> None:
    """A wire that flips bits costs a chunk; the client sees no E2020 and tries nothing twice."""
    first = site.daemon("a")
    assert first.pull(f"ms:{MODEL}").returncode == 0
    with FlippingWire(first.peer) as wire:
        second = site.daemon("b", peers=[wire.address], listen="127.0.0.2:0")
        outcome = site.client(second).run_script(f"result = digests(snapshot_download({MODEL!r}))")
        assert wire.flipped > 0
        faults = {fault["reason"] for fault in second.client.status()["faults"]}
        second.stop()  # before the wire goes, so that it closes what it opened
    assert outcome.result == site.digests(MODEL)
    assert "E2020" not in outcome.stderr
    assert "retrying" not in outcome.stderr
    assert faults == {"wrong bytes"}


def test_case_35_parallel_parts_are_exact(site: Site) -> None:
    """With a low threshold: five parts of 8 MiB, four at once, each answered as it was asked."""
    daemon = site.daemon("a")
    variables = {
        "MODELSCOPE_DOWNLOAD_PARALLELS": "4",
        "MODELSCOPE_DOWNLOAD_PARALLEL_THRESHOLD_MB": "1",
        "MODELSCOPE_DOWNLOAD_PART_SIZE_MB": "8",
    }
    client = site.client(daemon, variables=variables)
    outcome = client.run_script(f"result = digests(snapshot_download({WIDE!r}))")
    assert outcome.result == site.digests(WIDE), outcome.stderr
    assert "not honoured" not in outcome.stderr
    assert count_answers(daemon, 206) == 5
    assert site.hub.stats()["path_bytes"][f"{WIDE}/model.bin"] == WIDE_BYTES


@LONG
def test_case_35_parallel_parts_of_a_file_above_the_clients_own_threshold(
    tmp_path: Path,
) -> None:
    """540 MB with nothing set but the number of parts at once."""
    path = tmp_path / "hub" / "org" / "huge" / "model.bin"
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(HUGE_BYTES)
    with HubProcess(tmp_path / "hub") as hub:
        site = Site(tmp_path, hub, tmp_path / "hub")
        daemon = site.daemon("a")
        try:
            variables = {"MODELSCOPE_DOWNLOAD_PARALLELS": "4"}
            client = site.client(daemon, variables=variables, timeout_s=180.0)
            outcome = client.run_script(f"result = digests(snapshot_download({'org/huge'!r}))")
            assert outcome.result == site.digests("org/huge"), outcome.stderr
            assert "not honoured" not in outcome.stderr
            assert count_answers(daemon, 206) == 4
        finally:
            daemon.stop()


def test_case_36_failure_with_status_200_passes_through(site: Site) -> None:
    """The client hears the hub's own words, as it would without a daemon between."""
    daemon = site.daemon("a")
    site.hub.faults(business_failure=True)
    script = f"""
        from modelscope_hub import HubApi
        client = HubApi().legacy
        response = client._request("GET", "models/{MODEL}/repo/files",
                                   params={{"Revision": "master", "Recursive": "True"}})
        result = [response.status_code, response.json()["Success"], response.json()["Message"]]
        """
    through = site.client(daemon).run(script)
    direct = ModelScopeClient(site.hub.url, site.client(daemon, "direct").home).run(script)
    assert through == direct == [200, False, "system is busy, please try again later"]


def test_interrupted_download_is_resumed_where_it_broke_off(site: Site) -> None:
    """A second run of the client asks for the rest alone, and gets exactly that."""
    daemon = site.daemon("a")
    content = (site.truth / MODEL / WEIGHTS).read_bytes()
    client = site.client(daemon)
    partial = client.cache / "models" / "org--m" / "snapshots" / "master" / f"{WEIGHTS}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(content[:5_000_000])
    assert client.run(f"result = digests(snapshot_download({MODEL!r}))") == site.digests(MODEL)
    assert count_answers(daemon, 206) == 1


def test_token_opens_a_private_model_to_its_holder_alone(site: Site) -> None:
    """With the token it is there; without one, and with another, there is no such model."""
    daemon = site.daemon("a")
    script = f"""
        try:
            result = digests(snapshot_download({SECRET!r}))
        except Exception as error:
            result = str(error)
        """
    assert site.client(daemon, "in", token=TOKEN).run(script) == site.digests(SECRET)
    wait_until(lambda: site.hub.stats()["token_leaks"] == [], "no leak")
    for name, token in (("out", None), ("other", "ms_garbage")):
        assert "[404]" in site.client(daemon, name, token=token).run(script)
