"""
Owns what we hold against a source: faults, and bans on first proof.

Knows nothing of connections or discovery.
Invariants: a ban needs proof (a wrong byte) or three protocol faults in a row; it has a reason.
Source: libtorrent's smart ban, for banning on the first proven wrong piece; design.md §6.6.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

# Recent faults that `status` shows; older ones are in the log.
FAULTS_KEPT_MAX = 100
# A banned peer is asked again after an hour: disks get replaced, and a LAN is small.
BAN_S = 3600.0
# What `peers` shows of one source; enough to see whether it is always the same.
FAULTS_PER_SOURCE_MAX = 5
PROTOCOL_FAULTS_IN_A_ROW_MAX = 3
# More sources than a daemon ever talks to; forgets the oldest.
RECORDS_MAX = 4096


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that a source did wrong, as shown in `status` and `peers`."""

    source_id: str
    source_name: str
    reason: str
    detail: str
    wall_s: float


@dataclass(frozen=True, slots=True)
class Ban:
    """A source that is not asked for anything, why, and for how much longer."""

    source_id: str
    source_name: str
    reason: str
    left_s: float


@dataclass(slots=True)
class _Record:
    faults_in_a_row: int = 0
    banned_until_s: float = 0.0
    reason: str = ""
    faults: deque[Fault] = field(default_factory=lambda: deque(maxlen=FAULTS_PER_SOURCE_MAX))


class BlameBook:
    """Faults and bans by source id. One owner (the event loop)."""

    def __init__(self) -> None:
        self.faults: deque[Fault] = deque(maxlen=FAULTS_KEPT_MAX)
        self._records: OrderedDict[str, _Record] = OrderedDict()

    def note_wrong_bytes(self, fault: Fault, *, now_s: float) -> None:
        """Record a proven wrong byte: the source is banned at once."""
        record = self._note(fault)
        record.banned_until_s = now_s + BAN_S
        record.reason = fault.detail

    def note_fault(self, fault: Fault, *, now_s: float) -> None:
        """Record a broken promise; several in a row ban."""
        record = self._note(fault)
        record.faults_in_a_row += 1
        if record.faults_in_a_row >= PROTOCOL_FAULTS_IN_A_ROW_MAX:
            record.banned_until_s = now_s + BAN_S
            record.reason = fault.detail

    def note_damage(self, fault: Fault) -> None:
        """Record damage that a source owned up to; it bans nobody."""
        self._note(fault)

    def note_good(self, source_id: str) -> None:
        """Record a run that was delivered as promised."""
        if source_id in self._records:
            self._records[source_id].faults_in_a_row = 0

    def find_ban(self, source_id: str, *, now_s: float) -> str | None:
        """Return why a source is banned now, None when it is not."""
        record = self._records.get(source_id)
        return record.reason if record is not None and record.banned_until_s > now_s else None

    def find_banned(self, *, now_s: float) -> set[str]:
        """Return everybody who is banned now."""
        return {s for s, record in self._records.items() if record.banned_until_s > now_s}

    def list_bans(self, *, now_s: float) -> list[Ban]:
        """Return who is banned now, the oldest first."""
        return [
            Ban(source_id, record.faults[-1].source_name, record.reason, left_s)
            for source_id, record in self._records.items()
            if (left_s := record.banned_until_s - now_s) > 0
        ]

    def list_faults(self, source_id: str) -> list[Fault]:
        """Return what a source did wrong last, the newest at the end."""
        record = self._records.get(source_id)
        # Some are told to everybody without being counted against their source.
        told = [fault for fault in self.faults if fault.source_id == source_id]
        kept = [] if record is None else [f for f in record.faults if f not in told]
        found = sorted(kept + told, key=lambda fault: fault.wall_s)
        return found[-FAULTS_PER_SOURCE_MAX:]

    def _note(self, fault: Fault) -> _Record:
        self.faults.append(fault)
        record = self._records.setdefault(fault.source_id, _Record())
        self._records.move_to_end(fault.source_id)
        record.faults.append(fault)
        while len(self._records) > RECORDS_MAX:
            self._records.popitem(last=False)
        return record
