"""
Owns the picture of a run: how each member's share of the blob grows.

Knows nothing of the network.
Invariants: plain SVG, or plain text; nothing has to be installed to draw or to see it.
Source: issue 4, item 2.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from tests.sim.swarm import WARM_UP_S

if TYPE_CHECKING:
    from tests.sim.member import Member
    from tests.sim.swarm import Swarm

WIDTH, HEIGHT, MARGIN = 800, 400, 50
# As many lines as can be told apart; of a larger swarm, so many are drawn.
LINES_MAX = 48
TEXT_COLUMNS = 60
_SHADES = " .:-=+*#%@"


def _points(member: Member, chunks: int, end_s: float) -> list[tuple[float, float]]:
    """Return (share of the time, share of the blob), as steps."""
    points = [(0.0, 0.0)]
    for when_s, held in member.tally.progress:
        x = (when_s - WARM_UP_S) / end_s
        points += [(x, points[-1][1]), (x, held / chunks)]
    points.append((1.0, points[-1][1]))
    return points


def _end_s(swarm: Swarm) -> float:
    last = [m.tally.progress[-1][0] for m in swarm.members.values() if m.tally.progress]
    return max([1e-9, *(when_s - WARM_UP_S for when_s in last)])


def draw_svg(swarm: Swarm, faults: list[str]) -> str:
    """Return an SVG document: one line for each member, and the lower bound."""
    end_s, chunks = _end_s(swarm), swarm.setting.chunks
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]

    def place(x: float, y: float) -> str:
        across, up = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN
        return f"{MARGIN + x * across:.1f},{HEIGHT - MARGIN - y * up:.1f}"

    members = [m for m in swarm.members.values() if m.tally.progress][:LINES_MAX]
    for place_in_row, member in enumerate(members):
        hue = 360 * place_in_row // max(1, len(members))
        line = " ".join(place(x, y) for x, y in _points(member, chunks, end_s))
        parts.append(
            f'<polyline fill="none" stroke="hsl({hue},70%,45%)" points="{line}">'
            f"<title>member {member.number}</title></polyline>"
        )
    bound = min(1.0, swarm.setting.bound_s / end_s)
    parts.append(
        f'<polyline stroke="black" stroke-dasharray="4" points="{place(bound, 0)} '
        f'{place(bound, 1)}"><title>lower bound</title></polyline>'
    )
    parts.append(f'<polyline fill="none" stroke="black" points="{place(0, 1)} {place(0, 0)} '
                 f'{place(1, 0)}"/>')  # fmt: skip
    texts = [f"{swarm.setting.peers} peers, {chunks} chunks; 0 to {end_s:.1f} s; "
             f"bound {swarm.setting.bound_s:.1f} s (dashed)"]  # fmt: skip
    for row, text in enumerate([*texts, *faults[:3]]):
        parts.append(f'<text x="{MARGIN}" y="{14 + 12 * row}">{escape(text)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def draw_text(swarm: Swarm) -> str:
    """Return a picture of characters: a row for each member, time from left to right."""
    end_s, chunks = _end_s(swarm), swarm.setting.chunks
    rows = [f"0 s {'-' * (TEXT_COLUMNS - 8)} {end_s:.1f} s"]
    for member in swarm.members.values():
        times = [when_s - WARM_UP_S for when_s, _ in member.tally.progress]
        row = ""
        for column in range(TEXT_COLUMNS):
            passed = bisect_right(times, end_s * (column + 1) / TEXT_COLUMNS)
            held = member.tally.progress[passed - 1][1] if passed else 0
            row += _SHADES[min(len(_SHADES) - 1, held * len(_SHADES) // chunks)]
        rows.append(f"{row}| {member.number}")
    return "\n".join(rows)
