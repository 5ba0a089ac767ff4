"""
Owns one look at a snapshot, from the index and the disk: what of it is here, and what its weights
are.

Knows nothing of peers, hubs or running fetches, and writes nothing; used by the daemon and by
programs beside it.
Invariants: bytes missing are those that the have-records do not speak of; what was whole a moment
ago is not looked at again; equal states give equal answers.
Source: design.md §8 (residency); docs/decisions/0023-residency.md.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from p2pcache.core.digest import BlobDigest
from p2pcache.core.listing import Listing
from p2pcache.core.refs import ModelReference, SnapshotId
from p2pcache.core.residency import (
    FileResidency,
    Residency,
    State,
    measure_residency,
    sum_whole,
)
from p2pcache.core.selection import get_selection, may_repeat
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.core.weights import Weights, count_variants, find_weight_files, sum_weights
from p2pcache.store.disk import DISK_BLOCK_SIZE_BYTES
from p2pcache.store.indexreader import IndexReader, SnapshotFacts
from p2pcache.store.presence import Presence, PresenceReader
from p2pcache.store.treefolders import TreeFolders

# A file that is deleted by hand is noticed so late at most, by whoever asks again and again.
WHOLE_AGE_S_MAX = 1.0
# Selections that are kept, with what their weights are.
CHOICES_KEPT_MAX = 4096


@dataclass(frozen=True, slots=True)
class Question:
    """
    What is asked about. Without patterns: what a pull without patterns brings. `with_shapes`: the
    weights' shapes are wanted, for ranks.
    """

    reference: ModelReference
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    with_shapes: bool = False


@dataclass(frozen=True, slots=True)
class Look:
    """
    What a look found. `chosen`: the files that count; `presences`: of each blob that is not whole
    and proven; `need_bytes`: what the disk has yet to give; `weights`: None until every head was
    read; `unread`: blobs whose heads nobody has read; `path`: the folder that a loader opens, once
    every link in it is there.
    """

    facts: SnapshotFacts
    chosen: Listing
    residency: Residency
    presences: dict[BlobDigest, Presence] = field(default_factory=dict)
    need_bytes: int = 0
    weights: Weights | None = None
    variants: int = 0
    unread: tuple[BlobDigest, ...] = ()
    path: str | None = None

    @property
    def snapshot(self) -> Snapshot:
        """Return the whole file list."""
        return self.facts.snapshot

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """Return the files that count."""
        return self.chosen.files


@dataclass(slots=True)
class _Choice:
    """
    The files of a question, the bytes of each blob, which of them are weights, the folder that a
    loader opens, and what is known of them for good.
    """

    listing: Listing
    chosen: Listing
    sizes: dict[str, int]
    weight_blobs: tuple[str, ...]
    variants: int
    folder: str
    weights: Weights | None = None
    # Weight files whose heads nobody has read.
    unread: tuple[BlobDigest, ...] = ()
    # Whether the weights have shapes.
    has_shapes: bool = False
    # When all of it was found whole, with every link; what that look said, and of which facts.
    whole_s: float = float("-inf")
    whole_look: Look | None = None


class ResidencyReader:
    """Looks at one store. One thread at a time."""

    def __init__(self, root: Path) -> None:
        """
        Raises:
            NotFoundError: No daemon has used that store yet.
            StoreError: Its index cannot be read.
        """
        self._folders = TreeFolders(root / "hub")
        self._index = IndexReader(root / "index.sqlite")
        self._presence = PresenceReader(root)
        self._choices: OrderedDict[tuple[object, ...], _Choice] = OrderedDict()

    @property
    def index(self) -> IndexReader:
        """Return the index, for other questions."""
        return self._index

    def close(self) -> None:
        """Close the index. Safe to call twice."""
        self._index.close()

    def look(
        self,
        question: Question,
        *,
        now_s: float,
        is_damaged: Callable[[BlobDigest], bool] = lambda blob: False,
    ) -> Look | None:
        """
        Look at a snapshot; None when nothing is known of it.

        Args:
            question: What is asked about.
            now_s: Monotonic seconds.
            is_damaged: Whether a file was found damaged and is not mended.

        Raises:
            InputError: No file matches the patterns.
            StoreError: The index cannot be read.
        """
        self._index.refresh()
        commit = self._index.find_commit(question.reference)
        if commit is None:
            return None
        facts = self._index.find_facts(SnapshotId(question.reference.repo, commit))
        if facts is None:
            return None
        choice = self._choose(facts.listing, question)
        self._weigh(choice, with_shapes=question.with_shapes)
        whole = choice.whole_look
        is_same = whole is not None and whole.facts is facts and whole.weights is choice.weights
        if is_same and 0 <= now_s - choice.whole_s < WHOLE_AGE_S_MAX:
            return whole
        proven, is_whole = facts.proven, self._presence.is_whole_text
        wanting = [t for t in choice.sizes if not (t in proven and is_whole(t))]
        presences = {
            (blob := BlobDigest.parse(text)): self._presence.look(blob, choice.sizes[text])
            for text in wanting
        }
        is_linked = not presences and _is_linked(choice)
        look = self._make_look(facts, choice, presences, is_damaged, is_linked=is_linked)
        choice.whole_s, choice.whole_look = now_s, look if is_linked and not look.unread else None
        return look

    def find_held(self, blobs: Sequence[tuple[BlobDigest, int]]) -> dict[BlobDigest, int]:
        """Return which of some blobs, of given sizes, are here, proven and anybody's to have."""
        self._index.refresh()
        public = self._index.find_public(blob for blob, _ in blobs)
        sizes = dict(blobs)
        return {blob: sizes[blob] for blob in public if self._presence.is_whole(blob)}

    # --- parts ---

    def _choose(self, listing: Listing, question: Question) -> _Choice:
        key = (listing.id, question.include, question.exclude)
        known = self._choices.get(key)
        if known is not None and known.listing is listing:
            self._choices.move_to_end(key)
            return known
        chosen = _select(listing, question)
        # Each blob once, under the last of its names.
        weights = {chosen.blobs[n]: chosen.paths[n] for n in find_weight_files(chosen.paths)}
        choice = _Choice(
            listing,
            chosen,
            chosen.size_blobs(),
            tuple(weights),
            count_variants(weights.values()),
            f"{self._folders.path_of(listing.id.repo)}/snapshots/{listing.id.commit}",
        )
        self._choices[key] = choice
        self._choices.move_to_end(key)
        while len(self._choices) > CHOICES_KEPT_MAX:
            self._choices.popitem(last=False)
        return choice

    def _weigh(self, choice: _Choice, *, with_shapes: bool) -> None:
        """Add up the heads, once all are known; they never change."""
        is_known = choice.weights is not None and (choice.has_shapes or not with_shapes)
        blobs = choice.weight_blobs
        if is_known or not blobs:
            return
        summed, choice.unread = self._index.sum_weights(blobs)
        # A head that is not what its name says makes the whole unknown, not smaller.
        if summed is not None:
            shapes = self._index.find_shapes(blobs) if with_shapes else ()
            file_bytes = sum(choice.sizes[blob] for blob in blobs)
            choice.weights = sum_weights([summed], file_bytes, len(blobs), shapes)
            choice.has_shapes = with_shapes

    def _make_look(
        self,
        facts: SnapshotFacts,
        choice: _Choice,
        presences: dict[BlobDigest, Presence],
        is_damaged: Callable[[BlobDigest], bool],
        *,
        is_linked: bool,
    ) -> Look:
        sizes, block = choice.sizes, DISK_BLOCK_SIZE_BYTES
        if presences:
            residency = measure_residency(_measure(sizes, presences, facts.proven, is_damaged))
        else:
            times_s = (facts.proven[blob] for blob in sizes)
            residency = sum_whole(sum(sizes.values()), times_s)
        need = sum(
            max(0, -(-sizes[str(blob)] // block) * block - presence.taken_bytes)
            for blob, presence in presences.items()
            if not presence.is_whole
        )
        is_there = is_linked and residency.state is State.RESIDENT
        return Look(
            facts,
            choice.chosen,
            residency,
            presences,
            need,
            choice.weights,
            choice.variants,
            choice.unread,
            choice.folder if is_there else None,
        )


def _select(listing: Listing, question: Question) -> Listing:
    """Return the files that count: the same list where that is all of them, as it mostly is."""
    is_plain = not question.include and not question.exclude
    if is_plain and not may_repeat(listing.paths):
        return listing
    whole = Snapshot(listing.id, listing.make_files())
    return Listing.of(listing.id, get_selection(whole, question.include, question.exclude).chosen)


def _is_linked(choice: _Choice) -> bool:
    """Return whether every file has its link, and the link leads somewhere."""
    start = f"{choice.folder}/"
    for path in choice.chosen.paths:  # noqa: SIM110 - all() takes a third longer, hundreds of times
        if not os.access(start + path, os.F_OK):
            return False
    return True


def _measure(
    sizes: dict[str, int],
    presences: dict[BlobDigest, Presence],
    proven: dict[str, float],
    is_damaged: Callable[[BlobDigest], bool],
) -> Iterator[FileResidency]:
    """Iterate over the blobs of a question: those that want something, and the others."""
    for blob, presence in presences.items():
        size = sizes[str(blob)]
        yield FileResidency(size, presence.held_bytes, False, is_damaged=is_damaged(blob))
    wanting = {str(blob) for blob in presences}
    for text, size in sizes.items():
        if text not in wanting:
            yield FileResidency(size, size, True, proven[text])
