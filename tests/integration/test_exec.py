"""
Owns tests of `p2pcache exec`: real daemon, real hub, real commands, signals, a terminal.

Knows nothing of the client's inside.
Invariants: a command that a test started is gone when the test ends.
Source: design.md §8 (exec); decision 0024.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from p2pcache.client import SpaceClient
from p2pcache.store.pagecache import find_absent
from tests.daemons import DaemonProcess, run_p2pcache, wait_until
from tests.hub import HubProcess

MODEL = "org/name"
CONTENT = random.Random(24).randbytes(9_000_000)
END_S = 30.0

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    """Run a hub with one model of 9 MB."""
    folder = tmp_path_factory.mktemp("models")
    (folder / MODEL).mkdir(parents=True)
    (folder / MODEL / "config.json").write_text("{}")
    (folder / MODEL / "model.bin").write_bytes(CONTENT)
    with HubProcess(folder) as running:
        yield running


@pytest.fixture(scope="module")
def daemon(hub: HubProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """Run a daemon that has the model."""
    store = tmp_path_factory.mktemp("daemon") / "store"
    with DaemonProcess(store, upstream=hub.url) as running:
        assert running.pull(MODEL).returncode == 0
        yield running


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts `p2pcache exec`; all are gone in the end."""
    running: list[subprocess.Popen[str]] = []

    def start_exec(
        daemon: DaemonProcess, *command: str, by_store: bool = False
    ) -> subprocess.Popen[str]:
        where = daemon.where[:2] if by_store else daemon.where
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("P2PCACHE_", "HF_"))}
        process = subprocess.Popen(
            [sys.executable, "-m", "p2pcache", "exec", MODEL, *where, "--", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=clean,
        )
        running.append(process)
        return process

    yield start_exec
    for process in running:
        process.kill()
        process.communicate(timeout=END_S)


def run_exec(daemon: DaemonProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `p2pcache exec MODEL OPTIONS -- CMD` to its end; `--` is among the arguments."""
    return run_p2pcache("exec", MODEL, *daemon.where, *arguments)


def count_leases(daemon: DaemonProcess) -> int:
    """Return how many leases hold now."""
    return len(SpaceClient(daemon.local, daemon.store).leases()["leases"])


def test_command_finds_the_model_by_argument_and_by_environment(daemon: DaemonProcess) -> None:
    """{} anywhere in an argument, the variables of the libraries, one that was asked for."""
    program = (
        "import os, json, sys; print(json.dumps([sys.argv[1:], "
        "{k: v for k, v in os.environ.items() if k.startswith(('HF_', 'P2PCACHE_', 'MY_'))}]))"
    )
    command = [
        "--env",
        "MY_MODEL",
        "--",
        sys.executable,
        "-c",
        program,
        "{}",
        "--m={}/x",
        "--",
        "{",
    ]
    result = run_exec(daemon, *command)
    assert result.returncode == 0, result.stderr
    arguments, variables = json.loads(result.stdout)
    path = str(daemon.client.residency(MODEL)["path"])
    assert arguments == [path, f"--m={path}/x", "--", "{"]
    assert variables == {
        "HF_HUB_CACHE": str(daemon.store / "hub"),
        "HF_HUB_OFFLINE": "1",
        "P2PCACHE_MODEL_PATH": path,
        "MY_MODEL": path,
    }
    assert (Path(path) / "model.bin").read_bytes() == CONTENT


def test_command_loads_with_the_unmodified_library(daemon: DaemonProcess) -> None:
    """huggingface_hub finds the snapshot by name, and asks nobody."""
    program = f"from huggingface_hub import snapshot_download; print(snapshot_download({MODEL!r}))"
    result = run_exec(daemon, "--", sys.executable, "-c", program)
    assert result.stdout.strip() == str(daemon.client.residency(MODEL)["path"]), result.stderr


@pytest.mark.parametrize(("script", "code"), [("exit 7", 7), ("kill -TERM $$", -signal.SIGTERM)])
def test_end_of_the_command_is_the_end_of_exec(
    daemon: DaemonProcess, script: str, code: int
) -> None:
    """Exit code and signal are passed through, as if the command had been started by itself."""
    result = run_exec(daemon, "--no-warm", "--", "sh", "-c", script)
    assert result.returncode == code, result.stderr


def test_signal_reaches_the_command_under_its_own_process_id(
    daemon: DaemonProcess, start: Start
) -> None:
    """Whoever signals the process that was started signals the command."""
    script = "trap 'echo caught; exit 9' USR1; echo $$; while :; do sleep 0.05; done"
    process = start(daemon, "sh", "-c", script)
    assert process.stdout is not None
    assert int(process.stdout.readline()) == process.pid
    process.send_signal(signal.SIGUSR1)
    assert process.wait(END_S) == 9
    assert process.stdout.read() == "caught\n"


def test_lease_holds_as_long_as_the_command(daemon: DaemonProcess, start: Start) -> None:
    """While it runs the model cannot be removed; when it is killed the lease ends."""
    process = start(daemon, "sh", "-c", "echo up; exec sleep 60")
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    assert count_leases(daemon) == 1
    refused = daemon.run("rm", MODEL)
    assert refused.returncode == 2
    assert "leased" in refused.stderr
    process.kill()
    assert process.wait(END_S) == -signal.SIGKILL
    wait_until(lambda: not count_leases(daemon), "the end of the lease")


def test_command_begins_with_plain_signals_and_files(daemon: DaemonProcess) -> None:
    """Nothing of Python's is passed on: no ignored signals, no open files, no children."""
    script = "grep SigIgn /proc/self/status; ls /proc/$$/fd; ps -o pid= --ppid $$ | wc -l; :"
    result = run_exec(daemon, "--", "sh", "-c", script)
    ignored, *files, children = result.stdout.splitlines()
    assert int(ignored.split()[1], 16) & (1 << (signal.SIGPIPE - 1)) == 0
    assert files == ["0", "1", "2"]
    assert int(children) <= 2, "ps and wc"


def test_command_has_the_terminal(daemon: DaemonProcess) -> None:
    """It reads what is typed, and Ctrl-C is its own."""
    script = "trap 'echo interrupted; exit 4' INT; read word; echo got $word; sleep 30"
    command = [sys.executable, "-m", "p2pcache", "exec", MODEL, *daemon.where]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(command[0], [*command, "--", "bash", "-c", script])  # noqa: S606
    try:
        os.write(terminal, b"hello\n")
        seen = read_until(terminal, b"got hello")
        os.write(terminal, b"\x03")
        seen += read_until(terminal, b"interrupted")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL) if os.waitpid(pid, os.WNOHANG)[0] == 0 else None
        os.close(terminal)
    assert b"got hello" in seen


def read_until(terminal: int, text: bytes) -> bytes:
    """Read a terminal until a text appears."""
    seen = b""
    while text not in seen:
        seen += os.read(terminal, 4096)
    return seen


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--", "no-such-command"], 127, "There is no command 'no-such-command'"),
        (["--", "/"], 126, "cannot be run"),
        (["--env", "1x", "--", "true"], 2, "no name of a variable"),
        (["--replace", "", "--", "true"], 2, "needs a text"),
        (["--include", "nothing*", "--", "true"], 2, "No file of org/name matches"),
    ],
)
def test_command_that_cannot_run_is_refused_with_next_step(
    daemon: DaemonProcess, hub: HubProcess, arguments: list[str], code: int, said: str
) -> None:
    """Before a byte is fetched where that can be known."""
    hub.reset()
    result = run_exec(daemon, *arguments)
    assert result.returncode == code, result.stderr
    assert said in result.stderr
    assert hub.stats()["body_bytes"] < 10_000


