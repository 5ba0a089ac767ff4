"""
Owns the client's verbs for a model's commits: list them, compare two, keep the last.

Knows nothing of how they are compared.
Invariants: one method for one verb of the management API; answers are passed on unchanged.
Source: docs/reference/http-api.md ("Versions").
"""

from __future__ import annotations

from urllib.parse import quote, urlencode

from p2pcache.client.answers import Json
from p2pcache.client.wire import Wire
from p2pcache.core.refs import ModelReference


class VersionClient(Wire):
    """The commits of the models of one daemon. Every call opens its own connection and blocks."""

    def list_all(self, ref: str) -> Json:
        """
        Return the commits of a model of which something is here, oldest first.

        Returns:
            {model, versions: [{commit, revisions, state, bytes_total, bytes_local, pinned, path}]}.
        """
        return self._get(f"/versions/{_quote(ref)}")

    def diff(self, ref: str, old: str, new: str) -> Json:
        """
        Compare two commits that are known here, each named by itself or by a branch.

        Returns:
            {model, from, to, files, bytes_shared, bytes_new, bytes_gone,
            bytes_new_in_known_chunks, changes, changes_total}.

        Raises:
            NotFoundError: One is not known here.
        """
        return self._get(f"/versions/{_quote(ref)}?{urlencode({'from': old, 'to': new})}")

    def keep(self, ref: str, count: int, *, is_dry_run: bool = False) -> Json:
        """
        Remove all commits of a model but the last ones, and those that are current or protected.

        Returns:
            {model, dry_run, removed: [{commit, bytes_freed}], refused: [{commit, reason}], kept}.
        """
        reference = ModelReference.parse(ref)
        body: Json = {"model": str(reference.repo), "keep": count, "dry_run": is_dry_run}
        return self._change("POST", "/versions", body)


def _quote(ref: str) -> str:
    return quote(str(ModelReference.parse(ref)), safe="")
