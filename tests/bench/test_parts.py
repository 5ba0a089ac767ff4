"""
Owns tests of the small parts of bench/swarm: its model, its reading of metrics, its shaping words,
its choice of scenarios, and the plot where there is a library for it.

Knows nothing of networks.
Invariants: nothing is started here but what ends by itself.
Source: docs/how-to/measure-a-swarm.md.
"""

from __future__ import annotations

import importlib.util
import os
import struct
from pathlib import Path

import pytest

from bench.daemonstats import CpuTicks, find_metric, read_cpu_s, read_cpu_ticks, share_cpu
from bench.model import FILE_COUNT, find_wrong_files, make_model, plan_header
from bench.netns import BURST_SLOW_BYTES, LoopbackNetwork, open_network, tbf_words
from bench.outcome import Outcome, PeerOutcome, Sample
from bench.swarm import choose
from tests.tensorfiles import read_safetensors

METRICS = """
# TYPE p2pcache_bytes_total counter
p2pcache_bytes_total{source="peer",direction="in"} 30
p2pcache_bytes_total{source="peer",direction="out"} 4
p2pcache_bytes_total{source="upstream",direction="in"} 500
p2pcache_exchanges_total 12
"""
MIB = 1 << 20


def test_model_has_the_size_asked_for_and_real_headers(tmp_path: Path) -> None:
    """Four safetensors files, 128 MiB of layers and a rest, every byte of them in a tensor."""
    model = make_model(tmp_path, 2 * MIB + 3)
    files = sorted(model.folder.iterdir())
    assert len(files) == FILE_COUNT
    assert sum(path.stat().st_size for path in files) == 2 * MIB + 3
    for path in files:
        raw = path.read_bytes()
        tensors = read_safetensors(raw)
        (head,) = struct.unpack_from("<Q", raw)
        assert sum(len(t[2]) for t in tensors.values()) == len(raw) - 8 - head
    assert find_wrong_files(model, model.folder) == []


def test_header_of_a_large_file_has_whole_layers() -> None:
    """128 MiB hold five layers of nine tensors, and a rest."""
    head = plan_header(128 * MIB, 0)
    assert len(head) == 64 * 1024
    assert head.count(b'"BF16"') == 5 * 9


def test_file_that_differs_or_is_missing_is_found(tmp_path: Path) -> None:
    """One flipped byte, and one file less."""
    model = make_model(tmp_path, MIB)
    first, second, *_ = sorted(model.folder.iterdir())
    raw = bytearray(first.read_bytes())
    raw[-1] ^= 1
    first.write_bytes(raw)
    second.unlink()
    assert find_wrong_files(model, model.folder) == [first.name, second.name]


@pytest.mark.parametrize(
    ("labels", "value"),
    [
        ({"source": "peer", "direction": "in"}, 30),
        ({"direction": "in"}, 530),
        ({"source": "disk"}, None),
    ],
)
def test_metric_is_summed_over_other_labels(labels: dict[str, str], value: int | None) -> None:
    """A metric that is not there is None, not 0."""
    assert find_metric(METRICS, "p2pcache_bytes_total", **labels) == value
    assert find_metric(METRICS, "p2pcache_exchanges_total") == 12
    assert find_metric(METRICS, "p2pcache_missing_total") is None


def test_processor_shares_add_up() -> None:
    """What is neither idle nor the network's nor ours is others'."""
    hertz = os.sysconf("SC_CLK_TCK")
    shares = share_cpu(CpuTicks(0, 0, 0), CpuTicks(hertz, hertz, 10 * hertz), 5.0)
    assert shares == {"idle": 0.1, "network": 0.1, "measured": 0.5, "others": 0.3}
    assert read_cpu_ticks().total > 0
    assert (read_cpu_s(os.getpid()) or 0.0) > 0
    assert read_cpu_s(2**22 + 1) is None


def test_slow_link_has_a_small_bucket() -> None:
    """At 1 Mb/s a large bucket would be a second of the link for nothing."""
    words = tbf_words(1.0)
    assert words[words.index("burst") + 1] == f"{BURST_SLOW_BYTES}b"
    assert words[words.index("rate") + 1] == "1000000bit"
    assert tbf_words(1000.0)[4] == "131072b"


def test_loopback_network_runs_work_and_has_free_ports() -> None:
    """Without root the machines are names for this one."""
    with open_network(["a", "b"], is_shaped=False) as network:
        assert isinstance(network, LoopbackNetwork)
        assert network.machines["a"].submit(max, 1, 2).result() == 2
        assert network.find_free_port("b") > 0
        assert network.machines["a"].count_sent_bytes() is None


def test_hostile_scenario_brings_the_clean_one_with_it() -> None:
    """Its time is judged against a run in which nobody misbehaves."""
    assert [scenario.name for scenario in choose(["hostile"])] == ["cold", "hostile"]
    assert [scenario.name for scenario in choose(["kill"])] == ["kill"]
    assert len(choose([])) == 7


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")
def test_plot_of_a_run_is_written(tmp_path: Path) -> None:
    """One panel for each run."""
    from bench.progressplot import draw

    peer = PeerOutcome("p1", samples=[Sample(0.0, 0, 0), Sample(1.0, MIB, 0)])
    outcome = Outcome("s", "s", "p2pcache", MIB, [peer], bound_s=1.0, hub_samples=[(1.0, MIB)])
    draw([outcome, outcome, outcome], tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text()