def test_json_leaves_standard_output_to_the_command(daemon: DaemonProcess) -> None:
    """What there is to say is one object on standard error."""
    result = run_exec(daemon, "--json", "--", "echo", "mine")
    assert result.stdout == "mine\n"
    told = json.loads(result.stderr)
    assert told["command"] == ["echo", "mine"]
    assert told["bytes_warm"] == len(CONTENT) + 2
    assert told["path"] == daemon.client.residency(MODEL)["path"]


def test_replacement_may_be_another_text(daemon: DaemonProcess) -> None:
    """For commands that take {} for themselves, JSON for example."""
    result = run_exec(daemon, "--replace", "@M@", "--", "echo", '{"a": {}}', "@M@")
    assert result.stdout == f'{{"a": {{}}}} {daemon.client.residency(MODEL)["path"]}\n'


def test_command_waits_for_the_last_byte_and_a_retry_continues(
    hub: HubProcess, tmp_path: Path, start: Start
) -> None:
    """Killed in the middle, with its daemon, and started again: each byte comes once."""
    hub.reset()
    mark = tmp_path / "began"
    hub.faults(rate_bytes_per_s=4_000_000)
    with DaemonProcess(tmp_path / "store", upstream=hub.url) as daemon:
        process = start(daemon, "touch", str(mark))
        wait_until(lambda: hub.stats()["body_bytes"] > 0.5 * len(CONTENT), "half of it")
        assert not mark.exists()
        process.kill()
        assert process.wait(END_S) == -signal.SIGKILL
        daemon.kill()
        daemon.start()
        hub.faults()
        again = start(daemon, "sh", "-c", f"cmp {{}}/model.bin {tmp_path}/copy && touch {mark}")
        (tmp_path / "copy").write_bytes(CONTENT)
        assert again.wait(END_S) == 0, again.communicate()
    assert mark.exists()
    # What was in the sockets when the daemon was killed is fetched again: 4 MiB chunks.
    assert hub.stats()["body_bytes"] <= len(CONTENT) * 1.05 + 2 * 4 * 2**20


