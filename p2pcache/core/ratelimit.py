"""
Owns how a hub's words about its limits are read: Retry-After, RateLimit and its older forms.

Knows nothing of clocks and of who asks; an answer's own Date says what time it is there.
Invariants: any header gives a bounded reading or none, never an error; a pause is 0 to
RETRY_AFTER_S_MAX.
Source: RFC 9110 §10.2.3; draft-ietf-httpapi-ratelimit-headers (-10 `"api";r=0;t=55`, -07
`limit=9, remaining=0, reset=55`, -06 RateLimit-Remaining); the X- fields that came before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

# A hub that asks for a longer pause is asked again then; the window of the real one is as long.
RETRY_AFTER_S_MAX = 300.0
# A hub names a handful of quotas in some hundred characters; more is not read.
HEADER_CHARS_MAX = 2048
QUOTAS_MAX = 16
# Enough for any count; keeps arithmetic with what a header says small.
_DIGITS_MAX = 12
# "Wednesday, 21-Oct-2015 07:28:00 GMT" is the longest form, with some room.
_DATE_CHARS_MAX = 64
# What RateLimit-Reset counts beyond this are seconds since 1970, as some servers send them.
_EPOCH_S_MIN = 1_000_000_000
_ITEM = re.compile(r'[^",]*"[^"]*"[^,]*|[^,]+', re.ASCII)
_NAME = re.compile(r'"([^"]{0,64})"|([A-Za-z*][\w.*-]{0,64})', re.ASCII)
_LEADING_NAME = re.compile(rf"\s*(?:{_NAME.pattern})\s*(?:;|$)", re.ASCII)
_NUMBER = re.compile(rf"\d{{1,{_DIGITS_MAX}}}", re.ASCII)
_OLD_PREFIXES = ("ratelimit-", "x-ratelimit-")


@dataclass(frozen=True, slots=True)
class Quota:
    """
    What a hub says is left. `quota` is how much there is in a window, None if it did not say;
    `reset_s` is when all of it is there again, None likewise.
    """

    name: str
    remaining: int
    reset_s: float | None = None
    quota: int | None = None


def parse_retry_after(text: str | None, date: str | None = None) -> float | None:
    """
    Return the seconds of a Retry-After header, within our limit; None for none or nonsense.

    Args:
        text: Seconds, or a date.
        date: The answer's Date header, which a date is compared with: our clock may be wrong.
    """
    text = (text or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[: _DIGITS_MAX + 1]), RETRY_AFTER_S_MAX)
    until_s, now_s = _parse_date(text), _parse_date(date or "")
    if until_s is None or now_s is None:
        return None
    return min(max(0.0, until_s - now_s), RETRY_AFTER_S_MAX)


def read_quotas(headers: Mapping[str, str]) -> tuple[Quota, ...]:
    """Return what an answer says is left, in its order; () for nothing that can be read."""
    fields = {
        name.lower(): text
        for name, text in headers.items()
        if "ratelimit" in name.lower() and len(text) <= HEADER_CHARS_MAX
    }
    if "ratelimit" in fields:
        items = _split(fields["ratelimit"])
        sizes = _read_policies(fields.get("ratelimit-policy", ""))
        found = [_read_item(item, sizes) for item in items]
        quotas = [quota for quota in found if quota is not None]
        return tuple(quotas) if quotas else _read_dictionary(items)
    for prefix in _OLD_PREFIXES:
        if f"{prefix}remaining" in fields:
            return _read_old(fields, prefix, _find(headers, "date"))
    return ()


def find_pause_s(headers: Mapping[str, str]) -> float | None:
    """
    Return how long an answer that refuses asks us to wait; None if it does not say.

    Retry-After counts before RateLimit, as the draft has it; of several quotas that are used up,
    the one that takes longest.
    """
    asked_s = parse_retry_after(_find(headers, "retry-after"), _find(headers, "date"))
    if asked_s is not None:
        return asked_s
    resets = [
        quota.reset_s
        for quota in read_quotas(headers)
        if not quota.remaining and quota.reset_s is not None
    ]
    return min(max(resets), RETRY_AFTER_S_MAX) if resets else None


def _find(headers: Mapping[str, str], name: str) -> str | None:
    """Return a header whatever its spelling."""
    return next((text for key, text in headers.items() if key.lower() == name), None)


def _parse_date(text: str) -> float | None:
    """Read an HTTP date in any of its three forms; one without a zone is in GMT."""
    try:
        date = parsedate_to_datetime(text if len(text) <= _DATE_CHARS_MAX else "")
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _split(text: str) -> list[str]:
    """Split a list of structured fields at commas outside quotes."""
    return [item.strip() for item in _ITEM.findall(text) if item.strip()][:QUOTAS_MAX]


def _parameters(text: str) -> dict[str, int]:
    """Read `;r=0;t=55`; the first of each name counts, what is no number is left out."""
    found: dict[str, int] = {}
    for part in text.split(";"):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if equals and _NUMBER.fullmatch(value):
            found.setdefault(name.lower(), int(value))
    return found


def _read_item(item: str, sizes: Mapping[str, int]) -> Quota | None:
    """Read `"api";r=0;t=55`."""
    name = _NAME.match(item)
    if name is None:
        return None
    parameters = _parameters(item[name.end() :])
    if "r" not in parameters:
        return None
    shown = name[1] if name[1] is not None else name[2]
    return Quota(shown, parameters["r"], _reset_of(parameters.get("t")), sizes.get(shown))


def _read_policies(text: str) -> dict[str, int]:
    """Read `"api";q=500;w=300`; the real hub puts the kind of window before the name."""
    sizes: dict[str, int] = {}
    for item in _split(text):
        name, rest = None, item
        while (found := _LEADING_NAME.match(rest)) is not None:
            name, rest = found[1] if found[1] is not None else found[2], rest[found.end() :]
        quota = _parameters(rest).get("q")
        if name is not None and quota is not None:
            sizes.setdefault(name, quota)
    return sizes


def _read_dictionary(items: list[str]) -> tuple[Quota, ...]:
    """Read `limit=9, remaining=0, reset=55`."""
    parameters = _parameters(";".join(items))
    if "remaining" not in parameters:
        return ()
    reset_s = _reset_of(parameters.get("reset"))
    return (Quota("", parameters["remaining"], reset_s, parameters.get("limit")),)


def _read_old(fields: Mapping[str, str], prefix: str, date: str | None) -> tuple[Quota, ...]:
    """Read RateLimit-Remaining and its companions, each with a number per window."""
    columns = [
        [
            int(text) if _NUMBER.fullmatch(text) else None
            for text in (item.partition(";")[0].strip() for item in _split(fields.get(name, "")))
        ]
        for name in (f"{prefix}remaining", f"{prefix}reset", f"{prefix}limit")
    ]
    quotas = []
    for n, remaining in enumerate(columns[0]):
        if remaining is None:
            continue
        reset, limit = (column[n] if n < len(column) else None for column in columns[1:])
        quotas.append(Quota("", remaining, _reset_of(reset, date), limit))
    return tuple(quotas)


def _reset_of(seconds: int | None, date: str | None = None) -> float | None:
    """Return when a window ends, in seconds from now, within our limit."""
    if seconds is None:
        return None
    if seconds >= _EPOCH_S_MIN:
        now_s = _parse_date(date or "")
        if now_s is None:
            return None
        return min(max(0.0, seconds - now_s), RETRY_AFTER_S_MAX)
    return min(float(seconds), RETRY_AFTER_S_MAX)
