"""
Owns which source wins for each setting: what was given, and where.

Knows nothing of what values mean, but for the path of the file that holds others.
Invariants: flags > environment > TOML file > defaults; HF_ENDPOINT is never read, since workers'
environments point it at us; the environment comes in as a mapping.
Source: design.md §8 (command line); docs/reference/config.md.
"""

from __future__ import annotations

import difflib
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from p2pcache.config.settings import SETTINGS, Setting
from p2pcache.config.values import parse_path
from p2pcache.errors import ConfigError, InputError

# Settings are a dozen short lines; a larger file is another file, named by mistake.
FILE_BYTES_MAX = 1 << 20
_NAME_CHARS_MAX = 64  # core.messages.is_peer_name

Parsed = TypeVar("Parsed")


@dataclass(frozen=True, slots=True)
class GivenSetting:
    """What somebody set, before it is parsed, and where: `--local`, `P2PCACHE_LOCAL`, a file."""

    value: object
    origin: str

    def parse(self, parse: Callable[[object], Parsed]) -> Parsed:
        """
        Parse what was given.

        Raises:
            ConfigError: It cannot be; the sentence says where it was given.
        """
        try:
            return parse(self.value)
        except InputError as error:
            raise ConfigError(f"{self.origin}: {error}") from error


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
        given |= _from_file(config.parse(parse_path), config.origin)
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
