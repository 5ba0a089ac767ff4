"""
Owns tests of the systemd example: the units are right, and their command lines run.

Knows nothing of a running systemd.
Invariants: what is run is what the files say, with the paths of the test.
Source: examples/systemd; systemd.service(5).
"""

from __future__ import annotations

import configparser
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.daemons import DaemonProcess
from tests.examples.conftest import EXAMPLES, MODEL
from tests.hub import HubProcess

FOLDER = EXAMPLES / "systemd"
UNITS = sorted(path.name for path in FOLDER.iterdir())


def read_unit(name: str) -> dict[str, str]:
    """Return the Service section of a unit."""
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(FOLDER / name)
    return dict(unit["Service"])


@pytest.mark.parametrize("name", UNITS)
def test_unit_is_right(name: str, tmp_path: Path) -> None:
    """As systemd reads it; the programs that it names are put in their place first."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze here")
    for unit in UNITS:
        text = (FOLDER / unit).read_text().replace("/opt/p2pcache/bin/p2pcache", "/bin/true")
        (tmp_path / unit).write_text(text)
    shown = name.replace("@.", "@Qwen-Qwen3.")
    if shown != name:
        (tmp_path / shown).symlink_to(tmp_path / name)
    result = subprocess.run(
        [analyze, "verify", "--man=no", "--recursive-errors=no", str(tmp_path / shown)],
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in result.stderr.splitlines() if str(tmp_path) in line]
    assert (result.returncode, ours) == (0, []), result.stderr


def test_daemons_unit_starts_and_stops_one(
    hub: HubProcess, environment: dict[str, str], tmp_path: Path
) -> None:
    """Its command line becomes ready, and ends with 0 at systemd's signal."""
    service = read_unit("p2pcache.service")
    store = tmp_path / "state"
    command = service["ExecStart"].replace("/opt/p2pcache/bin", str(tmp_path / "bin"))
    command = command.replace("${STATE_DIRECTORY}", str(store))
    process = subprocess.Popen(
        shlex.split(command),
        env={
            **environment,
            "P2PCACHE_LOCAL": "127.0.0.1:0",
            "P2PCACHE_LISTEN": "127.0.0.1:0",
            "P2PCACHE_DISCOVER": "none",
            "P2PCACHE_HF_UPSTREAM": hub.url,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("p2pcache ready")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()


def test_servers_unit_serves_the_model_that_it_is_named_for(
    daemon: DaemonProcess, environment: dict[str, str], tmp_path: Path
) -> None:
    """%I is the model, {} its path."""
    server = tmp_path / "bin" / "vllm"
    server.write_text('#!/bin/sh\necho "vllm $*"\n')
    server.chmod(0o755)
    service = read_unit("model-server@.service")
    command = service["ExecStart"].replace("/opt/p2pcache/bin", str(tmp_path / "bin"))
    result = subprocess.run(
        shlex.split(command.replace("%I", MODEL)),
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert result.stdout == f"vllm serve {daemon.client.residency(MODEL)['path']}\n", result.stderr
