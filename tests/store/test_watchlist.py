"""
Owns the tests of store.watchlist.

Knows nothing of what is watched.
Invariants: none.
Source: store/watchlist.py.
"""

from __future__ import annotations

from pathlib import Path

from p2pcache.store.index import Index
from p2pcache.store.watchlist import WatchRow


def test_watchlist_survives_reopening_and_keeps_the_first_time(tmp_path: Path) -> None:
    """A folder is on the list once, since it was first put there, with the newest word on it."""
    index = Index(tmp_path / "index.sqlite")
    index.watchlist.put(WatchRow(Path("/b"), 2.0))
    index.watchlist.put(WatchRow(Path("/a"), 3.0))
    index.watchlist.put(WatchRow(Path("/b"), 4.0, is_public=True))
    index.close()
    index = Index(tmp_path / "index.sqlite")
    assert index.watchlist.list_all() == [
        WatchRow(Path("/b"), 2.0, is_public=True),
        WatchRow(Path("/a"), 3.0),
    ]
    assert index.watchlist.remove(Path("/b"))
    assert not index.watchlist.remove(Path("/b"))
    assert index.watchlist.list_all() == [WatchRow(Path("/a"), 3.0)]
    index.close()
