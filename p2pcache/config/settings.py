"""
Owns the table of settings: what a person can set, by which names, and why it has its default.

Knows nothing of values: how they are read is in values.py, where they come from in given.py.
Invariants: a setting has one name, and its flag, variable and key of a file follow from that.
Source: design.md §8 (command line); docs/reference/config.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LOCAL_DEFAULT = "127.0.0.1:7277"
LISTEN_DEFAULT = "0.0.0.0:7278"
HF_UPSTREAM_DEFAULT = "https://huggingface.co"
MS_UPSTREAM_DEFAULT = "https://modelscope.cn"
ENVIRONMENT_PREFIX = "P2PCACHE_"

Kind = Literal["text", "list", "switch"]


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
