"""
Owns reading what a daemon counts: its metrics, and the processor time of processes.

Knows nothing of what the counts mean.
Invariants: a metric that a daemon does not have is None.
Source: docs/reference/metrics.md; proc(5).
"""

from __future__ import annotations

import os
import re
import urllib.request
from dataclasses import dataclass
from pathlib import Path

METRICS_TIMEOUT_S = 5.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def read_metrics(local: str) -> str:
    """
    Return the metrics of the daemon at a local endpoint.

    Raises:
        OSError: It does not answer.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{local}/metrics", timeout=METRICS_TIMEOUT_S) as answer:
        text: str = answer.read().decode()
    return text


def find_metric(text: str, name: str, **labels: str) -> int | None:
    """Return the sum of a metric's values over all its labels but the given ones."""
    total = None
    for line in text.splitlines():
        match = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
        if match is None or match[1] != name:
            continue
        shown = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
        if all(shown.get(key) == value for key, value in labels.items()):
            total = (total or 0) + round(float(match[3]))
    return total


def read_cpu_s(pid: int) -> float | None:
    """Return the processor time that a process has used; None if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


@dataclass(frozen=True, slots=True)
class CpuTicks:
    """What this machine's processors have done since its start."""

    idle: int
    softirq: int
    total: int


def read_cpu_ticks() -> CpuTicks:
    """Return what the processors have done; of the network's work, most is `softirq`."""
    words = Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]
    ticks = [int(word) for word in words]
    return CpuTicks(ticks[3] + ticks[4], ticks[6], sum(ticks))


def share_cpu(before: CpuTicks, after: CpuTicks, measured_s: float) -> dict[str, float]:
    """Return the shares of a time that were idle, the network's, what was measured, and others'."""
    total = max(1, after.total - before.total)
    idle, softirq = after.idle - before.idle, after.softirq - before.softirq
    measured = measured_s * _TICKS_PER_S
    shares = {"idle": idle, "network": softirq, "measured": measured}
    shares["others"] = max(0.0, total - sum(shares.values()))
    return {name: round(ticks / total, 3) for name, ticks in shares.items()}
