"""
Owns the picture of runs in which a device is claimed: one bar for each attempt, drawn as SVG.

Knows nothing of how it was measured.
Invariants: equal runs give equal pictures; all rows have one time axis.
Source: SVG 1.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

_WIDTH, _LEFT, _RIGHT = 900, 240, 24
_ROW, _BAR, _TOP, _BOTTOM = 54, 20, 64, 62
_FONT = "font-family='system-ui, sans-serif'"
COLORS = {"download": "#4c8bc9", "idle": "#d1495b", "used": "#3a9d5d"}
LEGEND = (
    ("download", "downloading, no GPU claimed"),
    ("idle", "GPU claimed, and idle"),
    ("used", "GPU in use"),
)
# A bar narrower than this cannot be seen.
_WIDTH_MIN = 2.0


@dataclass(frozen=True, slots=True)
class Bar:
    """A stretch of time of one kind: a key of COLORS."""

    kind: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Row:
    """One run: its bars, and when something was killed."""

    title: str
    note: str
    bars: tuple[Bar, ...]
    killed_s: tuple[float, ...] = ()


def draw(title: str, rows: Sequence[Row], path: Path) -> None:
    """Write the picture."""
    end_s = max(bar.end_s for row in rows for bar in row.bars) * 1.02
    height = _TOP + _ROW * len(rows) + _BOTTOM
    lines = [
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{_WIDTH}' height='{height}' "
        f"viewBox='0 0 {_WIDTH} {height}' {_FONT} font-size='13'>",
        f"<rect width='{_WIDTH}' height='{height}' fill='#ffffff'/>",
        f"<text x='16' y='28' font-size='16' font-weight='600'>{escape(title)}</text>",
        *_draw_axis(end_s, height),
    ]
    for number, row in enumerate(rows):
        lines += _draw_row(row, _TOP + number * _ROW, end_s)
    lines += [*_draw_legend(height), "</svg>", ""]
    path.write_text("\n".join(lines), encoding="utf-8")


def _place(at_s: float, end_s: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * at_s / end_s


def _draw_axis(end_s: float, height: int) -> Iterator[str]:
    step_s = next(s for s in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if end_s / s <= 10)
    bottom = height - _BOTTOM + 6
    for number in range(int(end_s / step_s) + 1):
        x = _place(number * step_s, end_s)
        yield f"<line x1='{x:.1f}' y1='{_TOP - 10}' x2='{x:.1f}' y2='{bottom}' stroke='#e3e3e3'/>"
        yield (
            f"<text x='{x:.1f}' y='{bottom + 16}' text-anchor='middle' fill='#555555'>"
            f"{number * step_s:g} s</text>"
        )


def _draw_row(row: Row, top: int, end_s: float) -> Iterator[str]:
    yield f"<text x='16' y='{top + 14}' font-weight='600'>{escape(row.title)}</text>"
    yield f"<text x='16' y='{top + 31}' fill='#555555' font-size='12'>{escape(row.note)}</text>"
    for bar in row.bars:
        x = _place(bar.start_s, end_s)
        width = max(_WIDTH_MIN, _place(bar.end_s, end_s) - x)
        yield (
            f"<rect x='{x:.1f}' y='{top + 4}' width='{width:.1f}' height='{_BAR}' "
            f"fill='{COLORS[bar.kind]}'/>"
        )
    for at_s in row.killed_s:
        x = _place(at_s, end_s)
        yield f"<text x='{x:.1f}' y='{top + 20}' text-anchor='middle' font-size='18'>✕</text>"


def _draw_legend(height: int) -> Iterator[str]:
    x = _LEFT
    for kind, text in LEGEND:
        y = height - 22
        yield f"<rect x='{x}' y='{y}' width='14' height='12' fill='{COLORS[kind]}'/>"
        yield f"<text x='{x + 20}' y='{y + 11}'>{escape(text)}</text>"
        x += 40 + 7 * len(text)
    yield f"<text x='{x}' y='{height - 11}'>✕ killed</text>"
