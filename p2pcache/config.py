"""
Owns the daemon's settings: one table of keys, how each is read, what makes one impossible.

Knows nothing of click and of running daemons; the environment comes in as a mapping.
Invariants: flags > environment > TOML file > defaults; HF_ENDPOINT is never read, since workers'
environments point it at us; what load_config() returns can be used without another check.
Source: design.md §8 (command line); docs/reference/config.md.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import urlsplit

from p2pcache.discovery.address import parse_host_port
from p2pcache.errors import ConfigError, InputError

LOCAL_DEFAULT = "127.0.0.1:7277"
LISTEN_DEFAULT = "0.0.0.0:7278"
HF_UPSTREAM_DEFAULT = "https://huggingface.co"
MS_UPSTREAM_DEFAULT = "https://modelscope.cn"
ENVIRONMENT_PREFIX = "P2PCACHE_"
# Settings are a dozen short lines; a larger file is another file, named by mistake.
FILE_BYTES_MAX = 1 << 20
# What is shared with peers is asked for again after an hour; a local answer is no older.
PUBLIC_TTL_S_MAX = 3600.0
# A grace bridges an outage of the hub. Longer than a day it would replace the hub's word.
OFFLINE_GRACE_S_MAX = 86_400.0

# Each has up to eight files on their way; more would only share the line in smaller pieces.
DOWNLOADS_MAX_MAX = 64

Kind = Literal["text", "list", "switch"]
Parsed = TypeVar("Parsed")

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")
_NAME_CHARS_MAX = 64  # core.messages.is_peer_name
_URL_BAD = re.compile(r"[^\x21-\x7e]|[\"<>\\^`{|}]")


@dataclass(frozen=True, slots=True)
class Setting:
    """One key: what a person can set, by which names, and why it has its default."""

    name: str
    metavar: str
    default_text: str
    help: str
    reason: str
    kind: Kind = "text"
    in_file: bool = True

    @property
    def environment(self) -> str:
        """Return the environment variable: P2PCACHE_HF_UPSTREAM."""
        return ENVIRONMENT_PREFIX + self.name.upper()

    @property
    def flag(self) -> str:
        """Return the command line's spelling: --hf-upstream."""
        return "--" + self.name.replace("_", "-")


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "name", "NAME", "this machine's host name",
        "What the other daemons call this one.",
        "People know host names; peers are told apart by their ids.",
    ),
    Setting(
        "store", "DIR", "p2pcache in the user's cache directory",
        "Folder that holds the models; made if it is missing.",
        "What is there can be fetched again, so it belongs where caches are.",
    ),
    Setting(
        "local", "HOST:PORT", LOCAL_DEFAULT,
        "Where programs on this machine ask; a loopback address, port 0 for a free one.",
        "Whoever reaches it may read what is public here, so it never leaves the machine.",
    ),
    Setting(
        "listen", "HOST:PORT", LISTEN_DEFAULT,
        "Where other daemons ask; port 0 for a free one.",
        "Peers connect from the network; without a key, private addresses alone are answered.",
    ),
    Setting(
        "peer", "HOST:PORT", "none",
        "A daemon to talk to, where mDNS does not reach. Repeatable; commas in the environment.",
        "On one LAN no list is needed.",
        kind="list",
    ),
    Setting(
        "discover", "mdns|none", "mdns",
        "How daemons find each other. Repeatable; commas in the environment.",
        "mDNS needs neither configuration nor a server.",
        kind="list",
    ),
    Setting(
        "hf_upstream", "URL", HF_UPSTREAM_DEFAULT,
        "The Hugging Face hub, or a mirror of it, that models come from.",
        "HF_ENDPOINT is not read: it names this daemon in the environment of its workers.",
    ),
    Setting(
        "ms_upstream", "URL", MS_UPSTREAM_DEFAULT,
        "The ModelScope hub that models named ms:org/name come from.",
        "MODELSCOPE_ENDPOINT is not read, for the same reason as HF_ENDPOINT.",
    ),
    Setting(
        "trust_peers", "", "off",
        "Believe what peers say about repositories, for a LAN without a hub.",
        "Bytes are proven in any case; which commit `main` is cannot be proven by digest.",
        kind="switch",
    ),
    Setting(
        "quota", "SIZE", "none",
        "How much of its disk the store may take, like 500GB or 1.5TiB; then the longest unused "
        "models go.",
        "A cache disk is there to be filled; --free-floor keeps it from being full.",
    ),
    Setting(
        "free_floor", "SIZE", "64MiB",
        "How much of its disk the store leaves free for everybody else.",
        "Enough for the index, logs and small files of programs on the same disk.",
    ),
    Setting(
        "upstream_limit", "RATE", "none",
        "What files may take of the line to the hub, like 200Mbit, 25MB/s or 25MiB.",
        "One copy per site comes from the hub, as fast as it can; say so where others need the "
        "line.",
    ),
    Setting(
        "download_limit", "RATE", "none",
        "What files may take on their way in, from the hub and from peers together.",
        "A model that is here sooner is one less to wait for.",
    ),
    Setting(
        "upload_limit", "RATE", "none",
        "What peers may take of this machine, all of them together; programs on it are not "
        "counted.",
        "What this machine sends, the hub does not have to.",
    ),
    Setting(
        "peer_limit", "RATE", "none",
        "What one peer may give, and what one address may take.",
        "On one LAN the switch shares fairly; on a slow link between two sites it does not.",
    ),
    Setting(
        "public_ttl", "DURATION", "1m",
        "How old the hub's word that something is public may be when a program here asks for it, "
        "like 90s or 10m; 1h at most, 0 asks each time.",
        "As long as it takes to notice that a branch moved; one request for a model and minute.",
    ),
    Setting(
        "offline_grace", "DURATION", "0s",
        "For how long after the hub let a caller in gated and private files are still given to "
        "that caller while the hub does not answer; 24h at most. Each use is logged and counted.",
        "Nobody can say whether the caller still may.",
    ),
    Setting(
        "downloads_max", "NUMBER", "8",
        "How many models are downloaded at once; the others wait, the highest priority first.",
        "Enough to keep a line full; a hundred at once would all come late.",
    ),
    Setting(
        "allow_path", "DIR", "none",
        "A folder that downloads may put files into, and all below it. Repeatable; commas in the "
        "environment.",
        "Whoever may order a download must not write anywhere else than into the store.",
        kind="list",
    ),
    Setting(
        "label", "KEY=VALUE", "none",
        "What orders of other daemons can choose this one by. Repeatable; commas in the "
        "environment.",
        "A name is enough for a few machines.",
        kind="list",
    ),
    Setting(
        "config", "FILE", "no file",
        "TOML file with these settings; underscores in its keys.",
        "No file is looked for: what a daemon runs with is what its start names.",
        in_file=False,
    ),
    Setting(
        "log_format", "text|json", "text",
        "How lines of the log look on standard error.",
        "People read it first; collectors ask for json.",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class GivenSetting:
    """What somebody set, before it is parsed, and where: `--local`, `P2PCACHE_LOCAL`, a file."""

    value: object
    origin: str


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """What a daemon runs with. `discover` holds "mdns" or is empty; port 0 picks a free port."""

    name: str
    store: Path
    local: tuple[str, int]
    listen: tuple[str, int]
    peers: tuple[str, ...]
    discover: tuple[str, ...]
    hf_upstream: str
    trust_peers: bool
    quota_bytes: int | None
    free_floor_bytes: int
    upstream_limit_bps: int | None
    download_limit_bps: int | None
    upload_limit_bps: int | None
    peer_limit_bps: int | None
    log_format: str
    ms_upstream: str = MS_UPSTREAM_DEFAULT
    public_ttl_s: float = 60.0
    offline_grace_s: float = 0.0
    downloads_max: int = 8
    allow_paths: tuple[Path, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()


def load_config(flags: Mapping[str, object], environment: Mapping[str, str]) -> DaemonConfig:
    """
    Put the settings together and check them.

    Args:
        flags: By Setting.name; None, False and empty sequences count as not given.
        environment: P2PCACHE_* of it; empty variables count as not given.

    Raises:
        ConfigError: A setting that cannot work; the sentence says where it was made.
    """
    given = collect_settings(flags, environment)
    local = _parse(given["local"], _parse_local)
    listen = _parse(given["listen"], _parse_endpoint)
    hf_upstream = _parse(given["hf_upstream"], _parse_hf_upstream)
    ms_upstream = _parse(given["ms_upstream"], _parse_ms_upstream)
    _check_distinct(local, listen, given["listen"].origin)
    _check_no_loop(local, hf_upstream, given["hf_upstream"].origin, HF_UPSTREAM_DEFAULT)
    _check_no_loop(local, ms_upstream, given["ms_upstream"].origin, MS_UPSTREAM_DEFAULT)
    return DaemonConfig(
        name=_parse(given["name"], _parse_name),
        store=_parse(given["store"], _parse_path),
        local=local,
        listen=listen,
        peers=_parse(given["peer"], _parse_peers),
        discover=_parse(given["discover"], _parse_discover),
        hf_upstream=hf_upstream,
        trust_peers=_parse(given["trust_peers"], _parse_switch),
        quota_bytes=_parse(given["quota"], _parse_quota),
        free_floor_bytes=_parse(given["free_floor"], _parse_size),
        upstream_limit_bps=_parse(given["upstream_limit"], _parse_rate),
        download_limit_bps=_parse(given["download_limit"], _parse_rate),
        upload_limit_bps=_parse(given["upload_limit"], _parse_rate),
        peer_limit_bps=_parse(given["peer_limit"], _parse_rate),
        log_format=_parse(given["log_format"], _parse_log_format),
        ms_upstream=ms_upstream,
        public_ttl_s=_parse(given["public_ttl"], _parse_public_ttl),
        offline_grace_s=_parse(given["offline_grace"], _parse_offline_grace),
        downloads_max=_parse(given["downloads_max"], _parse_downloads_max),
        allow_paths=_parse(given["allow_path"], _parse_paths),
        labels=_parse(given["label"], _parse_labels),
    )


def collect_settings(
    flags: Mapping[str, object], environment: Mapping[str, str]
) -> dict[str, GivenSetting]:
    """
    Choose the source that wins for every setting, by name.

    Raises:
        ConfigError: The file cannot be read, or has a key that is none.
    """
    given = {
        setting.name: GivenSetting(_default_of(setting), "default")
        for setting in SETTINGS
        if setting.in_file
    }
    above = _from_environment(environment) | _from_flags(flags)
    config = above.pop("config", None)
    if config is not None:
        given |= _from_file(_parse(config, _parse_path), config.origin)
    return given | above


def default_store() -> Path:
    """Return the store of a user who named none."""
    import platformdirs

    return platformdirs.user_cache_path("p2pcache")


def default_name(host_name: str | None = None) -> str:
    """Return the host's name as far as a peer's name can hold it."""
    text = socket.gethostname() if host_name is None else host_name
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip("._-")[:_NAME_CHARS_MAX]
    return kept.rstrip("._-") or "peer"


def _default_of(setting: Setting) -> object:
    computed: dict[str, Callable[[], object]] = {
        "name": default_name,
        "store": lambda: str(default_store()),
        "peer": tuple,
        "allow_path": tuple,
        "label": tuple,
        "trust_peers": bool,
    }
    make = computed.get(setting.name)
    return setting.default_text if make is None else make()


def _from_flags(flags: Mapping[str, object]) -> dict[str, GivenSetting]:
    known = {setting.name: setting for setting in SETTINGS}
    return {
        name: GivenSetting(value, known[name].flag)
        for name, value in flags.items()
        if value is not None and value is not False and value != () and value != []
    }


def _from_environment(environment: Mapping[str, str]) -> dict[str, GivenSetting]:
    return {
        setting.name: GivenSetting(environment[setting.environment], setting.environment)
        for setting in SETTINGS
        if environment.get(setting.environment, "").strip()
    }


def _from_file(path: Path, origin: str) -> dict[str, GivenSetting]:
    import tomllib

    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
        if len(content) > FILE_BYTES_MAX:
            raise ConfigError(f"{path} is too large for a file of settings; check {origin}.")
        table = tomllib.loads(content.decode())
    except OSError as error:
        raise ConfigError(
            f"The file of settings {path} cannot be read ({error.strerror}); check {origin}."
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path} is not TOML ({error}); correct that line.") from error
    names = [setting.name for setting in SETTINGS if setting.in_file]
    given = {}
    for name, value in table.items():
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"{path} sets {name[:80]!r}, which is no setting; the nearest one is {near}."
            )
        if name == "store" and isinstance(value, str):
            # A service has no current directory that anybody thinks of; a file has a place.
            value = os.path.join(path.parent, os.path.expanduser(value))
        given[name] = GivenSetting(value, f"{name} in {path}")
    return given


def _parse(given: GivenSetting, parse: Callable[[object], Parsed]) -> Parsed:
    """Parse one setting; an error says where it was made."""
    try:
        return parse(given.value)
    except InputError as error:
        raise ConfigError(f"{given.origin}: {error}") from error


def _text_of(value: object) -> str:
    if not isinstance(value, str):
        raise InputError(f"{str(value)[:80]!r} is not text; put it in quotes.")
    return value.strip()


def _parse_name(value: object) -> str:
    # Here, not above: what --help needs has to load fast, and this brings the digests along.
    from p2pcache.core.messages import is_peer_name

    text = _text_of(value)
    if not is_peer_name(text):
        raise InputError(
            f"{text[:80]!r} cannot name a peer; use letters, digits, '.', '_' and '-', 64 at most."
        )
    return text


def _parse_path(value: object) -> Path:
    text = _text_of(str(value) if isinstance(value, Path) else value)
    if not text or not text.isprintable():
        raise InputError(f"{text[:80]!r} is not a path; write one without line breaks.")
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:
        raise InputError(f"{text[:80]!r} names no user's home; write the whole path.") from error


def _parse_endpoint(value: object) -> tuple[str, int]:
    text = _text_of(value)
    # Port 0 lets the system choose when we listen; as the address of a peer it means nothing.
    if text.endswith(":0"):
        return parse_host_port(text[:-1] + "1")[0], 0
    return parse_host_port(text)


def _parse_local(value: object) -> tuple[str, int]:
    host, port = _parse_endpoint(value)
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


def _parse_peers(value: object) -> tuple[str, ...]:
    entries = _list_of(value)
    for entry in entries:
        parse_host_port(entry)
    return tuple(entries)


def _parse_discover(value: object) -> tuple[str, ...]:
    entries = _list_of(value)
    for entry in entries:
        if entry.startswith("dns:"):
            raise InputError(f"{entry[:80]!r} is not built yet; name the peers with --peer.")
        if entry not in ("mdns", "none"):
            raise InputError(f"{entry[:80]!r} is no way to find peers; use mdns or none.")
    if "none" in entries and len(entries) > 1:
        raise InputError("'none' stands alone; leave it out, or leave out the others.")
    return tuple(entry for entry in entries if entry != "none")


def _parse_hf_upstream(value: object) -> str:
    return _parse_upstream(value, HF_UPSTREAM_DEFAULT)


def _parse_ms_upstream(value: object) -> str:
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


def _parse_switch(value: object) -> bool:
    if isinstance(value, bool):
        return value
    text = value.strip().lower() if isinstance(value, str) else ""
    if text not in (*_TRUE, *_FALSE):
        raise InputError(f"{str(value)[:80]!r} is neither on nor off; use true or false.")
    return text in _TRUE


def _parse_size(value: object) -> int:
    # Here, not above: what --help needs has to load fast.
    from p2pcache.core.sizes import parse_size

    is_number = isinstance(value, int) and not isinstance(value, bool)
    return parse_size(str(value) if is_number else _text_of(value))


def _parse_quota(value: object) -> int | None:
    if isinstance(value, str) and value.strip().lower() == "none":
        return None
    size_bytes = _parse_size(value)
    if not size_bytes:
        raise InputError("A quota of nothing leaves room for nothing; write a size, or none.")
    return size_bytes


def _parse_rate(value: object) -> int | None:
    # Here, not above: what --help needs has to load fast.
    from p2pcache.core.rates import parse_rate

    is_number = isinstance(value, int) and not isinstance(value, bool)
    return parse_rate(str(value) if is_number else _text_of(value))


def _parse_public_ttl(value: object) -> float:
    return _parse_duration(value, PUBLIC_TTL_S_MAX)


def _parse_offline_grace(value: object) -> float:
    return _parse_duration(value, OFFLINE_GRACE_S_MAX)


def _parse_duration(value: object, s_max: float) -> float:
    # Here, not above: what --help needs has to load fast.
    from p2pcache.core.durations import parse_duration

    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return parse_duration(str(value) if is_number else _text_of(value), s_max=s_max)


def _parse_downloads_max(value: object) -> int:
    text = str(value) if type(value) is int else _text_of(value)
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text[:9]) <= DOWNLOADS_MAX_MAX:
        raise InputError(f"{text[:40]!r} is not a number from 1 to {DOWNLOADS_MAX_MAX}.")
    return int(text)


