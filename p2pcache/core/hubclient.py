"""
Owns what a User-Agent tells of a hub client, and how such a client can be given a very large file.

Knows nothing of HTTP handlers.
Invariants: who cannot be told apart is served like everybody.
Source: huggingface_hub's releases (MAX_HTTP_DOWNLOAD_SIZE since 0.31, unsized HEAD since 1.31);
docs/reference/hub-dialect.md.
"""

from __future__ import annotations

import re
from enum import StrEnum

# What huggingface_hub refuses to fetch over plain HTTP, when it knows the size beforehand.
PLAIN_HTTP_BYTES_MAX = 50_000_000_000
# First releases, as (major, minor): with that refusal; that take the size from the GET.
REFUSING_SINCE = (0, 31)
UNSIZED_SINCE = (1, 31)
_RELEASE = re.compile(r"(?:^|[\s;])hf_hub/(\d{1,4})\.(\d{1,4})", re.ASCII)


class HeadForm(StrEnum):
    """How a HEAD of a file is answered."""

    SIZED = "sized"
    # Without a length: the client takes it from the GET.
    UNSIZED = "unsized"
    # The client would refuse the file itself, with advice that leads nowhere here.
    REFUSED = "refused"


def find_client_release(user_agent: str) -> tuple[int, int] | None:
    """Return (major, minor) of the huggingface_hub that asks; None for other programs."""
    match = _RELEASE.search(user_agent[:4096])
    return None if match is None else (int(match[1]), int(match[2]))


def choose_head_form(user_agent: str, size_bytes: int) -> HeadForm:
    """Decide how to answer the HEAD of a file of that size for this client."""
    release = find_client_release(user_agent)
    if size_bytes <= PLAIN_HTTP_BYTES_MAX or release is None or release < REFUSING_SINCE:
        return HeadForm.SIZED
    return HeadForm.UNSIZED if release >= UNSIZED_SINCE else HeadForm.REFUSED
