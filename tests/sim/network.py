"""
Owns a network as fluid: links with a rate, flows that share them max-min fairly.

Knows nothing of packets: a flow is bytes that move at the rate that its links leave it.
Invariants: no link carries more than its rate; a flow that is held moves nothing; after every
change the rates are max-min fair, to within LEVEL_SHARE (and the links looked at at once).
Source: Bertsekas and Gallager, "Data Networks", §6.5.2; Charny's iteration of link levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.sim.world import World

# A level that changes by less is not passed on to the neighbouring links.
LEVEL_SHARE = 0.01
# Links that one change may touch: all of a small swarm; in a large one the rest differs by little,
# and is put right by the next change.
LINKS_TOUCHED_MAX = 64
INFINITE_BPS = float("inf")


class Link:
    """One direction of a line, in bytes per second."""

    __slots__ = ("carried_bytes", "flows", "level_bps", "name", "rate_bps")

    def __init__(self, name: str, rate_bps: float) -> None:
        self.name = name
        self.rate_bps = rate_bps
        # Insertion order is the order of everything: no set.
        self.flows: dict[Flow, None] = {}
        # What a flow gets here that is not held back elsewhere.
        self.level_bps = INFINITE_BPS
        self.carried_bytes = 0.0

    def find_level_bps(self) -> float:
        """Share the rate: who wants less than an equal share leaves the rest to the others."""
        wants = []
        for flow in self.flows:
            if flow.is_held:
                continue
            want = INFINITE_BPS
            for link in flow.links:
                if link is not self and link.level_bps < want:
                    want = link.level_bps
            wants.append(want)
        wants.sort()
        left_bps, count = self.rate_bps, len(wants)
        for want in wants:
            if want * count > left_bps:
                return left_bps / count
            left_bps -= want
            count -= 1
        return INFINITE_BPS


class Flow:
    """Bytes on their way over some links. `on_mark` is called when each mark is passed."""

    __slots__ = (
        "_counted_s", "_marks", "_next", "_received", "_version",
        "is_held", "is_over", "links", "on_mark", "progress_s", "rate_bps",
    )  # fmt: skip

    def __init__(
        self,
        links: Sequence[Link],
        marks: Sequence[float],
        on_mark: Callable[[int], None],
        *,
        now_s: float,
    ) -> None:
        """
        Args:
            links: What it goes over.
            marks: Bytes after which on_mark is called, growing; the last one ends the flow.
            on_mark: Called with the number of the mark.
            now_s: When it begins.
        """
        self.links = tuple(links)
        self.on_mark = on_mark
        self.rate_bps = 0.0
        self.is_held = False
        self.is_over = False
        # When it last moved.
        self.progress_s = now_s
        self._marks = list(marks)
        self._next = 0
        self._received = 0.0
        self._counted_s = now_s
        self._version = 0

    def received_bytes(self, now_s: float) -> int:
        """Return what has come through."""
        self._count(now_s)
        return int(self._received + 1e-6)

    def _count(self, now_s: float) -> None:
        elapsed_s = now_s - self._counted_s
        if elapsed_s > 0 and not self.is_over:
            moved = min(elapsed_s * self.rate_bps, self._marks[-1] - self._received)
            self._received += moved
            if moved > 0:
                self.progress_s = now_s
                for link in self.links:
                    link.carried_bytes += moved
        self._counted_s = max(now_s, self._counted_s)


class Network:
    """All flows under way."""

    def __init__(self, world: World) -> None:
        self._world = world

    def start(self, flow: Flow) -> None:
        """Let a flow begin."""
        for link in flow.links:
            link.flows[flow] = None
        self._settle(flow.links, flow)

    def stop(self, flow: Flow) -> None:
        """End a flow, wherever it is."""
        if flow.is_over:
            return
        flow._count(self._world.now_s)
        flow.is_over = True
        flow._version += 1
        for link in flow.links:
            del link.flows[flow]
        self._settle(flow.links)

    def hold(self, flow: Flow, is_held: bool) -> None:
        """Let a flow stand still, or go on."""
        if flow.is_held != is_held and not flow.is_over:
            flow.is_held = is_held
            self._settle(flow.links, flow)

    def set_rate(self, link: Link, rate_bps: float) -> None:
        """Change a line."""
        link.rate_bps = rate_bps
        self._settle((link,))

    def _settle(self, links: Sequence[Link], new: Flow | None = None) -> None:
        """Find the levels anew, link by link, until they change no more."""
        waiting = dict.fromkeys(links)
        touched: dict[Flow, None] = {} if new is None else {new: None}
        budget = LINKS_TOUCHED_MAX
        while waiting and budget > 0:
            link = next(iter(waiting))
            del waiting[link]
            budget -= 1
            before_bps, level_bps = link.level_bps, link.find_level_bps()
            if before_bps == level_bps:
                continue
            link.level_bps = level_bps
            if abs(level_bps - before_bps) <= LEVEL_SHARE * before_bps < INFINITE_BPS:
                touched.update(link.flows)
                continue
            for flow in link.flows:
                touched[flow] = None
                for other in flow.links:
                    if other is not link:
                        waiting[other] = None
        for flow in touched:
            self._set_flow_rate(flow)

    def _set_flow_rate(self, flow: Flow) -> None:
        if flow.is_over:
            return
        rate_bps = (
            0.0 if flow.is_held else min(min(link.level_bps, link.rate_bps) for link in flow.links)
        )
        if rate_bps == flow.rate_bps:
            return
        flow._count(self._world.now_s)
        flow.rate_bps = rate_bps
        flow._version += 1
        self._plan_mark(flow)

    def _plan_mark(self, flow: Flow) -> None:
        if flow.rate_bps <= 0:
            return
        version = flow._version
        left_bytes = max(0.0, flow._marks[flow._next] - flow._received)
        self._world.after(left_bytes / flow.rate_bps, lambda: self._pass_mark(flow, version))

    def _pass_mark(self, flow: Flow, version: int) -> None:
        if flow._version != version or flow.is_over:
            return
        flow._count(self._world.now_s)
        number = flow._next
        flow._received = max(flow._received, flow._marks[number])
        flow._next += 1
        if flow._next == len(flow._marks):
            self.stop(flow)
        else:
            flow._version += 1
            self._plan_mark(flow)
        flow.on_mark(number)
