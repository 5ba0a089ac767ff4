"""
Owns how the value of each setting is read, and what makes one impossible.

Knows nothing of where a value was given: flag, variable and file give texts, a file other types.
Invariants: what is returned can be used without another check; a sentence says how to write it.
Source: design.md §8 (command line); docs/reference/config.md.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from urllib.parse import urlsplit

from p2pcache.config.settings import HF_UPSTREAM_DEFAULT, LOCAL_DEFAULT, MS_UPSTREAM_DEFAULT
from p2pcache.discovery.address import parse_host_port
from p2pcache.errors import InputError

# What is shared with peers is asked for again after an hour; a local answer is no older.
PUBLIC_TTL_S_MAX = 3600.0
# A grace bridges an outage of the hub. Longer than a day it would replace the hub's word.
OFFLINE_GRACE_S_MAX = 86_400.0
# Each has up to eight files on their way; more would only share the line in smaller pieces.
DOWNLOADS_MAX_MAX = 64

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")
_URL_BAD = re.compile(r"[^\x21-\x7e]|[\"<>\\^`{|}]")


def _text_of(value: object) -> str:
    if not isinstance(value, str):
        raise InputError(f"{str(value)[:80]!r} is not text; put it in quotes.")
    return value.strip()


def parse_name(value: object) -> str:
    """Read what other daemons call this one."""
    # Here, not above: what --help needs has to load fast, and this brings the digests along.
    from p2pcache.core.messages import is_peer_name

    text = _text_of(value)
    if not is_peer_name(text):
        raise InputError(
            f"{text[:80]!r} cannot name a peer; use letters, digits, '.', '_' and '-', 64 at most."
        )
    return text


def parse_path(value: object) -> Path:
    """Read a path; `~` is the user's home, the current directory counts."""
    text = _text_of(str(value) if isinstance(value, Path) else value)
    if not text or not text.isprintable():
        raise InputError(f"{text[:80]!r} is not a path; write one without line breaks.")
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:
        raise InputError(f"{text[:80]!r} names no user's home; write the whole path.") from error


def parse_endpoint(value: object) -> tuple[str, int]:
    """Read where to listen, as (host, port)."""
    text = _text_of(value)
    # Port 0 lets the system choose when we listen; as the address of a peer it means nothing.
    if text.endswith(":0"):
        return parse_host_port(text[:-1] + "1")[0], 0
    return parse_host_port(text)


def parse_local(value: object) -> tuple[str, int]:
    """Read where programs of this machine ask: a loopback address."""
    host, port = parse_endpoint(value)
    if host.lower().rstrip(".") == "localhost":
        return "127.0.0.1", port
    if not _is_loopback(host):
        raise InputError(
            f"{host[:80]!r} is not a loopback address, and the local endpoint serves this machine "
            f"alone; use {LOCAL_DEFAULT} (peers connect to --listen)."
        )
    return str(ipaddress.ip_address(host)), port


