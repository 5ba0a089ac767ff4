"""
Owns the command that runs another one once a model is here: exec.

Knows nothing of HTTP, and nothing of what it runs.
Invariants: the command begins when every file is here and leased, and not before; it takes this
process over, so that terminal, signals, job control, exit code and process id are its own, and
nothing of ours can outlive it but the one who ends its lease.
Source: design.md §8 (command line); decision 0024; env(1) and xargs(1) for the exit codes and {}.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

from p2pcache.cli.command import EXIT_CODES, Command, InterruptedCommand, client_options
from p2pcache.cli.downloads import token_option
from p2pcache.cli.environment import offline_variables
from p2pcache.cli.output import echo_json
from p2pcache.cli.progress import open_progress
from p2pcache.cli.warming import warm_snapshot
from p2pcache.client import Client, Json, Lease
from p2pcache.core.refs import ModelReference
from p2pcache.errors import (
    CommandNotFoundError,
    CommandRefusedError,
    DaemonError,
    ForbiddenError,
    InputError,
    P2PCacheError,
)

PLACEHOLDER = "{}"
# A daemon that is upgraded while terabytes arrive comes back and goes on.
RESTART_PATIENCE_S = 60.0
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
# What older releases of transformers look at before HF_HUB_CACHE.
_OTHER_CACHES = ("TRANSFORMERS_CACHE", "PYTORCH_TRANSFORMERS_CACHE", "HUGGINGFACE_HUB_CACHE")
# What Python ignores in itself, and a program expects to end it.
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to bring, and for how long to try."""

    reference: ModelReference
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    token: str | None
    timeout_s: float | None
    is_json: bool


