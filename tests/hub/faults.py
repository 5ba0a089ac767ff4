"""
Owns the hub's misbehaviour: what is switched on, and how often each switch has yet to act.

Knows nothing of HTTP; the answering modules ask it before they act.
Invariants: `Faults()` is a well-behaved hub; a `times` of None means for ever, 0 means never.
Source: failures that users of the real hub, of mirrors and of proxies reported in public.
"""

from __future__ import annotations

import asyncio
import fnmatch
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace


@dataclass(frozen=True)
class Faults:
    """
    The switches. JSON objects of the same names set them over the control routes.

    Attributes:
        routes: Route kinds (`resolve`, `cdn`, `tree`, …) that refusals, latency and HTML hit; all
            if empty.
        paths: Glob over `repo/path` of the bodies that body faults hit.
        rate_bytes_per_s: Limit over all connections of both listeners.
        refuse_status: Answer this status (429, 500, 502, 503, …) instead, `refuse_times` times.
        break_after_bytes: Close the connection after that many body bytes, `break_times` times.
        dies_after_bytes: Send no more than that many body bytes in all answers together; each
            that has none left closes.
        short_by_bytes: Promise the full length, send that much less, close.
        flips: `repo/path` to the offset of one byte that is sent inverted.
        hang_after_bytes: Stop sending after that many body bytes, 0 for headers only.
        etag_changes_after: Number of file answers with the true ETag; later ones carry another.
        extra_names: File names that listings show though no such file exists.
        small_files_by_redirect: Answer git files by 307 to /api/resolve-cache/…
        xet: Send the Xet signals, as the real hub does.
        disabled: Repositories (`org/name`) that the hub has closed: 403 for everybody.
        business_failure: ModelScope's routes answer 200 and say inside that they failed.
        names_commits: ModelScope's list of commits is there.
        listing_entries_max: Entries of ModelScope's `repo/files`; what comes after is left out.
    """

    routes: tuple[str, ...] = ()
    paths: str = "*"
    rate_bytes_per_s: int | None = None
    connection_rate_bytes_per_s: int | None = None
    latency_s: float = 0.0
    refuse_status: int | None = None
    refuse_times: int | None = None
    retry_after_s: int | None = None
    break_after_bytes: int | None = None
    break_times: int | None = None
    dies_after_bytes: int | None = None
    short_by_bytes: int = 0
    flips: Mapping[str, int] = field(default_factory=dict)
    hang_after_bytes: int | None = None
    hang_times: int | None = None
    ignore_range: bool = False
    wrong_content_range: bool = False
    signed_url_ttl_s: float = 3600.0
    etag_changes_after: int | None = None
    commit_changes_after: int | None = None
    tree_missing: bool = False
    omit_sizes: bool = False
    extra_names: tuple[str, ...] = ()
    html_body: bool = False
    small_files_by_redirect: bool = False
    xet: bool = True
    disabled: tuple[str, ...] = ()
    business_failure: bool = False
    names_commits: bool = True
    listing_entries_max: int = 3000

    def is_route_hit(self, route: str) -> bool:
        """Return whether request faults apply to this kind of route."""
        return not self.routes or route in self.routes

    def is_path_hit(self, key: str) -> bool:
        """Return whether body faults apply to this `repo/path`."""
        return fnmatch.fnmatchcase(key, self.paths)


class FaultState:
    """The switches now on and the countdowns that belong to them. Used by one event loop."""

    def __init__(self, faults: Faults) -> None:
        self.base = faults
        self.now = faults
        self._used: Counter[str] = Counter()
        self._changed = asyncio.Event()

    def set(self, faults: Faults) -> None:
        """Replace all switches and restart the countdowns; hanging answers go on."""
        self.now = faults
        self._used.clear()
        self._changed.set()
        self._changed = asyncio.Event()

    def set_over_base(self, changes: Mapping[str, object]) -> None:
        """
        Replace all switches by those the hub was made with plus the changes.

        Raises:
            ValueError: A name is not a switch.
        """
        known = {item.name for item in fields(Faults)}
        if unknown := sorted(set(changes) - known):
            raise ValueError(f"unknown faults {unknown}; choose from {sorted(known)}")
        tuples = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in changes.items()
        }
        self.set(replace(self.base, **tuples))  # type: ignore[arg-type]

    async def wait_changed(self) -> None:
        """Wait until somebody sets the switches again."""
        await self._changed.wait()

    def take_refusal(self, route: str) -> int | None:
        """Return the status to refuse this request with, counting it."""
        status = self.now.refuse_status
        if status is None or not self.now.is_route_hit(route):
            return None
        return status if self._try_use("refuse", self.now.refuse_times) else None

    def take_break(self, key: str) -> int | None:
        """Return after how many bytes this body breaks, counting it."""
        after = self.now.break_after_bytes
        if after is None or not self.now.is_path_hit(key):
            return None
        return after if self._try_use("break", self.now.break_times) else None

    def take_hang(self, key: str) -> int | None:
        """Return after how many bytes this body hangs, counting it."""
        after = self.now.hang_after_bytes
        if after is None or not self.now.is_path_hit(key):
            return None
        return after if self._try_use("hang", self.now.hang_times) else None

    def take_body(self, size_bytes: int) -> int:
        """Return how many of these body bytes may still be sent, counting them."""
        total = self.now.dies_after_bytes
        if total is None:
            return size_bytes
        given = min(size_bytes, max(total - self._used["body"], 0))
        self._used["body"] += given
        return given

    def is_changed(self, subject: str, key: str, after: int | None) -> bool:
        """Return whether the subject (`etag`, `commit`) has had its true answers for this key."""
        if after is None or not self.now.is_path_hit(key):
            return False
        self._used[f"{subject} {key}"] += 1
        return self._used[f"{subject} {key}"] > after

    def _try_use(self, name: str, times: int | None) -> bool:
        """Count one use if any is left."""
        if times is not None and self._used[name] >= times:
            return False
        self._used[name] += 1
        return True
