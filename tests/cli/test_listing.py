"""
Owns the snapshot tests of the commands that only ask: ls, status, peers, env.

Knows nothing of real daemons.
Invariants: text is compared as a whole; JSON is what the daemon said.
Source: design.md §8.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import RunCommand
from tests.cli.fakedaemon import COMMIT, FakeDaemon, make_error

MODELS = {
    "models": [
        {
            "model": "org/name",
            "commit": COMMIT,
            "revisions": ["main", "v1"],
            "state": "resident",
            "bytes_total": 90_900_000,
            "bytes_local": 90_900_000,
            "pinned": True,
            "public": True,
            "path": "/store/hub/x",
        },
        {
            "model": "datasets/org/\x1b[31mother",
            "commit": COMMIT[::-1],
            "revisions": [],
            "state": "partial",
            "bytes_total": 16_000_000_000,
            "bytes_local": 3_999_999_999,
            "pinned": False,
            "public": False,
            "path": None,
        },
    ]
}
PEERS: dict[str, Any] = {
    "peers": [
        {
            "name": "lab-2",
            "id": "0" * 32,
            "address": "10.0.0.7:7278",
            "version": "0.1.0",
            "via": "mdns",
            "state": "up",
            "reason": None,
            "banned_until": None,
            "rate_bps": 117_000_000.0,
            "received_bytes": 1_234_567_890,
            "requests_inflight": 3,
            "last_seen_s": 0.5,
            "faults": [],
        },
        {
            "name": "lab-4",
            "id": "3" * 32,
            "address": "10.0.0.6:7278",
            "version": "0.1.0",
            "via": "introduced",
            "state": "silent",
            "reason": None,
            "banned_until": None,
            "rate_bps": 0,
            "received_bytes": 0,
            "requests_inflight": 0,
            "last_seen_s": 5.1,
            "faults": [{"reason": "protocol", "detail": "too\nshort", "at": 1_767_225_600.0}],
        },
        {
            "name": "lab-3",
            "id": "1" * 32,
            "address": "10.0.0.8:7278",
            "version": "0.1.0",
            "via": "static",
            "state": "banned",
            "reason": "chunk 7 of sha256:ab… had other bytes",
            "banned_until": 1_767_229_200.0,
            "rate_bps": 0,
            "received_bytes": 0,
            "requests_inflight": 0,
            "last_seen_s": 60,
            "faults": [
                {
                    "reason": "wrong bytes",
                    "detail": "chunk 7 of sha256:ab… had other bytes",
                    "at": 1_767_225_600.0,
                }
            ],
        },
    ],
    "unreachable": [{"address": "10.0.0.9:7278", "via": "static"}],
}
STATUS = {
    "name": "lab-1",
    "id": "2" * 32,
    "version": "0.1.0",
    "store": "/data/p2pcache",
    "local": "http://127.0.0.1:7277",
    "peer": "0.0.0.0:7278",
    "upstream": "https://huggingface.co",
    "uptime_s": 93_784.2,
    "peers": 2,
    "downloads": 1,
    "faults": [],
}
FAULT = {
    "source": "peer",
    "name": "lab-3",
    "reason": "PeerUnreachable",
    "detail": "no answer\nwithin 4 s",
    "at": 1_767_225_600.0,
}
RESIDENCY = {
    "model": "org/name",
    "commit": COMMIT,
    "state": "partial",
    "pinned": False,
    "bytes_total": 2_000_000_000,
    "bytes_local": 500_000_000,
    "bytes_missing": 1_500_000_000,
    "missing_from_peers": 1_000_000_000,
    "missing_from_upstream": 500_000_000,
    "eta_s": {"p50": 12.4, "p95": 75},
    "disk_free": 1_000_000_000,
    "fits_disk": False,
}


def test_ls_of_two_models_prints_table(run: RunCommand, daemon: FakeDaemon) -> None:
    """Columns line up, a share is never rounded up, control characters do not pass."""
    daemon.say("GET", "/models", MODELS)
    result = run("ls")
    assert result.exit_code == 0
    assert result.stdout == (
        "MODEL                    REVISIONS  COMMIT        STATE     SIZE     HERE   PINNED\n"
        "org/name                 main, v1   0123456789ab  resident  90.9 MB  100 %  yes\n"
        "datasets/org/?[31mother  -          76543210fedc  partial   16.0 GB  24 %   no\n"
    )


def test_ls_of_empty_store_says_what_to_do(run: RunCommand, daemon: FakeDaemon) -> None:
    """A script sees no line; a person sees the next step."""
    daemon.say("GET", "/models", {"models": []})
    result = run("ls")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "p2pcache pull org/name" in result.stderr


def test_peers_of_all_kinds_prints_table_and_next_steps(
    run: RunCommand, daemon: FakeDaemon
) -> None:
    """Up, silent, banned with the reason and the end, named but never met; what to do for each."""
    daemon.say("GET", "/peers", PEERS)
    assert run("peers").stdout == (
        "NAME   ADDRESS        FOUND BY    STATE   VERSION  RATE        RECEIVED  ASKED  FAULTS\n"
        "lab-2  10.0.0.7:7278  mdns        up      0.1.0    117.0 MB/s  1.2 GB    3      0\n"
        "lab-4  10.0.0.6:7278  introduced  silent  0.1.0    -           0 B       0      1\n"
        "lab-3  10.0.0.8:7278  static      banned  0.1.0    -           0 B       0      1\n"
        "-      10.0.0.9:7278  static      silent  -        -           -         -      -\n"
        "\n"
        "lab-4, 2026-01-01 00:00:00Z, protocol: too?short\n"
        "10.0.0.6:7278 does not answer: see that p2pcache runs there, and that no firewall is in "
        "between.\n"
        "lab-3 is banned until 2026-01-01 01:00:00Z: chunk 7 of sha256:ab… had other bytes\n"
        "  Run p2pcache check on lab-3, and look at its disk and memory if that finds something; "
        "p2pcache up, started again here, forgets the ban.\n"
        "lab-3, 2026-01-01 00:00:00Z, wrong bytes: chunk 7 of sha256:ab… had other bytes\n"
        "10.0.0.9:7278 does not answer: see that p2pcache runs there, and that no firewall is in "
        "between.\n"
    )


def test_peers_that_are_well_prints_the_table_alone(run: RunCommand, daemon: FakeDaemon) -> None:
    """Nothing to explain."""
    daemon.say("GET", "/peers", {"peers": PEERS["peers"][:1], "unreachable": []})
    assert len(run("peers").stdout.splitlines()) == 2


def test_peers_of_lone_daemon_says_what_to_do(run: RunCommand, daemon: FakeDaemon) -> None:
    """No table without rows."""
    daemon.say("GET", "/peers", {"peers": [], "unreachable": []})
    result = run("peers")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "p2pcache up --peer HOST:PORT" in result.stderr


def test_status_while_the_hub_wants_a_pause_says_so(run: RunCommand, daemon: FakeDaemon) -> None:
    """Why nothing comes, and for how long."""
    daemon.say("GET", "/status", STATUS | {"upstream_paused_s": 83.4})
    assert (
        "upstream   https://huggingface.co (asked us to slow down; not asked for 1m23s)\n"
        in run("status").stdout
    )


def test_status_of_daemon_prints_fields(run: RunCommand, daemon: FakeDaemon) -> None:
    """One field per line."""
    daemon.say("GET", "/status", STATUS)
    assert run("status").stdout == (
        "name       lab-1\n"
        "version    0.1.0\n"
        "local      http://127.0.0.1:7277\n"
        "peer       0.0.0.0:7278\n"
        "store      /data/p2pcache\n"
        "upstream   https://huggingface.co\n"
        "up for     1d02h\n"
        "peers      2\n"
        "downloads  1\n"
    )


def test_status_with_faults_lists_them(run: RunCommand, daemon: FakeDaemon) -> None:
    """Which source failed, when and how; one line each whatever the detail holds."""
    daemon.say("GET", "/status", STATUS | {"faults": [FAULT], "downloads": {"done": 3}})
    assert run("status").stdout.splitlines()[-5:] == [
        "downloads  3 done",
        "",
        "Recent faults of sources:",
        "AT                    SOURCE  NAME   REASON           DETAIL",
        "2026-01-01 00:00:00Z  peer    lab-3  PeerUnreachable  no answer?within 4 s",
    ]


def test_status_of_partial_model_tells_what_is_missing(run: RunCommand, daemon: FakeDaemon) -> None:
    """How much, from where, how long, and that the disk is too small."""
    daemon.say("GET", "/residency/org%2Fname%40main", RESIDENCY)
    result = run("status", "org/name")
    assert result.stdout == (
        "model          org/name\n"
        f"commit         {COMMIT}\n"
        "state          partial\n"
        "pinned         no\n"
        "size           2.0 GB\n"
        "here           500.0 MB\n"
        "missing        1.5 GB\n"
        "from peers     1.0 GB\n"
        "from upstream  500.0 MB\n"
        "time left      12s to 1m15s\n"
        "disk free      1.0 GB\n"
    )
    assert "does not fit" in result.stderr


def test_status_of_absent_model_leaves_out_what_is_unknown(
    run: RunCommand, daemon: FakeDaemon
) -> None:
    """A daemon that does not know the size says null; there is nothing to estimate."""
    absent = {"model": "org/name", "commit": None, "state": "absent", "pinned": False}
    sizes = {"bytes_total": None, "bytes_local": 0, "bytes_missing": None, "fits_disk": None}
    daemon.say("GET", "/residency/org%2Fname%40main", absent | sizes)
    assert run("status", "org/name").stdout == (
        "model    org/name\n"
        "commit   -\n"
        "state    absent\n"
        "pinned   no\n"
        "size     -\n"
        "here     0 B\n"
        "missing  -\n"
    )


def test_status_of_resident_model_shows_path(run: RunCommand, daemon: FakeDaemon) -> None:
    """What a loader opens; nothing about what is missing."""
    here = {"state": "resident", "bytes_missing": 0, "path": "/store/hub/x", "verified_at": 5.0}
    daemon.say("GET", "/residency/org%2Fname%40v1", RESIDENCY | here)
    lines = run("status", "org/name@v1").stdout.splitlines()
    assert lines[-3:] == [
        "missing   0 B",
        "verified  1970-01-01 00:00:05Z",
        "path      /store/hub/x",
    ]


def test_status_shows_weights_and_who_has_them(run: RunCommand, daemon: FakeDaemon) -> None:
    """What the heads say, what each rank takes, what a pull would evict, and what peers have."""
    weights = {
        "format": "safetensors",
        "files": 2,
        "bytes": 16_000_000_000,
        "params": {"BF16": 8_000_000_000},
        "tensors": 291,
        "largest_tensor_bytes": 1_000_000_000,
        "per_rank_bytes": {"tp=2": 8_000_000_000},
    }
    more = {
        "weights": weights,
        "memory_floor_bytes": 21_347_483_648,
        "memory_floor_per_rank_bytes": {"tp=2": 11_747_483_648},
        "peers": [{"name": "lab-3", "bytes_local": 500, "eta_s": {"p50": None, "p95": None}}],
        "would_evict": [{"what": "snapshot", "name": "org/old@1", "bytes": 2_000_000_000}],
        "fits_disk": True,
    }
    daemon.say("GET", "/residency/org%2Fname%40main?tp=2&scope=cluster", RESIDENCY | more)
    result = run("status", "org/name", "--cluster", "--tp", "2")
    assert result.stdout.splitlines()[-9:] == [
        "weights         16.0 GB in 291 tensors, 2 safetensors files",
        "parameters      8,000,000,000 BF16",
        "largest tensor  1.0 GB",
        "memory floor    21.3 GB",
        "each of tp=2    8.0 GB, memory floor 11.7 GB",
        "",
        "Peers:",
        "NAME   HAS    TIME LEFT",
        "lab-3  500 B  not known; no rate was measured yet",
    ]
    assert "A pull would evict 2.0 GB for it: org/old@1." in result.stderr
    daemon.say("GET", "/residency/org%2Fname%40main", RESIDENCY | {"weights": None})
    assert "--ask-hub reads their heads" in run("status", "org/name").stdout


def test_status_options_about_a_model_need_one(run: RunCommand, daemon: FakeDaemon) -> None:
    """Else they would be passed over in silence."""
    result = run("status", "--cluster")
    assert result.exit_code == 2
    assert "name it" in result.stderr


def test_status_of_corrupt_model_says_how_it_is_mended(run: RunCommand, daemon: FakeDaemon) -> None:
    """The state, and the next step."""
    daemon.say("GET", "/residency/org%2Fname%40main", RESIDENCY | {"state": "corrupt"})
    result = run("status", "org/name")
    assert "state          corrupt" in result.stdout
    assert "p2pcache check --repair" in result.stderr


@pytest.mark.parametrize(
    ("path", "arguments", "answer"),
    [
        ("/models", ["ls"], MODELS),
        ("/peers", ["peers"], PEERS),
        ("/status", ["status"], STATUS),
        ("/residency/org%2Fname%40main", ["status", "org/name"], RESIDENCY),
    ],
)
def test_command_with_json_prints_what_daemon_said(
    run: RunCommand, daemon: FakeDaemon, path: str, arguments: list[str], answer: object
) -> None:
    """One line of JSON, nothing left out."""
    daemon.say("GET", path, answer)
    result = run(*arguments, "--json")
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1
    assert json.loads(result.stdout) == answer


@pytest.mark.parametrize("arguments", [["ls"], ["peers"], ["status"], ["status", "a/b"]])
@pytest.mark.parametrize("answer", [{}, {"models": 3, "peers": "x", "faults": [1]}])
def test_command_with_odd_answer_does_not_break(
    run: RunCommand, daemon: FakeDaemon, arguments: list[str], answer: object
) -> None:
    """Fields that a daemon of another release leaves out are shown as '-'."""
    for path in ("/models", "/peers", "/status", "/residency/a%2Fb%40main"):
        daemon.say("GET", path, answer)
    assert run(*arguments).exit_code == 0


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [
        (400, "InvalidName", 2),
        (403, "Forbidden", 2),
        (404, "RevisionNotFound", 10),
        (401, "UpstreamAuth", 12),
        (401, "Unheard", 2),
        (507, "IndexCorrupt", 13),
        (503, "Daemon", 14),
        (404, "Unheard", 10),
        (500, "Unheard", 1),
    ],
)
def test_command_that_fails_exits_by_cause(
    run: RunCommand, daemon: FakeDaemon, status: int, code: str, exit_code: int
) -> None:
    """The sentence on standard error, the object on standard output with --json."""
    daemon.say("GET", "/status", make_error(code, "No;\x1b[2J see."), status=status)
    result = run("status")
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert result.stderr == "error: No;?[2J see.\n"
    result = run("status", "--json")
    assert result.exit_code == exit_code
    assert set(json.loads(result.stdout)) == {"error", "message"}


def test_env_prints_what_a_shell_can_evaluate(
    run: RunCommand, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The endpoint, and proxies kept out of the way without losing what was there."""
    monkeypatch.setenv("NO_PROXY", "10.0.0.0/8, $(touch x)")
    result = run("env")
    assert result.stdout.splitlines() == [
        f"export HF_ENDPOINT={daemon.url}",
        f"export MODELSCOPE_ENDPOINT={daemon.url}",
        "export NO_PROXY='10.0.0.0/8,$(touch x),127.0.0.1,localhost'",
        "export no_proxy='10.0.0.0/8,$(touch x),127.0.0.1,localhost'",
    ]
    assert daemon.requests == []
    assert json.loads(run("env", "--json").stdout)["HF_ENDPOINT"] == daemon.url


