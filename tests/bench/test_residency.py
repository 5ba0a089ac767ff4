"""
Owns a small run of the benchmark of residency.

Knows nothing of the full size, which `make phases` takes.
Invariants: counts, no speeds.
Source: bench/residency.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import residency
from bench.residency import Timing, build, measure


@pytest.mark.timeout(60)
def test_small_index_is_built_and_asked_in_every_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every answer is the right one, or the run ends; each model is asked about a first time."""
    monkeypatch.setattr(residency, "LARGE_FILES", 5)
    monkeypatch.setattr(residency, "LARGE_BYTES", 40_000_000)
    build(tmp_path / "store", 4, 100)
    measured = measure(tmp_path / "store", 4, 12)
    assert {name: len(timing.times_s) for name, timing in measured.items()} == {
        "in process": 12,
        "in process, 300 files": 12,
        "in process, each once": 4,
        "beside a daemon": 12,
        "over HTTP": 12,
        "over HTTP, 300 files": 12,
    }
    assert ["cpu_p99_ms" in timing.to_json() for timing in measured.values()] == [True] * 4 + [
        False
    ] * 2


def test_quantile_is_of_the_ordered_times() -> None:
    """99 of 100 answers took no longer."""
    timing = Timing([n / 1000 for n in range(100, 0, -1)])
    assert timing.quantile_ms(0.5) == pytest.approx(51)
    assert timing.to_json() == {"asks": 100, "p50_ms": 51, "p99_ms": 100, "worst_ms": 100}
