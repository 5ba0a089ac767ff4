"""
Owns what we hold against a source: faults, and bans on first proof.

Knows nothing of connections or discovery.
Invariants: a ban needs proof (a wrong byte) or three protocol faults in a row; it has a reason.
Source: libtorrent's smart ban, for banning on the first proven wrong piece; design.md §6.6.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass

# Recent faults that `status` shows; older ones are in the log.
FAULTS_KEPT_MAX = 100
# A banned peer is asked again after an hour: disks get replaced, and a LAN is small.
BAN_S = 3600.0
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


@dataclass(slots=True)
class _Record:
    faults_in_a_row: int = 0
    banned_until_s: float = 0.0
    reason: str = ""


class BlameBook:
    """Faults and bans by source id. One owner (the event loop)."""

    def __init__(self) -> None:
        self.faults: deque[Fault] = deque(maxlen=FAULTS_KEPT_MAX)
        self._records: OrderedDict[str, _Record] = OrderedDict()

    def note_wrong_bytes(self, fault: Fault, *, now_s: float) -> None:
        """Record a proven wrong byte: the source is banned at once."""
        self.faults.append(fault)
        record = self._get(fault.source_id)
        record.banned_until_s = now_s + BAN_S
        record.reason = fault.detail

    def note_fault(self, fault: Fault, *, now_s: float) -> None:
        """Record a broken promise; several in a row ban."""
        self.faults.append(fault)
        record = self._get(fault.source_id)
        record.faults_in_a_row += 1
        if record.faults_in_a_row >= PROTOCOL_FAULTS_IN_A_ROW_MAX:
            record.banned_until_s = now_s + BAN_S
            record.reason = fault.detail

    def note_good(self, source_id: str) -> None:
        """Record a run that was delivered as promised."""
        if source_id in self._records:
            self._records[source_id].faults_in_a_row = 0

    def find_ban(self, source_id: str, *, now_s: float) -> str | None:
        """Return why a source is banned now, None when it is not."""
        record = self._records.get(source_id)
        return record.reason if record is not None and record.banned_until_s > now_s else None

    def _get(self, source_id: str) -> _Record:
        record = self._records.setdefault(source_id, _Record())
        self._records.move_to_end(source_id)
        while len(self._records) > RECORDS_MAX:
            self._records.popitem(last=False)
        return record
