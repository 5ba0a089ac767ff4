"""
Owns the command that tells a shell how workers find the daemon: env.

Knows nothing of HTTP.
Invariants: what is printed can be evaluated by any POSIX shell; without --offline no daemon is
asked, so it can stand in a profile.
Source: environment variables of huggingface_hub; design.md §4 and §8.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from urllib.parse import urlsplit

import click

from p2pcache.cli.command import CLIENT_EXIT_CODES, Command, client_options
from p2pcache.cli.output import echo_json
from p2pcache.client import Client, default_store, find_named_store
from p2pcache.errors import P2PCacheError

# The daemon is on this machine; one that does not answer at once is not asked twice.
_ASK_TIMEOUT_S = 2.0


@click.command(
    cls=Command,
    examples="""
    eval "$(p2pcache env)"
    eval "$(p2pcache env --offline)"
    """,
    exit_codes=CLIENT_EXIT_CODES,
)
@click.option(
    "--offline", is_flag=True, help="Use what is here, without a daemon and without the hub."
)
@client_options
def env(offline: bool, local: str | None, store: Path | None, is_json: bool) -> None:
    """
    Print export lines for a shell.

    They point the Hugging Face libraries at the daemon, and keep proxies out of the way. With
    --offline they point them at the files in the store; the store is the one that is named, else
    the running daemon's, else the default one. With --json: an object of the variables.
    """
    variables = _offline(local, store) if offline else _online(Client(local, store).url)
    if is_json:
        echo_json(variables)
        return
    for name, value in variables.items():
        click.echo(f"export {name}={shlex.quote(value)}")


def _online(url: str) -> dict[str, str]:
    """Return what leads to the daemon; hosts that were without a proxy stay without one."""
    host = urlsplit(url).hostname or ""
    before = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
    hosts = [*before.split(","), host, "localhost"]
    no_proxy = ",".join(dict.fromkeys(name.strip() for name in hosts if name.strip()))
    return {
        "HF_ENDPOINT": url,
        "MODELSCOPE_ENDPOINT": url,
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
    }


def _offline(local: str | None, store: Path | None) -> dict[str, str]:
    """Return what leads to the hub tree in the store."""
    found = find_named_store(store) or _try_ask_store(local) or default_store()
    return offline_variables(found)


def offline_variables(store: Path) -> dict[str, str]:
    """Return what leads to the files in a store, with neither a daemon nor a hub."""
    return {
        "HF_HUB_CACHE": str(store / "hub"),
        "HF_HUB_OFFLINE": "1",
        "MODELSCOPE_CACHE": str(store / "modelscope"),
    }


def _try_ask_store(local: str | None) -> Path | None:
    """Return the store of the daemon that answers, if one does."""
    try:
        named = Client(local, timeout_s=_ASK_TIMEOUT_S).status().get("store")
    except P2PCacheError:
        return None
    return Path(named) if isinstance(named, str) and named else None
