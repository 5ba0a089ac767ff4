"""
Owns the tests of up: how settings reach the daemon, the ready line, failures.

Knows nothing of the real daemon; a module stands in for it.
Invariants: nothing listens; the root logger is left alone.
Source: design.md §8 (up).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner, Result

from p2pcache.cli.group import p2pcache
from p2pcache.config import SETTINGS, DaemonConfig
from p2pcache.errors import P2PCacheError, StoreLockedError


@dataclass(frozen=True, slots=True)
class StandInReady:
    """What the daemon announces."""

    local: str = "http://127.0.0.1:7277"
    peer: str = "0.0.0.0:7278"
    name: str = "lab-1"
    store: str = "/data/p2pcache"


class StandInDaemon(ModuleType):
    """p2pcache.daemon.app, for a test."""

    def __init__(self) -> None:
        super().__init__("p2pcache.daemon.app")
        self.Ready = StandInReady
        self.configs: list[DaemonConfig] = []
        self.failure: P2PCacheError | None = None

    async def run_daemon(
        self, config: DaemonConfig, announce: Callable[[StandInReady], None]
    ) -> None:
        """Record the settings; fail, or say that all is ready and end."""
        self.configs.append(config)
        if self.failure is not None:
            raise self.failure
        announce(StandInReady())


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandInDaemon:
    """Put the stand-in where the command finds it."""
    module = StandInDaemon()
    monkeypatch.setitem(sys.modules, "p2pcache.daemon.app", module)
    monkeypatch.setattr("p2pcache.cli.logs.start_logging", lambda log_format: None)
    for setting in SETTINGS:
        monkeypatch.delenv(setting.environment, raising=False)
    return module


def run_up(*arguments: str) -> Result:
    """Run the command."""
    return CliRunner().invoke(p2pcache, ["up", *arguments], prog_name="p2pcache")


def test_up_when_ready_prints_one_line(stand_in: StandInDaemon) -> None:
    """The line that scripts wait for, to the letter."""
    result = run_up()
    assert result.exit_code == 0
    assert result.stdout == (
        "p2pcache ready local=http://127.0.0.1:7277 peer=0.0.0.0:7278 name=lab-1\n"
    )


def test_up_with_json_prints_one_object(stand_in: StandInDaemon) -> None:
    """The same, for programs."""
    assert json.loads(run_up("--json").stdout) == {
        "event": "ready",
        "local": "http://127.0.0.1:7277",
        "peer": "0.0.0.0:7278",
        "name": "lab-1",
        "store": "/data/p2pcache",
    }


def test_up_with_all_flags_hands_them_on(stand_in: StandInDaemon, tmp_path: Path) -> None:
    """Every flag of the table arrives in its field."""
    result = run_up(
        *("--name", "lab-9", "--store", str(tmp_path), "--local", "127.0.0.1:0"),
        *("--listen", "[::]:0", "--peer", "10.0.0.7:7278", "--peer", "lab-2:7278"),
        *("--discover", "none", "--hf-upstream", "http://127.0.0.1:9/hub/", "--trust-peers"),
        *("--quota", "500GB", "--free-floor", "1GiB", "--log-format", "json"),
        *("--upstream-limit", "200Mbit", "--download-limit", "1GB/s"),
        *("--upload-limit", "25MiB", "--peer-limit", "10MB/s"),
    )
    assert result.exit_code == 0, result.output
    assert stand_in.configs == [
        DaemonConfig(
            name="lab-9",
            store=tmp_path,
            local=("127.0.0.1", 0),
            listen=("::", 0),
            peers=("10.0.0.7:7278", "lab-2:7278"),
            discover=(),
            hf_upstream="http://127.0.0.1:9/hub",
            trust_peers=True,
            quota_bytes=500_000_000_000,
            free_floor_bytes=1024**3,
            upstream_limit_bps=25_000_000,
            download_limit_bps=1_000_000_000,
            upload_limit_bps=25 * 1024**2,
            peer_limit_bps=10_000_000,
            log_format="json",
        )
    ]


def test_up_flag_wins_over_environment(
    stand_in: StandInDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not flagged comes from the environment."""
    monkeypatch.setenv("P2PCACHE_NAME", "from-environment")
    monkeypatch.setenv("P2PCACHE_LISTEN", "127.0.0.1:9999")
    run_up("--name", "from-flag")
    assert stand_in.configs[0].name == "from-flag"
    assert stand_in.configs[0].listen == ("127.0.0.1", 9999)


def test_up_with_bad_setting_exits_3_before_daemon(stand_in: StandInDaemon) -> None:
    """One sentence that names the flag; nothing was started."""
    result = run_up("--local", "0.0.0.0:7277", "--json")
    assert result.exit_code == 3
    assert result.stderr.startswith("error: --local: '0.0.0.0' is not a loopback address")
    assert json.loads(result.stdout)["error"] == "Config"
    assert stand_in.configs == []


def test_up_on_locked_store_exits_13(stand_in: StandInDaemon) -> None:
    """What the daemon raises while it starts keeps its code."""
    stand_in.failure = StoreLockedError("Another daemon runs on the store; stop it.")
    result = run_up()
    assert result.exit_code == 13
    assert result.stderr == "error: Another daemon runs on the store; stop it.\n"


@pytest.mark.parametrize("flag", ["--cluster-key-file"])
def test_up_with_flag_that_is_not_built_exits_2(flag: str) -> None:
    """What the design names for later is not offered yet."""
    assert run_up(flag, "1").exit_code == 2


def test_up_help_has_every_setting() -> None:
    """Flags, variables and defaults come from one table."""
    text = " ".join(CliRunner().invoke(p2pcache, ["up", "--help"]).output.split())
    for setting in SETTINGS:
        assert setting.flag in text
        assert setting.environment in text
        assert setting.default_text in text