def _is_loopback(host: str) -> bool:
    """Tell whether host is in 127.0.0.0/8 or is ::1; other spellings of them do not count."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback if address.version == 4 else str(address) == "::1"


def _list_of(value: object) -> list[str]:
    entries = value.split(",") if isinstance(value, str) else value
    if not isinstance(entries, list | tuple):
        raise InputError(f"{str(value)[:80]!r} is not a list of texts; write it in brackets.")
    texts = (_text_of(entry) for entry in entries)
    return list(dict.fromkeys(text for text in texts if text))


def parse_peers(value: object) -> tuple[str, ...]:
    """Read the addresses of daemons to talk to."""
    entries = _list_of(value)
    for entry in entries:
        parse_host_port(entry)
    return tuple(entries)


def parse_discover(value: object) -> tuple[str, ...]:
    """Read how daemons find each other; nothing for `none`."""
    entries = _list_of(value)
    for entry in entries:
        if entry.startswith("dns:"):
            raise InputError(f"{entry[:80]!r} is not built yet; name the peers with --peer.")
        if entry not in ("mdns", "none"):
            raise InputError(f"{entry[:80]!r} is no way to find peers; use mdns or none.")
    if "none" in entries and len(entries) > 1:
        raise InputError("'none' stands alone; leave it out, or leave out the others.")
    return tuple(entry for entry in entries if entry != "none")


def parse_hf_upstream(value: object) -> str:
    """Read the address of the Hugging Face hub."""
    return _parse_upstream(value, HF_UPSTREAM_DEFAULT)


def parse_ms_upstream(value: object) -> str:
    """Read the address of the ModelScope hub."""
    return _parse_upstream(value, MS_UPSTREAM_DEFAULT)


def _parse_upstream(value: object, example: str) -> str:
    text = _text_of(value).rstrip("/")
    shown = repr(re.sub(r"//[^/]*@", "//***@", text)[:120])
    advice = f"write it like {example}"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise InputError(f"{shown} is not a URL; {advice}.") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or _URL_BAD.search(text):
        raise InputError(f"{shown} is not an http or https URL; {advice}.")
    if port == 0:
        raise InputError(f"{shown} has port 0; {advice}.")
    if "@" in parts.netloc:
        raise InputError(f"{shown} holds credentials; leave them out, callers bring their token.")
    if "?" in text or "#" in text:
        raise InputError(f"{shown} has a query or a fragment; {advice}.")
    return text


def parse_switch(value: object) -> bool:
    """Read whether something is on."""
    if isinstance(value, bool):
        return value
    text = value.strip().lower() if isinstance(value, str) else ""
    if text not in (*_TRUE, *_FALSE):
        raise InputError(f"{str(value)[:80]!r} is neither on nor off; use true or false.")
    return text in _TRUE


def parse_size(value: object) -> int:
    """Read a number of bytes."""
    # Here, not above: what --help needs has to load fast.
    from p2pcache.core import sizes

    is_number = isinstance(value, int) and not isinstance(value, bool)
    return sizes.parse_size(str(value) if is_number else _text_of(value))


def parse_quota(value: object) -> int | None:
    """Read how much the store may take; None for no limit."""
    if isinstance(value, str) and value.strip().lower() == "none":
        return None
    size_bytes = parse_size(value)
    if not size_bytes:
        raise InputError("A quota of nothing leaves room for nothing; write a size, or none.")
    return size_bytes


def parse_rate(value: object) -> int | None:
    """Read bytes per second; None for no limit."""
    # Here, not above: what --help needs has to load fast.
    from p2pcache.core import rates

    is_number = isinstance(value, int) and not isinstance(value, bool)
    return rates.parse_rate(str(value) if is_number else _text_of(value))


def parse_public_ttl(value: object) -> float:
    """Read how old the word that something is public may be."""
    return _parse_duration(value, PUBLIC_TTL_S_MAX)


def parse_offline_grace(value: object) -> float:
    """Read for how long an outage of the hub is bridged."""
    return _parse_duration(value, OFFLINE_GRACE_S_MAX)


def _parse_duration(value: object, s_max: float) -> float:
    # Here, not above: what --help needs has to load fast.
    from p2pcache.core import durations

    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return durations.parse_duration(str(value) if is_number else _text_of(value), s_max=s_max)


def parse_downloads_max(value: object) -> int:
    """Read how many models are downloaded at once."""
    text = str(value) if type(value) is int else _text_of(value)
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text[:9]) <= DOWNLOADS_MAX_MAX:
        raise InputError(f"{text[:40]!r} is not a number from 1 to {DOWNLOADS_MAX_MAX}.")
    return int(text)


def parse_paths(value: object) -> tuple[Path, ...]:
    """Read folders, each once."""
    return tuple(dict.fromkeys(parse_path(entry) for entry in _list_of(value)))


def parse_labels(value: object) -> tuple[tuple[str, str], ...]:
    """Read labels, in order of their keys."""
    from p2pcache.core.workers import LABELS_MAX, parse_label

    labels = dict(parse_label(entry) for entry in _list_of(value))
    if len(labels) > LABELS_MAX:
        raise InputError(f"{len(labels)} labels are more than the {LABELS_MAX} that there may be.")
    return tuple(sorted(labels.items()))


def parse_log_format(value: object) -> str:
    """Read how lines of the log look."""
    text = _text_of(value)
    if text not in ("text", "json"):
        raise InputError(f"{text[:80]!r} is no format of the log; use text or json.")
    return text
