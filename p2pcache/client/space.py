"""
Owns the client's verbs for room: storage, gc, removing, leases.

Knows nothing of how room is made.
Invariants: one method for one verb of the management API; answers are passed on unchanged.
Source: docs/reference/http-api.md; design.md §8.
"""

from __future__ import annotations

from urllib.parse import quote

from p2pcache.client.answers import Json
from p2pcache.client.wire import Wire
from p2pcache.core.refs import ModelReference


class SpaceClient(Wire):
    """The room of one daemon's store. Every call opens its own connection and blocks."""

    def storage(self) -> Json:
        """Return what the store takes, what it may take, and what of it could go."""
        return self._get("/storage")

    def gc(self, *, is_dry_run: bool = False) -> Json:
        """
        Tidy up; or, with is_dry_run, ask what that would do.

        Returns:
            {dry_run, steps: [{what, name, bytes, reason}], bytes_freed, own_bytes, quota,
            disk_free}.
        """
        return self._change("POST", "/gc", {"dry_run": is_dry_run})

    def remove(self, ref: str, *, is_forced: bool = False) -> Json:
        """
        Remove one snapshot, and the files that no other one lists.

        Args:
            ref: A model reference.
            is_forced: Also if it is pinned; the pin goes with it.

        Returns:
            {model, revision, commit, blobs, bytes_freed}.

        Raises:
            ProtectedError: It is pinned, leased or in use.
        """
        body = _body_of(ref)
        if is_forced:
            body["force"] = True
        return self._change("DELETE", "/models", body)

    def leases(self) -> Json:
        """Return {"leases": […]}: what is protected for a while."""
        return self._get("/leases")

    def lease(self, ref: str, ttl_s: float | None = None, holder: str = "") -> Json:
        """
        Protect a snapshot for a while; renew_lease() goes on, end_lease() ends it.

        Args:
            ref: A model reference.
            ttl_s: How long it holds without being renewed; the daemon's default if None.
            holder: Who needs it, for people who read the list.

        Returns:
            {id, model, commit, path, holder, ttl_s, expires_at, state}.
        """
        body = _body_of(ref)
        if ttl_s is not None:
            body["ttl_s"] = ttl_s
        if holder:
            body["holder"] = holder
        return self._change("POST", "/leases", body)

    def renew_lease(self, lease_id: str, ttl_s: float | None = None) -> Json:
        """Let a lease hold for its time again, or for another one, from now."""
        body = {} if ttl_s is None else {"ttl_s": ttl_s}
        return self._change("POST", f"/leases/{quote(lease_id, safe='')}", body)

    def end_lease(self, lease_id: str) -> Json:
        """End a lease."""
        return self._change("DELETE", f"/leases/{quote(lease_id, safe='')}")


def _body_of(ref: str) -> Json:
    reference = ModelReference.parse(ref)
    return {"model": str(reference.repo), "revision": reference.revision}
