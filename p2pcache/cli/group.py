"""
Owns the list of commands.

Knows nothing of what they do.
Invariants: importing it, as --help does, imports neither aiohttp nor zeroconf.
Source: design.md §8 (command line).
"""

from __future__ import annotations

import click

from p2pcache import __version__
from p2pcache.cli.bundles import export, import_bundle
from p2pcache.cli.check import check
from p2pcache.cli.downloads import pin, pull, unpin
from p2pcache.cli.environment import env
from p2pcache.cli.exec import exec_
from p2pcache.cli.imports import import_
from p2pcache.cli.jobs import jobs
from p2pcache.cli.models import ls
from p2pcache.cli.peers import peers
from p2pcache.cli.residency import status
from p2pcache.cli.space import gc, rm, storage
from p2pcache.cli.up import up
from p2pcache.cli.versions import versions
from p2pcache.cli.wait import wait

_COMMANDS = (
    up,
    pull,
    pin,
    unpin,
    wait,
    exec_,
    jobs,
    ls,
    versions,
    status,
    peers,
    storage,
    gc,
    rm,
    check,
    import_,
    export,
    import_bundle,
    env,
)


class CommandGroup(click.Group):
    """A group that lists its commands in the order in which people meet them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of _COMMANDS."""
        return [command.name for command in _COMMANDS if command.name]


@click.group(
    cls=CommandGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start a daemon with 'p2pcache up', then 'p2pcache pull org/name' in another terminal.",
)
@click.version_option(__version__, "--version", message="p2pcache %(version)s")
def p2pcache() -> None:
    """A peer-to-peer, content-addressed cache for AI model files."""


for _command in _COMMANDS:
    p2pcache.add_command(_command)
