"""
Owns how people write rates: 200Mbit, 25MB/s, 25MiB, plain bytes per second.

Knows nothing of what is limited.
Invariants: bits and bytes are told apart by the word, never by the case of one letter; a rate is a
whole number of bytes per second.
Source: IEC 80000-13; operators are sold lines in Mbit/s and disks in MB/s.
"""

from __future__ import annotations

import re
from fractions import Fraction

from p2pcache.errors import InputError

# Beyond any network card; keeps arithmetic with what somebody typed small.
RATE_BPS_MAX = 1 << 40
# 1 Mbit/s. Peers take a sender of less than half of this for dead, and a chunk of 4 MiB would
# take longer than clients wait for one.
RATE_BPS_MIN = 125_000
_RATE = re.compile(
    r"(\d{1,13}(?:\.\d{1,9})?) ?(?:([kmgt]?)(i?)(bit|B)(?:/s)?)?", re.ASCII | re.IGNORECASE
)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_rate(text: str) -> int | None:
    """
    Read a rate in bytes per second; None for no limit, which is written `none` or 0.

    Raises:
        InputError: It is none, or one that could be read in two ways, like `200Mb`.
    """
    shown = text.strip()
    if shown.lower() == "none":
        return None
    found = _RATE.fullmatch(shown)
    if found is None or (found[3] and not found[2]) or found[4] == "b":
        raise InputError(
            f"{text[:80]!r} is not a rate; write it like 200Mbit, 25MB/s or 25MiB, or none."
        )
    step = 1024 if found[3] else 1000
    amount = Fraction(found[1]) * step ** _POWERS[(found[2] or "").lower()]
    rate_bps = int(amount / 8 if (found[4] or "").lower() == "bit" else amount)
    if not amount:
        return None
    if rate_bps < RATE_BPS_MIN:
        raise InputError(
            f"{text[:80]!r} is less than 1Mbit, at which peers and clients give up; write more, "
            "or none."
        )
    if rate_bps > RATE_BPS_MAX:
        raise InputError(f"{text[:80]!r} is more than any network carries; check the unit.")
    return rate_bps
