"""
Owns asking the local daemon to check its store.

Knows nothing of what a check does.
Invariants: answers are passed on unchanged.
Source: docs/reference/http-api.md (check).
"""

from __future__ import annotations

from p2pcache.client.answers import Json
from p2pcache.client.wire import Wire


class CheckClient(Wire):
    """The checks of one daemon. Every call opens its own connection and blocks."""

    def start(
        self,
        *,
        is_repair: bool = False,
        rate_bps: float | None = None,
        budget_s: float | None = None,
        is_anew: bool = False,
    ) -> Json:
        """
        Begin a check, or join the one that runs; returns at once.

        Args:
            is_repair: Fetch again what is damaged; the check runs until that is done.
            rate_bps: Bytes per second; None for as fast as the disk.
            budget_s: Stop after so long; the next check goes on from there.
            is_anew: Look again also at what a check that was stopped has looked at.

        Returns:
            {state, started_at, blobs_total, blobs_done, bytes_total, bytes_done, rate_bps,
            damaged, …}.
        """
        body: Json = {"repair": is_repair, "anew": is_anew}
        if rate_bps is not None:
            body["rate_bps"] = rate_bps
        if budget_s is not None:
            body["budget_s"] = budget_s
        return self._change("POST", "/check", body)

    def show(self) -> Json:
        """Return how far the check is, or what the last one found."""
        return self._request("GET", "/check", None, self._admin_headers())

    def stop(self) -> Json:
        """End the check that runs; what it found stands."""
        return self._change("DELETE", "/check")

    def _admin_headers(self) -> dict[str, str]:
        """Show the token that start() needed: what is not public is named to its holder alone."""
        return {"Authorization": f"Bearer {self._load_admin_token()}"}
