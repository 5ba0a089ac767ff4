"""
Owns what came of one run: the numbers of each peer, those of all, and whether the goal was met.

Knows nothing of how they were got.
Invariants: pure; what was not measured is None and is never judged.
Source: design.md §6.7 (numbers to print with every run).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import mean

from bench.scenarios import Goal, Part


@dataclass(slots=True)
class Sample:
    """How far a peer was at a time after the start."""

    at_s: float
    bytes_done: int
    bytes_from_upstream: int


@dataclass(slots=True)
class PeerOutcome:
    """
    What came of one machine.

    Attributes:
        joined_s: When it began, after the start.
        finished_s: When all of it was there; None if it never was.
        bytes_from_peers, bytes_from_upstream: What it has from where; None if it does not tell.
        received_bytes: All payload that it took in, twice-fetched and wrong bytes included.
        sent_bytes: Payload that it gave to other peers.
        link_sent_bytes: What its link sent, headers and control messages included.
        exchanges: Control messages that it sent to other peers.
        wrong_files: Files that are missing or differ from the model's.
    """

    name: str
    part: Part = "healthy"
    joined_s: float = 0.0
    finished_s: float | None = None
    bytes_from_peers: int | None = 0
    bytes_from_upstream: int | None = 0
    received_bytes: int | None = None
    sent_bytes: int | None = None
    link_sent_bytes: int | None = None
    exchanges: int | None = None
    cpu_s: float | None = None
    wrong_files: list[str] = field(default_factory=list)
    error: str = ""
    samples: list[Sample] = field(default_factory=list)


@dataclass(slots=True)
class Outcome:
    """
    What came of one run.

    Attributes:
        runner: What did the work: p2pcache, libtorrent, hf download.
        needed: The peers that had to be ready at the end.
        bound_s: The lower bound; None where nothing was shaped.
        clean_s: The time of the run in which nobody misbehaves; None if it was not run.
        cpu_shares: Of the processors' time: idle, the network's, the daemons' and the hub's, and
            others'. With little idle, the processors were the limit, not the links.
        hub_samples: Seconds and bytes that the hub's link had sent by then.
    """

    scenario: str
    title: str
    runner: str
    size_bytes: int
    peers: list[PeerOutcome]
    upstream_bytes: int = 0
    time_s: float | None = None
    bound_s: float | None = None
    clean_s: float | None = None
    cpu_shares: dict[str, float] = field(default_factory=dict)
    hub_samples: list[tuple[float, int]] = field(default_factory=list)

    @property
    def needed(self) -> list[PeerOutcome]:
        """Return the peers that count."""
        return [peer for peer in self.peers if peer.part == "healthy"]

    @property
    def upstream_ratio(self) -> float:
        """Return upstream bytes ÷ bytes of the model."""
        return self.upstream_bytes / self.size_bytes

    @property
    def time_ratio(self) -> float | None:
        """Return time ÷ lower bound."""
        if self.time_s is None or not self.bound_s:
            return None
        return self.time_s / self.bound_s

    @property
    def clean_ratio(self) -> float | None:
        """Return time ÷ time of the clean run."""
        if self.time_s is None or not self.clean_s:
            return None
        return self.time_s / self.clean_s

    @property
    def extra_share(self) -> float | None:
        """Return what the needed peers received beyond the model, as a share of it."""
        received = [peer.received_bytes for peer in self.needed]
        counted = [count for count in received if count is not None]
        if not counted or len(counted) < len(received):
            return None
        return sum(counted) / (len(counted) * self.size_bytes) - 1

    @property
    def exchanges(self) -> float | None:
        """Return control messages per needed peer."""
        counted = [peer.exchanges for peer in self.needed if peer.exchanges is not None]
        return mean(counted) if counted else None

    @property
    def wrong_count(self) -> int:
        """Return how many files were missing or wrong."""
        return sum(len(peer.wrong_files) for peer in self.peers)

    def to_json(self) -> dict[str, object]:
        """Return all of it, the ratios included."""
        return {
            **asdict(self),
            "upstream_ratio": self.upstream_ratio,
            "time_ratio": self.time_ratio,
            "clean_ratio": self.clean_ratio,
            "extra_share": self.extra_share,
            "exchanges_per_peer": self.exchanges,
            "wrong_files": self.wrong_count,
        }


def find_misses(outcome: Outcome, goal: Goal) -> list[str]:
    """Return what of a goal was missed, in words; () means that it was met."""
    misses = []
    late = [peer.name for peer in outcome.needed if peer.finished_s is None]
    if late:
        misses.append(f"never ready: {', '.join(late)}")
    if outcome.wrong_count:
        misses.append(f"{outcome.wrong_count} wrong or missing files")
    compared: Sequence[tuple[str, float | None, float | None]] = (
        ("upstream ÷ model", outcome.upstream_ratio, goal.upstream_max),
        ("time ÷ bound", outcome.time_ratio, goal.time_max),
        ("time ÷ clean run", outcome.clean_ratio, goal.clean_max),
        ("extra bytes", outcome.extra_share, goal.extra_max),
    )
    for name, value, maximum in compared:
        # As shown: a ratio that reads 1.15 is not above 1.15.
        if value is not None and maximum is not None and round(value, 3) > maximum:
            misses.append(f"{name} {value:.3f} > {maximum:g}")
    return misses


HEADER = (
    f"{'scenario':<10} {'by':<12} {'upstream ÷ model':>17} {'time':>8} {'bound':>8} {'ratio':>6}"
    f" {'extra':>7} {'control':>8}  goal"
)


def show_row(outcome: Outcome, goal: Goal | None) -> str:
    """Return the line of a run in the table; without a goal nothing is judged."""
    control = "–" if outcome.exchanges is None else f"{outcome.exchanges:.0f}"
    extra = "–" if outcome.extra_share is None else f"{outcome.extra_share:.1%}"
    row = (
        f"{outcome.scenario:<10} {outcome.runner:<12} {outcome.upstream_ratio:>17.3f}"
        f" {_seconds(outcome.time_s):>8} {_seconds(outcome.bound_s):>8}"
        f" {_ratio(outcome.time_ratio):>6} {extra:>7} {control:>8}"
    )
    if goal is None:
        return row
    misses = find_misses(outcome, goal)
    return f"{row}  {'MISSED: ' + '; '.join(misses) if misses else 'met'}{_clean(outcome)}"


def show_peers(outcome: Outcome) -> list[str]:
    """Return a table of what each machine took and gave, in MiB."""
    lines = [
        f"  {'peer':<7} {'plays':<8} {'from':>7} {'ready':>8} {'upstream':>9} {'peers':>8}"
        f" {'gave':>8} {'control':>8} {'cpu':>7}"
    ]
    lines += [
        f"  {peer.name:<7} {peer.part:<8} {_seconds(peer.joined_s):>7}"
        f" {_seconds(peer.finished_s):>8} {_mib(peer.bytes_from_upstream):>9}"
        f" {_mib(peer.bytes_from_peers):>8} {_mib(peer.sent_bytes):>8}"
        f" {'–' if peer.exchanges is None else peer.exchanges:>8} {_seconds(peer.cpu_s):>7}"
        + (f"  {peer.error}" if peer.error else "")
        for peer in outcome.peers
    ]
    return lines


def show_cpu(outcome: Outcome) -> str:
    """Return one line about what the processors did."""
    shares = ", ".join(f"{name} {share:.0%}" for name, share in outcome.cpu_shares.items())
    return f"  processors: {shares}" if shares else ""


def _clean(outcome: Outcome) -> str:
    return "" if outcome.clean_ratio is None else f" ({outcome.clean_ratio:.2f} × the clean run)"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} s"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _mib(value: int | None) -> str:
    return "–" if value is None else f"{value / 2**20:.1f}"
