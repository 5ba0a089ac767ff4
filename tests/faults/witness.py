"""
Owns hearing what the store calls durable, at the moment when it does, and telling it.

Knows nothing of what is done with it.
Invariants: a promise is told after the call that made it returned; taking back is told before
the call that does it begins.
Source: store/base.py: what flush(), publish() and forget() promise.
"""

from __future__ import annotations

from typing import Any

from p2pcache.core.digest import BlobDigest
from p2pcache.core.verify import BlobProof
from p2pcache.store.base import FileStamp, PartialBlob
from p2pcache.store.blobs import FileBlobStore
from p2pcache.store.partial import FilePartial
from tests.faults.child import Channel


def watch(channel: Channel) -> None:
    """Begin to tell, in this process. For good."""
    _watch_partial(channel)
    _watch_store(channel)


def _watch_partial(channel: Channel) -> None:
    flush, forget, poison = FilePartial.flush, FilePartial.forget, FilePartial._poison

    def watched_flush(self: FilePartial) -> None:
        before = self.snapshot()
        flush(self)
        now = self.snapshot().have
        digests = {index: before.table.find(index) for index in before.have if index in now}
        chunks = {index: digest.raw.hex() for index, digest in digests.items() if digest}
        channel.tell("durable", name=str(self.blob), chunks=chunks)

    def watched_forget(self: FilePartial, chunk_indexes: list[int]) -> None:
        channel.tell("void", name=str(self.blob), chunks=list(chunk_indexes))
        forget(self, chunk_indexes)

    def watched_poison(self: FilePartial) -> None:
        channel.tell("void", name=str(self.blob), chunks=None)
        poison(self)

    replacements: dict[str, Any] = {
        "flush": watched_flush,
        "forget": watched_forget,
        "_poison": watched_poison,
    }
    for name, replacement in replacements.items():
        setattr(FilePartial, name, replacement)


def _watch_store(channel: Channel) -> None:
    publish, discard = FileBlobStore.publish, FileBlobStore.discard

    def watched_publish(
        self: FileBlobStore, partial: PartialBlob, proof: BlobProof, *, is_public: bool
    ) -> FileStamp:
        stamp = publish(self, partial, proof, is_public=is_public)
        channel.tell("published", name=str(partial.blob))
        return stamp

    def watched_discard(
        self: FileBlobStore, blob: BlobDigest, *, partial_only: bool = True
    ) -> None:
        if not partial_only:
            channel.tell("withdrawn", name=str(blob))
        discard(self, blob, partial_only=partial_only)

    replacements: dict[str, Any] = {"publish": watched_publish, "discard": watched_discard}
    for name, replacement in replacements.items():
        setattr(FileBlobStore, name, replacement)
