"""
Owns the picture of a measurement: how far each peer was over time.

Knows nothing of how it was measured.
Invariants: one panel for each run, the same axes of bytes; the bound is drawn where there is one.
Source: matplotlib, of the dependency group `bench`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.outcome import Outcome

_MIB = 2**20
_PANEL_INCHES = (5.5, 3.4)
_COLUMNS_MAX = 2


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """
    Write a picture; the suffix of its name says in which format.

    Raises:
        SystemExit: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SystemExit("--plot needs matplotlib: pip install --group bench") from error
    # One file whatever this machine's settings are: no ids by chance in an SVG.
    mpl.rcParams["svg.hashsalt"] = "p2pcache"
    columns = min(_COLUMNS_MAX, len(outcomes))
    rows = -(-len(outcomes) // columns)
    figure = Figure(figsize=(_PANEL_INCHES[0] * columns, _PANEL_INCHES[1] * rows))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, outcome in zip(panels, outcomes, strict=False):
        _draw_panel(panel, outcome)
    for panel in panels[len(outcomes) :]:
        panel.set_visible(False)
    figure.tight_layout()
    figure.savefig(path)


def _draw_panel(panel: Any, outcome: Outcome) -> None:
    for peer in outcome.peers:
        times = [sample.at_s for sample in peer.samples]
        done = [sample.bytes_done / _MIB for sample in peer.samples]
        label = peer.name if peer.part == "healthy" else f"{peer.name} {peer.part}"
        panel.plot(times, done, linewidth=1.2, label=label)
    if outcome.hub_samples:
        times = [at_s for at_s, _ in outcome.hub_samples]
        sent = [count / _MIB for _, count in outcome.hub_samples]
        panel.plot(times, sent, color="black", linewidth=1, linestyle="--", label="hub sent")
    if outcome.bound_s is not None:
        panel.axvline(outcome.bound_s, color="gray", linestyle=":", label="bound")
    ratio = f", {outcome.time_ratio:.2f} × bound" if outcome.time_ratio is not None else ""
    panel.set_title(
        f"{outcome.title}\n{outcome.runner}: upstream {outcome.upstream_ratio:.2f} × model{ratio}",
        fontsize=9,
    )
    panel.set_xlabel("seconds")
    panel.set_ylabel("MiB")
    panel.set_xlim(left=0)
    panel.set_ylim(bottom=0)
    panel.legend(fontsize=6, loc="lower right")