class ExecCommand(Command):
    """A command that is followed by another one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; an option that is not ours was probably meant for the other command."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            said = f"{error.format_message()} If it belongs to CMD, put -- before CMD."
            raise click.UsageError(said, ctx) from error


@click.command(
    "exec",
    cls=ExecCommand,
    examples="""
    p2pcache exec Qwen/Qwen3-8B -- vllm serve {} --served-model-name qwen3
    p2pcache exec org/gguf --include '*Q4*' -- sh -c 'llama-server -m "$P2PCACHE_MODEL_PATH"/*Q4*'
    p2pcache exec Qwen/Qwen3-8B --env MODEL_DIR -- python serve.py
    """,
    exit_codes=tuple(EXIT_CODES),
)
@click.argument("ref")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD…")
@click.option(
    "--env",
    "names",
    metavar="NAME",
    multiple=True,
    help="A variable for CMD that holds the snapshot's path, beside P2PCACHE_MODEL_PATH.",
)
@click.option("--include", multiple=True, metavar="GLOB", help="Fetch only these files.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Do not fetch these files.")
@click.option(
    "--replace",
    default=PLACEHOLDER,
    metavar="TEXT",
    help="What stands for the snapshot's path in CMD, instead of {}.",
)
@click.option(
    "--warm/--no-warm",
    "is_warm",
    default=True,
    help="Bring the files into memory first (the page cache), up to half of what is available.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    metavar="S",
    help="Seconds that the download may take. Without it: as long as it takes.",
)
@token_option
@client_options
def exec_(
    ref: str,
    command: tuple[str, ...],
    names: tuple[str, ...],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    replace: str,
    is_warm: bool,
    timeout_s: float | None,
    token: str | None,
    local: str | None,
    store: Path | None,
    is_json: bool,
) -> None:
    """
    Fetch a model, then run a command that loads it.

    Nothing of CMD begins before every file is here and proven: a GPU that CMD claims waits for no
    download. {} in CMD becomes the snapshot's path; HF_HUB_CACHE, HF_HUB_OFFLINE=1 and
    P2PCACHE_MODEL_PATH lead to it, too. Until CMD ends, eviction leaves the model alone.

    CMD takes this process over: its signals, exit code and process id are those of this command.
    Ctrl-C during the download cancels it; what was fetched is kept. After SIGTERM, or if this
    command is killed, the download goes on in the daemon, and the next exec finds what is here.
    With --json, standard error gets one object before CMD begins: {model, commit, path, lease, …}.
    """
    wanted = Wanted(ModelReference.parse(ref), include, exclude, token or None, timeout_s, is_json)
    _check(command, names, replace)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _end_first_phase)
    client = Client(local, store)
    folder = Path(str(client.status().get("store") or ""))
    job, lease = _bring_and_lease(
        client, wanted, Path(command[0]).name, partial(_keep, local=local, store=store)
    )
    path = _get_path(job, wanted.reference)
    warmth = None
    if is_warm:
        warmth = warm_snapshot(Path(path), include, exclude, is_silent=is_json)
    environment = {k: v for k, v in os.environ.items() if k not in _OTHER_CACHES}
    environment |= offline_variables(folder)
    environment |= dict.fromkeys((*names, "P2PCACHE_MODEL_PATH"), path)
    arguments = [argument.replace(replace, path) for argument in command]
    if is_json:
        told = {name: job.get(name) for name in ("model", "commit", "path")}
        told |= {"lease": None if lease is None else lease.id, "command": arguments}
        told["bytes_warm"] = None if warmth is None else warmth.bytes_warm
        echo_json(told, err=True)
    _become(arguments, environment)


def _get_path(job: Json, reference: ModelReference) -> str:
    """
    Return where a snapshot is.

    Raises:
        DaemonError: Its folder could not be made.
    """
    path = job.get("path")
    if not path:
        raise DaemonError(
            f"The files of {reference} are here, and their folder is not; the daemon's log says "
            "why. Pull it again."
        )
    return str(path)


def _check(command: Sequence[str], names: Sequence[str], replace: str) -> None:
    """Refuse before anything is fetched what could not run afterwards."""
    if not replace:
        raise InputError("--replace needs a text, for example --replace @MODEL@.")
    for name in names:
        if not _VARIABLE_NAME.fullmatch(name):
            raise InputError(f"{name!r} is no name of a variable; --env takes one like MODEL_DIR.")
    if replace in command[0]:
        return  # a program that the model brings along
    if shutil.which(command[0]) is None:
        if os.sep in command[0] and os.path.exists(command[0]):
            raise CommandRefusedError(
                f"{command[0]} cannot be run; see its permissions with: ls -l {command[0]}"
            )
        raise CommandNotFoundError(
            f"There is no command {command[0]!r}; check its name, or PATH. "
            "The command comes after REF and --."
        )


def _bring_and_lease(
    client: Client, wanted: Wanted, holder: str, keep: Callable[[Lease], None]
) -> tuple[Json, Lease | None]:
    """Bring the files here, under a lease that is kept from now on; or ended, whatever happens."""
    with contextlib.ExitStack() as ending:
        try:
            job = _bring(client, wanted)
            pinned = str(ModelReference(wanted.reference.repo, str(job["commit"])))
            with _end_later():
                lease = client.lease(pinned, holder=f"{holder} (process {os.getpid()})"[:200])
                ending.callback(lease.end)
        except ForbiddenError as error:
            residency = client.residency(str(wanted.reference))
            if residency.get("state") != "resident":
                raise
            click.echo(
                "warning: no lease, so the model may be evicted while it is read: " + str(error),
                err=True,
            )
            return dict(residency), None
        if lease.state != "resident":
            # Between the pull and the lease it may have been evicted; under the lease it cannot be.
            job = _bring(client, wanted)
        keep(lease)
        ending.pop_all()
    return job, lease


def _keep(lease: Lease, local: str | None, store: Path | None) -> None:
    """Have a lease kept by another process."""
    from p2pcache.client.keeper import start_keeper

    start_keeper(lease, local, store)


def _bring(client: Client, wanted: Wanted) -> dict[str, Any]:
    """Pull, and show it until it is done."""
    reference = wanted.reference
    download_id = ""
    try:
        with _end_later():
            started = client.pull(
                str(reference.repo),
                reference.revision,
                wanted.include,
                wanted.exclude,
                token=wanted.token,
            )
            download_id = str(started.get("id", ""))
        with open_progress(str(reference.repo), is_silent=wanted.is_json) as progress:
            return client.wait(
                download_id,
                progress.show,
                timeout_s=wanted.timeout_s,
                restart_patience_s=RESTART_PATIENCE_S,
                token=wanted.token,
            )
    except KeyboardInterrupt:
        try:
            client.cancel(download_id)
        except P2PCacheError as error:
            raise InterruptedCommand(
                f"Interrupted; cancelling the download failed ({error})."
            ) from None
        raise InterruptedCommand(
            "Interrupted before the command began; the download is cancelled, what was fetched is "
            "kept: the same command goes on from there."
        ) from None


@contextlib.contextmanager
def _end_later() -> Iterator[None]:
    """
    Let Ctrl-C and SIGTERM wait until what begins has a name to be ended by; a second one not.

    A signal that was ignored before us, as in the background of a script, stays so.
    """
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if seen:
            handlers[number](number, frame)
        seen.append(number)

    before = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handlers = {number: handler for number, handler in before.items() if callable(handler)}
    for number in handlers:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for number in seen:
        handlers[number](number, None)


def _end_first_phase(number: int, frame: FrameType | None) -> None:
    """End before the command began; as process 1 of a container nothing else would end us."""
    click.echo(
        "Ended by SIGTERM before the command began; the download goes on in the daemon.", err=True
    )
    sys.exit(128 + number)


def _become(arguments: list[str], environment: dict[str, str]) -> NoReturn:
    """Let a command take this process over."""
    sys.stdout.flush()
    sys.stderr.flush()
    for number in _IGNORED_BY_PYTHON:
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(arguments[0], arguments, environment)  # noqa: S606 - what was asked for
    except FileNotFoundError as error:
        raise CommandNotFoundError(
            f"There is no command {arguments[0]!r} ({error.strerror}); is its interpreter here?"
        ) from error
    except OSError as error:
        raise CommandRefusedError(
            f"{arguments[0]} cannot be run ({error.strerror}); is it a program for this machine?"
        ) from error
