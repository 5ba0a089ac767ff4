"""
Owns the way of a model across an air gap: two machines that share nothing but a file.

Knows nothing of the format.
Invariants: real daemons and the real client in processes of their own; the second machine has no
hub, and no peer unless a test says so.
Source: docs/how-to/run-air-gapped.md.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemons import DaemonProcess, wait_until
from tests.hub import HubProcess
from tests.hub.client import RealClient
from tests.integration.conftest import MODEL, MakeDaemon, assert_same_files

NO_HUB = "http://127.0.0.1:9"
CANARY = "hf_canaryThatMustNotLeave"
# Buffers of an import are 12 MiB; a bundle in memory would be 90 MB.
GROWTH_BYTES_MAX = 48 * 1024 * 1024
PIPED_COMMAND = "{0} export {1} - {2} | {0} import-bundle - {3}"


def digests(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def measure_memory(daemon: DaemonProcess) -> int:
    """Return the most memory that a daemon had, in bytes."""
    lines = Path(f"/proc/{daemon.pid}/status").read_text().splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024


@pytest.fixture
def source(models: Path, make_daemon: MakeDaemon) -> Iterator[DaemonProcess]:
    """A daemon that pulled the model with a token; its hub is gone."""
    with HubProcess(models, gated=[MODEL], tokens=[CANARY]) as hub:
        daemon = make_daemon("a", upstream=hub.url).start()
        pulled = daemon.pull(MODEL, "--token", CANARY)
        assert pulled.returncode == 0, pulled.stderr
    yield daemon
    daemon.stop()


@pytest.fixture
def bundle(source: DaemonProcess, tmp_path: Path) -> Path:
    """The model in a file."""
    file = tmp_path / "model.tar"
    exported = source.run("export", MODEL, str(file))
    assert exported.returncode == 0, exported.stderr
    return file


async def test_model_crosses_the_gap_and_loads_offline(
    models: Path, model_bytes: int, make_daemon: MakeDaemon, source: DaemonProcess, tmp_path: Path
) -> None:
    """Export, import by id, load `main` and the commit: from the tree, and through the gateway."""
    file, truth = tmp_path / "model.tar", digests(models / MODEL)
    exported = json.loads(source.run("export", MODEL, str(file), "--json").stdout)
    source.stop()
    content = file.read_bytes()
    for secret in (CANARY, str(tmp_path), (source.store / "admin-token").read_text().strip()):
        assert secret.encode() not in content
    listed = subprocess.run(["tar", "tf", file], capture_output=True, text=True, check=True)
    assert listed.stdout.splitlines()[0] == "p2pcache-bundle.json"
    assert listed.stderr == ""

    target = make_daemon("b", upstream=NO_HUB).start()
    before = measure_memory(target)
    imported = target.run("import-bundle", str(file), "--id", exported["id"], "--public", "--json")
    assert imported.returncode == 0, imported.stderr
    assert measure_memory(target) - before < GROWTH_BYTES_MAX
    answer = json.loads(imported.stdout)
    assert answer["bytes_written"] == model_bytes
    assert answer["commit"] == exported["commit"]
    resident = json.loads(target.run("status", MODEL, "--json").stdout)
    assert (resident["state"], resident["path"]) == ("resident", answer["path"])
    assert_same_files(Path(answer["path"]), models)

    online = RealClient(target.local, tmp_path / "home", xet=True)
    assert await online.run(f"result = digests(snapshot_download({MODEL!r}))") == truth
    target.stop()
    assert await load_offline(target.store, answer["commit"], tmp_path) == [truth, truth]


async def load_offline(store: Path, commit: str, tmp_path: Path) -> object:
    """Load `main` and a commit with the real client, from a store's tree alone."""
    script = f"""
        os.environ["HF_HUB_CACHE"] = {str(store / "hub")!r}
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
    return await RealClient(NO_HUB, tmp_path / "offline", xet=True).run(script)


def test_restricted_model_stays_with_the_daemons_user(
    models: Path, make_daemon: MakeDaemon, bundle: Path
) -> None:
    """Without a hub nobody can be asked: the tree has it for its owner, the gateway for nobody."""
    target = make_daemon("b", upstream=NO_HUB).start()
    imported = json.loads(target.run("import-bundle", str(bundle), "--json").stdout)
    assert imported["public"] is False
    folder = Path(imported["path"])
    assert_same_files(folder, models)
    modes = {path.stat().st_mode & 0o777 for path in folder.rglob("*.*") if path.is_file()}
    assert modes == {0o400}
    connection = http.client.HTTPConnection(target.local.removeprefix("http://"), timeout=30)
    connection.request("GET", f"/{MODEL}/resolve/main/config.json")
    assert connection.getresponse().status == 504
    connection.close()


def test_peers_take_an_imported_model(
    models: Path, model_bytes: int, make_daemon: MakeDaemon, bundle: Path
) -> None:
    """One machine imports; the others behind the gap pull it from there."""
    target = make_daemon("b", upstream=NO_HUB).start()
    assert target.run("import-bundle", str(bundle), "--public").returncode == 0
    peer = make_daemon("c", upstream=NO_HUB, peers=[target.peer], trust_peers=True).start()
    pulled = peer.pull(MODEL, "--json")
    assert pulled.returncode == 0, pulled.stderr
    job = json.loads(pulled.stdout)
    assert job["bytes_from_peers"] == model_bytes
    assert_same_files(Path(job["path"]), models)


def test_import_killed_in_the_middle_goes_on(
    models: Path, model_bytes: int, make_daemon: MakeDaemon, bundle: Path
) -> None:
    """SIGKILL costs what was on its way; the second import writes the rest alone."""
    target = make_daemon("b", upstream=NO_HUB).start()
    command = [sys.executable, "-m", "p2pcache", "import-bundle", "-", *target.where]
    importing = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=False)
    assert importing.stdin is not None
    content = bundle.read_bytes()
    importing.stdin.write(content[: len(content) // 2])
    importing.stdin.flush()
    partial = target.store / "partial"
    # A record has 64 bytes: eight chunks are there, and their records.
    wait_until(lambda: any(p.stat().st_size > 600 for p in partial.glob("*.have")), "eight chunks")
    target.kill()
    importing.stdin.close()
    assert importing.wait(30) == 14
    assert importing.stderr is not None
    assert b"p2pcache up" in importing.stderr.read()
    importing.stderr.close()

    target.start()
    again = target.run("import-bundle", str(bundle), "--json")
    assert again.returncode == 0, again.stderr
    answer = json.loads(again.stdout)
    assert answer["bytes_written"] <= model_bytes - 8 * 4 * 1024 * 1024
    assert_same_files(Path(answer["path"]), models)
    assert list(partial.iterdir()) == []


def test_export_through_a_pipe_into_an_import(
    models: Path, make_daemon: MakeDaemon, source: DaemonProcess
) -> None:
    """Nothing has to fit on a stick: the one writes while the other reads."""
    target = make_daemon("b", upstream=NO_HUB).start()
    program = f"{sys.executable} -m p2pcache"
    command = PIPED_COMMAND.format(program, MODEL, " ".join(source.where), " ".join(target.where))
    piped = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False
    )
    assert piped.returncode == 0, piped.stderr
    assert_same_files(Path(piped.stdout.splitlines()[-1]), models)


def test_export_interrupted_leaves_no_file(source: DaemonProcess, tmp_path: Path) -> None:
    """Ctrl-C in the middle: exit code 130, a sentence, and nothing beside it."""
    file = tmp_path / "out" / "model.tar"
    file.parent.mkdir()
    command = [sys.executable, "-m", "p2pcache", "export", MODEL, str(file), *source.where]
    exporting = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: list(file.parent.iterdir()), "the first byte")
    exporting.send_signal(signal.SIGINT)
    _, complaints = exporting.communicate(timeout=30)
    assert (exporting.returncode, "no bundle was written" in complaints) == (130, True), complaints
    assert list(file.parent.iterdir()) == []


def test_export_into_a_pipe_that_closes_ends(source: DaemonProcess) -> None:
    """`export - | head` is one sentence, and the daemon goes on."""
    program = f"{sys.executable} -m p2pcache export {MODEL} - {' '.join(source.where)}"
    ended = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{program} | head -c 100"],
        capture_output=True,
        check=False,
    )
    assert ended.returncode == 13, ended.stderr
    assert b"Traceback" not in ended.stderr
    assert source.run("status").returncode == 0
