"""
Owns how people write sizes: 500GB, 1.5TiB, plain bytes.

Knows nothing of what is measured.
Invariants: a size is a whole number of bytes, never negative; powers of 1000 and of 1024 are told
apart, as disks and memory are sold.
Source: IEC 80000-13 (kB, KiB).
"""

from __future__ import annotations

import re
from fractions import Fraction

from p2pcache.errors import InputError

# Beyond any file system; keeps arithmetic with what somebody typed small.
SIZE_BYTES_MAX = 1 << 60
_SIZE = re.compile(r"(\d{1,19}(?:\.\d{1,18})?) ?([kmgtp]?)(i?)(b?)", re.ASCII | re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


def parse_size(text: str) -> int:
    """
    Read a size; a unit without `i` counts in thousands, a fraction of a byte is dropped.

    Raises:
        InputError: It is none, or beyond any disk.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None or (found[3] and not found[2]):
        raise InputError(f"{text[:80]!r} is not a size; write it like 500GB, 1.5TiB or 1000000.")
    step = 1024 if found[3] else 1000
    size_bytes = int(Fraction(found[1]) * step ** _POWERS[found[2].lower()])
    if size_bytes > SIZE_BYTES_MAX:
        raise InputError(f"{text[:80]!r} is more than any disk has; check the unit.")
    return size_bytes