def test_env_offline_survives_a_shell(run: RunCommand, tmp_path: Path) -> None:
    """A store with odd characters comes out of `eval` as it went in."""
    store = tmp_path / "it's a $HOME `store`"
    lines = run("env", "--offline", "--store", str(store)).stdout
    shell = subprocess.run(
        ["sh", "-c", f'{lines}\nprintf "%s\\n" "$HF_HUB_CACHE" "$HF_HUB_OFFLINE"'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shell.stdout.splitlines() == [str(store / "hub"), "1"]


def test_env_offline_without_named_store_asks_daemon(
    run: RunCommand, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The daemon's own store; the default one where no daemon answers."""
    daemon.say("GET", "/status", STATUS)
    arguments = ("env", "--offline", "--json", "--local", f"127.0.0.1:{daemon.port}")
    monkeypatch.setattr("p2pcache.cli.environment.find_named_store", lambda store: None)
    assert json.loads(run(*arguments).stdout) == {
        "HF_HUB_CACHE": "/data/p2pcache/hub",
        "HF_HUB_OFFLINE": "1",
        "MODELSCOPE_CACHE": "/data/p2pcache/modelscope",
    }
    daemon.stop()
    default = str(tmp_path / "cache" / "p2pcache" / "hub")
    assert json.loads(run(*arguments).stdout)["HF_HUB_CACHE"] == default
