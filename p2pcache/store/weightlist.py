"""
Owns the index's rows on what the heads of weight files say.

Knows nothing of where heads come from, and of which model a file belongs to.
Invariants: a row never changes: it follows from the bytes that its digest names; a head that is
not what the file's name says has a row too, so that it is not read again.
Source: schema.py; core/weights.py.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlite_utils import Database

from p2pcache.core.digest import BlobDigest
from p2pcache.core.weights import FileWeights, params_to_text, shapes_to_text


class WeightList:
    """Rows of weight files."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def put(self, blob: BlobDigest, weights: FileWeights | None) -> None:
        """Record what a blob's head lists; None for one that lists nothing that can be counted."""
        fields: tuple[object, ...] = (None, 0, 0, 0, "{}", "[]")
        if weights is not None:
            fields = (
                weights.format.value,
                weights.tensors,
                weights.tensor_bytes,
                weights.largest_tensor_bytes,
                params_to_text(weights.params),
                shapes_to_text(weights.shapes),
            )
        with self._db.atomic():
            self._db.execute(
                "INSERT OR IGNORE INTO weights VALUES (?, ?, ?, ?, ?, ?, ?)", [str(blob), *fields]
            )

    def find_unknown(self, blobs: Iterable[BlobDigest]) -> list[BlobDigest]:
        """Return those of some blobs whose head nobody has read yet."""
        query = "SELECT 1 FROM weights WHERE digest = ?"
        return [b for b in blobs if self._db.execute(query, [str(b)]).fetchone() is None]
