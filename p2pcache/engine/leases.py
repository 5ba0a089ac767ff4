"""
Owns the leases of snapshots: what a loader reads stays while it renews, and not much longer.

Knows nothing of eviction.
Invariants: while the daemon runs the monotonic clock ends a lease, so that a wall clock that jumps
neither ends it early nor makes it eternal; after a restart no lease has more left than the longest
one may ask for.
Source: design.md §3 (lease of a snapshot); Kubernetes' Lease objects, for renewing.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

from p2pcache.core.refs import SnapshotId
from p2pcache.engine.context import Context
from p2pcache.errors import DaemonBusyError, InputError, NotFoundError
from p2pcache.store.roots import LeaseRow

# A loader renews every twenty seconds or so; one that died protects its model for a minute.
LEASE_TTL_S_DEFAULT = 60.0
# A job that is submitted today and starts tomorrow; who needs longer pins.
LEASE_TTL_S_MAX = 86_400.0
# One for each process that loads, on a large machine, many times over.
LEASES_MAX = 4096
# Names a process for people who read the list.
HOLDER_CHARS_MAX = 200


@dataclass(frozen=True, slots=True)
class Lease:
    """A loader's claim on a snapshot; it ends at `expires_s` of the monotonic clock."""

    id: str
    snapshot_id: SnapshotId
    holder: str
    ttl_s: float
    expires_s: float
    expires_wall_s: float


class Leases:
    """All leases of this daemon. Event loop only; load() comes first."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._leases: dict[str, Lease] = {}
        self._is_loaded = False

    async def load(self) -> None:
        """Read what an earlier run left, once; what has ended meanwhile goes."""
        if self._is_loaded:
            return
        rows = await self._context.index.call(lambda index: index.roots.list_leases())
        if self._is_loaded:
            return
        self._is_loaded = True
        now_s, wall_s = self._context.clock.monotonic_s(), self._context.clock.wall_s()
        for row in rows:
            left_s = min(row.expires_wall_s - wall_s, LEASE_TTL_S_MAX)
            lease = Lease(
                row.id,
                row.snapshot_id,
                row.holder,
                LEASE_TTL_S_DEFAULT,
                now_s + left_s,
                wall_s + left_s,
            )
            self._leases[row.id] = lease
        await self.forget_ended()

    def is_leased(self, snapshot_id: SnapshotId) -> bool:
        """Return whether anybody holds a lease of a snapshot now."""
        return any(lease.snapshot_id == snapshot_id for lease in self.list_all())

    def list_all(self) -> list[Lease]:
        """Return the leases that hold now, the first to end first."""
        now_s = self._context.clock.monotonic_s()
        held = (lease for lease in self._leases.values() if lease.expires_s > now_s)
        return sorted(held, key=lambda lease: (lease.expires_s, lease.id))

    async def grant(self, snapshot_id: SnapshotId, ttl_s: float, holder: str) -> Lease:
        """
        Begin a lease.

        Raises:
            InputError: A time that no lease has.
            DaemonBusyError: There are too many.
            StoreError: The disk failed or is full.
        """
        check_ttl(ttl_s)
        if len(self.list_all()) >= LEASES_MAX:
            raise DaemonBusyError(
                f"{LEASES_MAX} leases are held, the most there may be; end some, or pin the model."
            )
        lease = Lease(secrets.token_hex(8), snapshot_id, holder, ttl_s, 0.0, 0.0)
        return await self._put(lease)

    async def renew(self, lease_id: str, ttl_s: float | None = None) -> Lease:
        """
        Let a lease hold for its time again, or for another one, from now.

        Raises:
            NotFoundError: It has ended, or never was.
            InputError: A time that no lease has.
            StoreError: The disk failed or is full.
        """
        lease = self._get(lease_id)
        if ttl_s is not None:
            check_ttl(ttl_s)
        return await self._put(replace(lease, ttl_s=ttl_s or lease.ttl_s))

    async def end(self, lease_id: str) -> Lease:
        """
        End a lease.

        Raises:
            NotFoundError: It has ended, or never was.
        """
        lease = self._get(lease_id)
        del self._leases[lease.id]
        await self._context.index.call(lambda index: index.roots.remove_lease(lease.id))
        return lease

    async def forget_ended(self) -> None:
        """Remove the rows of leases that protect nothing any more."""
        held = {lease.id for lease in self.list_all()}
        for lease_id in [i for i in self._leases if i not in held]:
            del self._leases[lease_id]
        rows = await self._context.index.call(lambda index: index.roots.list_leases())
        for row in rows:
            if row.id not in self._leases:
                await self._remove_row(row)

    async def _remove_row(self, row: LeaseRow) -> None:
        await self._context.index.call(lambda index: index.roots.remove_lease(row.id))

    def _get(self, lease_id: str) -> Lease:
        lease = self._leases.get(lease_id)
        if lease is None or lease.expires_s <= self._context.clock.monotonic_s():
            raise NotFoundError(
                f"No lease {lease_id[:40]!r} is held, or it ended; ask for a new one."
            )
        return lease

    async def _put(self, lease: Lease) -> Lease:
        clock = self._context.clock
        lease = replace(
            lease,
            expires_s=clock.monotonic_s() + lease.ttl_s,
            expires_wall_s=clock.wall_s() + lease.ttl_s,
        )
        row = LeaseRow(lease.id, lease.snapshot_id, lease.holder, lease.expires_wall_s)
        await self._context.index.call(lambda index: index.roots.put_lease(row))
        self._leases[lease.id] = lease
        return lease


def check_ttl(ttl_s: float) -> None:
    """
    Insist on a time that a lease can have.

    Raises:
        InputError: It is not above 0 and at most a day.
    """
    if not 0 < ttl_s <= LEASE_TTL_S_MAX:
        raise InputError(
            f"A lease of {ttl_s:g} s cannot be had; ask for more than 0 and at most "
            f"{LEASE_TTL_S_MAX:.0f} s, and renew it, or pin the model."
        )