@pytest.mark.parametrize(
    ("number", "code", "state"),
    [(signal.SIGINT, 130, "cancelled"), (signal.SIGTERM, 143, "downloading")],
)
def test_signal_during_the_download_ends_exec_and_not_what_is_here(
    hub: HubProcess, tmp_path: Path, start: Start, number: int, code: int, state: str
) -> None:
    """Ctrl-C cancels; SIGTERM leaves the download to the daemon. The command never began."""
    hub.faults(rate_bytes_per_s=3_000_000)
    try:
        with DaemonProcess(tmp_path / "store", upstream=hub.url) as daemon:
            process = start(daemon, "touch", str(tmp_path / "began"))
            wait_until(lambda: hub.stats()["body_bytes"] > 0, "a byte", timeout_s=END_S)
            wait_until(lambda: is_downloading(daemon), "the download")
            process.send_signal(number)
            _, said = process.communicate(timeout=END_S)
            assert process.returncode == code, said
            [job] = ask_downloads(daemon)
            assert job["state"] == state
            assert "before the command began" in said
    finally:
        hub.faults()
    assert not (tmp_path / "began").exists()


def ask_downloads(daemon: DaemonProcess) -> list[dict[str, object]]:
    """Return a daemon's downloads."""
    import urllib.request

    token = (daemon.store / "admin-token").read_text().strip()
    request = urllib.request.Request(
        f"{daemon.local}/_p2pcache/v1/downloads", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        found: list[dict[str, object]] = json.load(answer)["downloads"]
    return found


def is_downloading(daemon: DaemonProcess) -> bool:
    """Return whether a download is under way."""
    return any(job["state"] == "downloading" for job in ask_downloads(daemon))


def test_weights_in_two_formats_are_brought_once_and_leased(
    hub: HubProcess, daemon: DaemonProcess
) -> None:
    """What a pull leaves out is not missing: exec finds the model resident, and asks once."""
    weights = random.Random(5).randbytes(50_000)
    head = json.dumps({"w": {"dtype": "U8", "shape": [49_000], "data_offsets": [0, 49_000]}})
    content = len(head).to_bytes(8, "little") + head.encode() + weights[:49_000]
    hub.commit("org/twice", {"model.safetensors": content, "pytorch_model.bin": weights})
    result = run_p2pcache("exec", "org/twice", *daemon.where, "--", "ls", "{}")
    assert (result.returncode, result.stdout) == (0, "model.safetensors\n"), result.stderr
    assert result.stderr.count("org/twice: done") == 1
    only = ["--include", "*.bin", "--json", "--", "ls", "{}"]
    result = run_p2pcache("exec", "org/twice", *daemon.where, *only)
    assert result.stdout.splitlines() == ["model.safetensors", "pytorch_model.bin"], result.stderr


def test_caller_without_the_token_runs_what_is_here_and_is_warned(
    daemon: DaemonProcess,
) -> None:
    """A job of another user: no lease, no download, but a model that is resident."""
    token = daemon.store / "admin-token"
    token.rename(daemon.store / "hidden")
    try:
        here = run_exec(daemon, "--", "ls", "{}")
        missing = run_p2pcache("exec", "org/none", *daemon.where, "--", "ls", "{}")
    finally:
        (daemon.store / "hidden").rename(token)
    assert (here.returncode, here.stdout) == (0, "config.json\nmodel.bin\n")
    assert here.stderr.startswith("warning: no lease")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "No admin token can be read" in missing.stderr


def test_option_of_the_command_before_the_dashes_is_explained(daemon: DaemonProcess) -> None:
    """The commonest slip."""
    result = run_exec(daemon, "sh", "-c", "true")
    assert result.returncode == 2
    assert "put -- before CMD" in result.stderr


def test_exec_outlives_a_restart_of_the_daemon(
    hub: HubProcess, tmp_path: Path, start: Start
) -> None:
    """Killed in the middle of the download and started again: the same exec goes on."""
    hub.faults(rate_bytes_per_s=5_000_000)
    hub.reset()
    try:
        with DaemonProcess(tmp_path / "store", upstream=hub.url) as daemon:
            # By the store alone: it comes back at another port.
            daemon_at = daemon.local
            process = start(daemon, "echo", "{}", by_store=True)
            wait_until(lambda: hub.stats()["body_bytes"] > len(CONTENT) / 3, "a third of it")
            daemon.kill()
            daemon.start()
            assert daemon.local != daemon_at
            hub.faults()
            printed, said = process.communicate(timeout=END_S)
            assert process.returncode == 0, said
            assert printed.strip() == daemon.client.residency(MODEL)["path"]
    finally:
        hub.faults()


def test_files_are_brought_into_memory_before_the_command(daemon: DaemonProcess) -> None:
    """By exec, unless it is told not to, and by pull when it is told to."""
    weights = Path(daemon.client.residency(MODEL)["path"]) / "model.bin"

    def drop() -> int:
        with weights.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return sum(length for _, length in find_absent(file.fileno(), 0, len(CONTENT)))

    if drop() < len(CONTENT):
        pytest.skip("this file system keeps its pages")
    assert "In memory" not in run_exec(daemon, "--no-warm", "--", "true").stderr
    said = "In memory: 9.0 MB of 9.0 MB (9.0 MB read"
    assert drop() >= len(CONTENT)
    assert said in run_exec(daemon, "--", "true").stderr
    assert drop() >= len(CONTENT)
    pulled = daemon.pull(MODEL, "--warm")
    assert said in pulled.stderr
    assert pulled.stdout.strip() == str(weights.parent)
    refused = daemon.pull(MODEL, "--warm", "--detach")
    assert (refused.returncode, "leave out --detach" in refused.stderr) == (2, True)
