"""
Owns the commands that carry a model across an air gap: export, import-bundle.

Knows nothing of HTTP or of the format.
Invariants: a file of the name that was given is a whole bundle or what it was before; standard
output has the bundle or the result, never both.
Source: design.md §8 (command line); docs/how-to/run-air-gapped.md.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import click

from p2pcache.cli.command import (
    CLIENT_EXIT_CODES,
    Command,
    InterruptedCommand,
    client_options,
)
from p2pcache.cli.output import echo_json, show_size, show_text
from p2pcache.cli.progress import open_progress
from p2pcache.client import BundleClient, ExportStream
from p2pcache.core.refs import ModelReference
from p2pcache.errors import InputError, NotFoundError, StoreError, StoreFullError

_EXIT_CODES = tuple(sorted({*CLIENT_EXIT_CODES, 11}))
_PIPE = "-"
_PIECE_SIZE_BYTES = 1024 * 1024

Write = Callable[[bytes], None]


@click.command(
    cls=Command,
    examples="""
    p2pcache export Qwen/Qwen3-8B qwen3-8b.tar
    p2pcache export Qwen/Qwen3-8B - | ssh gate p2pcache import-bundle -
    """,
    exit_codes=_EXIT_CODES,
)
@click.argument("ref")
@click.argument("file")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@client_options
def export(
    ref: str, file: str, force: bool, local: str | None, store: Path | None, is_json: bool
) -> None:
    """
    Write a model that is here into one file, with proof.

    REF is [hf:][datasets/]org/name[@revision]; pull it first. FILE is a tar archive for
    import-bundle; - writes it to standard output. Prints the bundle's id, which names every byte
    of it. With --json: {file, id, model, commit, files, bytes}.
    """
    reference = ModelReference.parse(ref)
    if file == _PIPE:
        _check_pipe(is_json=is_json)
    else:
        _check_target(Path(file), is_forced=force)
    try:
        with BundleClient(local, store).open_export(str(reference)) as stream:
            if file == _PIPE:
                _copy(stream, _write_output, str(reference.repo), is_silent=is_json)
            else:
                with _new_file(Path(file), is_public=stream.is_public) as write:
                    _copy(stream, write, str(reference.repo), is_silent=is_json)
    except KeyboardInterrupt:
        raise InterruptedCommand("Interrupted; no bundle was written.") from None
    if is_json:
        echo_json(
            {
                "file": file,
                "id": stream.bundle_id,
                "model": stream.model,
                "commit": stream.commit,
                "files": stream.files,
                "bytes": stream.size_bytes,
            }
        )
        return
    click.echo(f"{stream.files} files, {show_size(stream.size_bytes)}; the id:", err=True)
    click.echo(stream.bundle_id, err=file == _PIPE)


@click.command(
    "import-bundle",
    cls=Command,
    examples="""
    p2pcache import-bundle qwen3-8b.tar
    zstd -dc qwen3-8b.tar.zst | p2pcache import-bundle -
    """,
    exit_codes=_EXIT_CODES,
)
@click.argument("file")
@click.option("--id", "bundle_id", metavar="HEX", help="Refuse any bundle but this one.")
@click.option("--public", "is_public", is_flag=True, help="Anybody may have it, whatever it says.")
@click.option("--restricted", "is_restricted", is_flag=True, help="Nobody else may have it.")
@client_options
def import_bundle(
    file: str,
    bundle_id: str | None,
    is_public: bool,
    is_restricted: bool,
    local: str | None,
    store: Path | None,
    is_json: bool,
) -> None:
    """
    Bring a model here from a file that export wrote.

    FILE - reads standard input. Every chunk and every file is checked; one that was changed is
    named and refused. Run it again to go on after an interruption. Prints the path of the
    snapshot. With --json: {id, model, commit, revisions, files, bytes, bytes_written, public,
    path}.
    """
    if is_public and is_restricted:
        raise InputError("--public and --restricted exclude each other; leave out one of them.")
    visibility = is_public if is_public or is_restricted else None
    client = BundleClient(local, store)
    shown = "standard input" if file == _PIPE else Path(file).name
    try:
        with (
            _open_source(file) as source,
            open_progress(show_text(shown), is_silent=is_json) as progress,
        ):
            pieces = _read_pieces(source, _measure(source), progress.show)
            answer = client.take_in(pieces, bundle_id=bundle_id, is_public=visibility)
    except KeyboardInterrupt:
        raise InterruptedCommand(
            "Interrupted; what was imported is kept: import it again to go on from there."
        ) from None
    if is_json:
        echo_json(answer)
        return
    click.echo(
        f"{show_text(answer.get('model'))}: {show_text(answer.get('files'))} files, "
        f"{show_size(answer.get('bytes'))}, of which {show_size(answer.get('bytes_written'))} "
        f"were not here; bundle {show_text(answer.get('id'))}.",
        err=True,
    )
    click.echo(str(answer.get("path", "")))


# --- out ---


def _copy(stream: ExportStream, write: Write, title: str, *, is_silent: bool) -> None:
    done = 0
    with open_progress(title, is_silent=is_silent) as progress:
        for piece in stream.pieces:
            write(piece)
            done += len(piece)
            progress.show(_describe("exporting", done, stream.size_bytes))


def _describe(state: str, done: int, total: int | None) -> dict[str, Any]:
    return {"state": state, "bytes_done": done, "bytes_total": total}


def _check_pipe(*, is_json: bool) -> None:
    if is_json:
        raise InputError("Standard output takes the bundle or JSON; name a FILE with --json.")
    if sys.stdout.isatty():
        raise InputError("A bundle is not for a terminal; name a FILE, or redirect the output.")


def _check_target(file: Path, *, is_forced: bool) -> None:
    if file.exists() and not file.is_file():
        raise InputError(f"{file} is no file; name one, or - for standard output.")
    if file.exists() and not is_forced:
        raise InputError(f"{file} exists; name another file, or replace it with --force.")


@contextlib.contextmanager
def _new_file(file: Path, *, is_public: bool) -> Iterator[Write]:
    """
    Write a file beside its place; it gets its name when the block ends well, else it goes.

    Raises:
        StoreError: The disk failed or is full.
    """
    temporary = file.with_name(f"{file.name}.{os.getpid()}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        fd = os.open(temporary, flags, 0o600)
    except OSError as error:
        raise _explain(error, file) from error
    try:
        yield lambda piece: _write_all(fd, piece, file)
        if is_public:
            os.fchmod(fd, 0o666 & ~_read_umask())
        os.fsync(fd)
        temporary.rename(file)
        _try_sync_folder(file.parent)
    except OSError as error:
        raise _explain(error, file) from error
    finally:
        os.close(fd)
        temporary.unlink(missing_ok=True)


def _write_all(fd: int, piece: bytes, file: Path | str) -> None:
    view = memoryview(piece)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except OSError as error:
        raise _explain(error, file) from error


def _write_output(piece: bytes) -> None:
    output = sys.stdout.buffer
    try:
        output.write(piece)
        output.flush()
    except OSError as error:
        # What is left in the buffer cannot be written either, at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), output.fileno())
        raise _explain(error, "standard output") from error


def _read_umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _try_sync_folder(folder: Path) -> None:
    """Make the name durable, where the file system can; those of USB sticks often cannot."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _explain(error: OSError, file: Path | str) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFullError(f"There is no room for {file}; make some, and export again.")
    if error.errno == errno.EFBIG:
        return StoreError(f"{file} is too large for its file system; use another, such as exFAT.")
    return StoreError(f"{file} cannot be written ({error.strerror}); name another place.")


# --- in ---


@contextlib.contextmanager
def _open_source(file: str) -> Iterator[BinaryIO]:
    """
    Open what is to be imported.

    Raises:
        InputError, NotFoundError: It cannot be.
    """
    if file == _PIPE:
        if sys.stdin.isatty():
            raise InputError("A bundle is not typed; name a FILE, or redirect the input.")
        yield sys.stdin.buffer
        return
    try:
        source = Path(file).open("rb")  # noqa: SIM115 - closed by the caller's block
    except FileNotFoundError as error:
        raise NotFoundError(f"There is no file {file}; name what p2pcache export wrote.") from error
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}).") from error
    with source:
        yield source


def _measure(source: BinaryIO) -> int | None:
    """Return the size of a regular file; None for a pipe."""
    try:
        status = os.fstat(source.fileno())
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _read_pieces(
    source: BinaryIO, total: int | None, show: Callable[[dict[str, Any]], None]
) -> Iterator[bytes]:
    done = 0
    while True:
        try:
            piece = source.read(_PIECE_SIZE_BYTES)
        except OSError as error:
            raise InputError(f"The bundle cannot be read ({error.strerror}).") from error
        if not piece:
            return
        yield piece
        done += len(piece)
        show(_describe("importing", done, total))