def _parse_paths(value: object) -> tuple[Path, ...]:
    return tuple(dict.fromkeys(_parse_path(entry) for entry in _list_of(value)))


def _parse_labels(value: object) -> tuple[tuple[str, str], ...]:
    from p2pcache.core.workers import LABELS_MAX, parse_label

    labels = dict(parse_label(entry) for entry in _list_of(value))
    if len(labels) > LABELS_MAX:
        raise InputError(f"{len(labels)} labels are more than the {LABELS_MAX} that there may be.")
    return tuple(sorted(labels.items()))


def _parse_log_format(value: object) -> str:
    text = _text_of(value)
    if text not in ("text", "json"):
        raise InputError(f"{text[:80]!r} is no format of the log; use text or json.")
    return text


def _check_distinct(local: tuple[str, int], listen: tuple[str, int], origin: str) -> None:
    """Refuse two endpoints that could not both be bound, before one of them fails to."""
    if local[1] == listen[1] != 0 and listen[0] in (local[0], "0.0.0.0", "::", "localhost"):  # noqa: S104
        raise ConfigError(
            f"{origin}: the local and the peer endpoint both use port {local[1]}; "
            "give one of them another port."
        )


def _check_no_loop(local: tuple[str, int], upstream: str, origin: str, example: str) -> None:
    """Refuse an upstream that is this daemon: every request would come back to it."""
    parts = urlsplit(upstream)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    names = {local[0], "localhost"} if local[0] in ("127.0.0.1", "::1") else {local[0]}
    if port == local[1] and parts.hostname in names:
        raise ConfigError(
            f"{origin}: {upstream} is this daemon's own local endpoint; "
            f"name the hub, for example {example}."
        )
