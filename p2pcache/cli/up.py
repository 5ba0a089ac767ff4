"""
Owns the command that runs a daemon: up.

Knows nothing of what a daemon does; its options are those of the table in config/settings.py.
Invariants: one line on standard output, when the daemon is ready; aiohttp is imported only when
the settings are good.
Source: design.md §8 (up, defaults).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from p2pcache.cli.command import Command, Function, json_option
from p2pcache.cli.output import echo_json
from p2pcache.config import SETTINGS, Setting

if TYPE_CHECKING:
    from p2pcache.daemon.app import Ready


def setting_options(function: Function) -> Function:
    """Add an option for every setting, in the order of the table."""
    for setting in reversed(SETTINGS):
        function = _option_of(setting)(function)
    return function


def _option_of(setting: Setting) -> Any:
    default = f"default: {setting.default_text}"
    help_text = f"{setting.help}  [env var: {setting.environment}; {default}]"
    if setting.kind == "switch":
        return click.option(setting.flag, setting.name, is_flag=True, help=help_text)
    return click.option(
        setting.flag,
        setting.name,
        metavar=setting.metavar,
        multiple=setting.kind == "list",
        help=help_text,
    )


@click.command(
    cls=Command,
    examples="""
    p2pcache up
    p2pcache up --store /data/p2pcache --peer 10.0.0.7:7278 --discover none
    """,
    exit_codes=(0, 1, 2, 3, 13),
)
@setting_options
@json_option
def up(is_json: bool, **flags: object) -> None:
    """
    Run a daemon until SIGTERM or Ctrl-C.

    A flag wins over its environment variable, which wins over the file of --config. Prints one
    line when it is ready: p2pcache ready local=http://HOST:PORT peer=HOST:PORT name=NAME; with
    --json {"event": "ready", "local", "peer", "name", "store"}. The log goes to standard error.
    """
    import asyncio
    import os

    from p2pcache.cli.logs import start_logging
    from p2pcache.config import load_config

    config = load_config(flags, os.environ)
    start_logging(config.log_format)

    # Here: aiohttp and zeroconf take longer to import than other commands take to run.
    from p2pcache.daemon.app import run_daemon

    def announce(ready: Ready) -> None:
        if is_json:
            echo_json(
                {
                    "event": "ready",
                    "local": ready.local,
                    "peer": ready.peer,
                    "name": ready.name,
                    "store": str(ready.store),
                }
            )
        else:
            click.echo(f"p2pcache ready local={ready.local} peer={ready.peer} name={ready.name}")

    asyncio.run(run_daemon(config, announce))
