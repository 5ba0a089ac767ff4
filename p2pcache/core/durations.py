"""
Owns how people write durations: 90s, 10m, 1.5h, plain seconds.

Knows nothing of what takes so long.
Invariants: a duration is finite, not negative, and within what its setting allows.
Source: the forms of Go's ParseDuration and systemd.time that operators type from habit.
"""

from __future__ import annotations

import re

from p2pcache.errors import InputError

_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,6})?) ?([smhd]?)", re.ASCII | re.IGNORECASE)
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def parse_duration(text: str, *, s_max: float) -> float:
    """
    Read a duration in seconds.

    Args:
        text: A number with s, m, h or d; plain seconds without.
        s_max: The longest that is allowed.

    Raises:
        InputError: It is none, or a longer one.
    """
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise InputError(f"{text[:80]!r} is not a duration; write it like 90s, 10m or 1h.")
    seconds = float(found[1]) * _SECONDS[found[2].lower()]
    if seconds > s_max:
        raise InputError(f"{text[:80]!r} is too long; at most {s_max / 3600:g}h is allowed.")
    return seconds
