"""
Owns the tests of the commands export and import-bundle: files, pipes, what is printed, what stays.

Knows nothing of the format; real endpoints answer, in this process.
Invariants: a file of the name that was given is a whole bundle or what it was before.
Source: docs/how-to/run-air-gapped.md.
"""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import click.testing
import pytest

from p2pcache.cli.group import p2pcache
from p2pcache.client import BundleClient, ExportStream
from p2pcache.errors import BlobCorruptError, BundleCorruptError, DaemonUnreachableError
from tests.daemon.conftest import Serve, serve  # noqa: F401
from tests.daemon.local import Served
from tests.daemons import wait_until
from tests.engine.archives import export_archive, flip, place_of
from tests.engine.conftest import (  # noqa: F401
    CHUNK_BYTES,
    GATED,
    REPO,
    TOKEN,
    WEIGHTS,
    MakeCache,
    engine,
    hub,
    make_cache,
    one_tls_context,
    small_chunks,
)
from tests.engine.engine import Engine
from tests.engine.fakepeer import sha256_name
from tests.engine.test_shelf import flip_byte

NAME = "pytorch_model.bin"


@pytest.fixture
async def source(engine: Engine, serve: Serve) -> Served:  # noqa: F811
    """An endpoint that has the model."""
    await engine.pull(REPO)
    return await serve(engine)


@pytest.fixture
async def target(make_cache: MakeCache, serve: Serve) -> Served:  # noqa: F811
    """An endpoint beyond the gap."""
    return await serve(await make_cache("b", hub_url="http://127.0.0.1:9"))


async def run(served: Served, *arguments: str, stdin: bytes | None = None) -> click.testing.Result:
    """Run a command against an endpoint, which goes on answering meanwhile."""
    where = ["--store", str(served.engine.root), "--local", served.local]
    return await asyncio.to_thread(
        click.testing.CliRunner().invoke, p2pcache, [*arguments, *where], input=stdin
    )


async def test_export_then_import_brings_the_model(
    source: Served, target: Served, tmp_path: Path
) -> None:
    """The id goes from one machine to the other; the path is the last line."""
    file = tmp_path / "model.tar"
    exported = await run(source, "export", REPO, str(file))
    assert exported.exit_code == 0, exported.stderr
    bundle_id = exported.stdout.strip()
    assert file.read_bytes() == await export_archive(source.engine, REPO)
    assert [path.name for path in tmp_path.glob("model*")] == ["model.tar"]
    imported = await run(target, "import-bundle", str(file), "--id", bundle_id)
    assert imported.exit_code == 0, imported.stderr
    folder = Path(imported.stdout.strip())
    assert (folder / NAME).read_bytes() == WEIGHTS
    assert bundle_id in imported.stderr
    assert "importing" not in imported.stderr


async def test_export_and_import_as_json_print_one_object(
    source: Served, target: Served, tmp_path: Path
) -> None:
    """What programs read, and nothing on standard error but nothing."""
    file = tmp_path / "model.tar"
    exported = await run(source, "export", REPO, str(file), "--json")
    answer = json.loads(exported.stdout)
    assert sorted(answer) == ["bytes", "commit", "file", "files", "id", "model"]
    assert (answer["file"], answer["model"], answer["files"]) == (str(file), REPO, 4)
    assert answer["bytes"] == file.stat().st_size
    imported = await run(target, "import-bundle", str(file), "--json")
    told = json.loads(imported.stdout)
    assert (told["id"], told["commit"]) == (answer["id"], answer["commit"])
    assert (exported.stderr, imported.stderr) == ("", "")


async def test_export_through_a_pipe_is_the_bundle_alone(source: Served, target: Served) -> None:
    """Standard output has the bytes, standard error the id; the other side reads them."""
    exported = await run(source, "export", REPO, "-")
    archive = await export_archive(source.engine, REPO)
    assert exported.stdout_bytes == archive
    assert archive[512 + len("76 comment=") :][:64].decode() in exported.stderr
    imported = await run(target, "import-bundle", "-", stdin=archive)
    assert imported.exit_code == 0, imported.stderr
    assert (Path(imported.stdout.strip()) / NAME).read_bytes() == WEIGHTS


async def test_export_of_a_restricted_model_is_for_its_owner(
    source: Served, tmp_path: Path
) -> None:
    """A file that others can read must hold what anybody may have."""
    await source.engine.pull(GATED, token=TOKEN)
    before = os.umask(0o022)
    try:
        for repo, mode in ((GATED, 0o600), (REPO, 0o644)):
            file = tmp_path / f"{mode:o}.tar"
            assert (await run(source, "export", repo, str(file))).exit_code == 0
            assert stat.S_IMODE(file.stat().st_mode) == mode
    finally:
        os.umask(before)


async def test_export_over_a_file_needs_force(source: Served, tmp_path: Path) -> None:
    """What is there stays, unless it was said to go; what is no file stays in any case."""
    file = tmp_path / "model.tar"
    file.write_bytes(b"precious")
    refused = await run(source, "export", REPO, str(file))
    assert (refused.exit_code, "--force" in refused.stderr) == (2, True)
    assert file.read_bytes() == b"precious"
    for name in (str(tmp_path), "/dev/null"):
        assert (await run(source, "export", REPO, name, "--force")).exit_code == 2
    assert (await run(source, "export", REPO, str(file), "--force")).exit_code == 0
    assert file.read_bytes() == await export_archive(source.engine, REPO)


async def test_export_of_damage_leaves_no_file(source: Served, tmp_path: Path) -> None:
    """The command says which chunk of which file, although the body was only broken off."""
    path = source.engine.context.store.path_of(sha256_name(WEIGHTS))
    flip_byte(path, 3 * CHUNK_BYTES, keeps_time=True)
    file = tmp_path / "model.tar"
    result = await run(source, "export", REPO, str(file))
    assert result.exit_code == 11
    assert f"Chunk 3 of {NAME}" in result.stderr
    assert list(tmp_path.glob("model*")) == []


async def test_export_of_damage_is_explained_however_late_it_is_read(source: Served) -> None:
    """The daemon reads ahead: it may have noticed before the first piece is taken."""
    flip_byte(source.engine.context.store.path_of(sha256_name(WEIGHTS)), 0, keeps_time=True)
    client = BundleClient(local=source.local, store=source.engine.root)
    faults = source.engine.context.blame.faults

    def take() -> None:
        with client.open_export(REPO) as stream:
            wait_until(lambda: faults, "the damage is noticed")
            for _ in stream.pieces:
                pass

    with pytest.raises(BlobCorruptError, match=f"of {NAME} changed on this disk"):
        await asyncio.to_thread(take)


async def test_export_of_what_is_not_here_leaves_no_file(source: Served, tmp_path: Path) -> None:
    """Asked for before anything is made."""
    result = await run(source, "export", "org/unknown", str(tmp_path / "model.tar"))
    assert (result.exit_code, "pull it first" in result.stderr) == (10, True)
    assert list(tmp_path.glob("model*")) == []


@contextmanager
def broken_export(error: BaseException) -> Iterator[ExportStream]:
    """A stream that ends in an error."""

    def pieces() -> Iterator[bytes]:
        yield b"some"
        raise error

    yield ExportStream("a" * 64, REPO, "b" * 40, 1, 100, True, pieces())


@pytest.mark.parametrize(
    ("error", "exit_code"), [(KeyboardInterrupt(), 130), (DaemonUnreachableError("Gone."), 14)]
)
async def test_export_interrupted_leaves_what_was_there(
    source: Served,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    exit_code: int,
) -> None:
    """Ctrl-C, or a daemon that stops: the old file is the old file."""
    monkeypatch.setattr(BundleClient, "open_export", lambda *_: broken_export(error))
    file = tmp_path / "model.tar"
    file.write_bytes(b"old")
    result = await run(source, "export", REPO, str(file), "--force")
    assert result.exit_code == exit_code
    assert {p.name: p.read_bytes() for p in tmp_path.glob("model*")} == {"model.tar": b"old"}


@pytest.mark.parametrize(
    ("number", "said"), [(errno.ENOSPC, "no room"), (errno.EFBIG, "too large"), (errno.EIO, "I")]
)
async def test_export_to_a_disk_that_fails_is_one_sentence(
    source: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    """A full stick, FAT, a broken disk: exit code 13, and no file."""

    def fail(fd: int, content: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("p2pcache.cli.bundles.os.write", fail)
        result = await run(source, "export", REPO, str(tmp_path / "model.tar"))
    assert (result.exit_code, said in result.stderr) == (13, True), result.stderr
    assert list(tmp_path.glob("model*")) == []
    missing = await run(source, "export", REPO, str(tmp_path / "no" / "model.tar"))
    assert missing.exit_code == 13


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (("export", REPO, "-", "--json"), 2),
        (("export", "not a reference", "x.tar"), 2),
        (("import-bundle", "no/such/file"), 10),
        (("import-bundle", "/"), 2),
        (("import-bundle", "-", "--id", "main"), 2),
    ],
)
async def test_commands_asked_wrongly_say_so(
    source: Served, arguments: tuple[str, ...], exit_code: int
) -> None:
    """A sentence and the code of its cause; no traceback."""
    result = await run(source, *arguments, stdin=b"")
    assert result.exit_code == exit_code, result.stderr
    assert result.stderr.startswith("error: ")


async def test_commands_do_not_use_a_terminal(
    source: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody wants a tar on the screen, or types one."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminals = SimpleNamespace(stdout=Terminal(), stdin=Terminal())
    monkeypatch.setattr("p2pcache.cli.bundles.sys", terminals)
    for arguments in (("export", REPO, "-"), ("import-bundle", "-")):
        result = await run(source, *arguments)
        assert (result.exit_code, "FILE" in result.stderr) == (2, True)


async def test_import_of_a_changed_bundle_says_where(source: Served, target: Served) -> None:
    """Exit code 11, and a sentence with file and chunk; also where the daemon answers early."""
    archive = await export_archive(source.engine, REPO)
    changed = flip(archive, place_of(archive, NAME) + 2 * CHUNK_BYTES)
    result = await run(target, "import-bundle", "-", stdin=changed)
    assert result.exit_code == 11
    assert f"{NAME}, chunk 2 of 20" in result.stderr
    early = await run(target, "import-bundle", "-", stdin=b"x" * 64_000_000)
    assert early.exit_code == 11
    assert "no bundle" in early.stderr


async def test_client_stops_sending_when_the_daemon_has_answered(target: Served) -> None:
    """A refusal in the first kilobyte is not paid for with all the rest."""
    sent: list[int] = []

    def endless() -> Iterator[bytes]:
        while True:
            sent.append(1)
            yield bytes(1024 * 1024)

    client = BundleClient(target.local, target.engine.root)
    with pytest.raises(BundleCorruptError, match="no bundle"):
        await asyncio.to_thread(client.take_in, endless())
    assert len(sent) < 1000


async def test_import_restricted_or_public_is_passed_on(source: Served, target: Served) -> None:
    """The operator's word reaches the daemon."""
    archive = await export_archive(source.engine, REPO)
    for option, expected in (("--restricted", False), ("--public", True)):
        result = await run(target, "import-bundle", "-", "--json", option, stdin=archive)
        assert json.loads(result.stdout)["public"] is expected


async def test_import_interrupted_says_that_it_goes_on(
    target: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C is no failure."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(BundleClient, "take_in", interrupt)
    (tmp_path / "x.tar").write_bytes(b"")
    result = await run(target, "import-bundle", str(tmp_path / "x.tar"))
    assert (result.exit_code, "again" in result.stderr) == (130, True)


async def test_commands_without_a_daemon_say_how_to_start_one(tmp_path: Path) -> None:
    """Exit code 14, as every command; and no file."""
    (tmp_path / "x.tar").write_bytes(b"")
    for command in (("export", REPO, "y.tar"), ("import-bundle", "x.tar")):
        arguments = [*command[:-1], str(tmp_path / command[-1]), "--local", "127.0.0.1:9"]
        result = await asyncio.to_thread(click.testing.CliRunner().invoke, p2pcache, arguments)
        assert (result.exit_code, "p2pcache up" in result.stderr) == (14, True), result.stderr
    assert sorted(path.name for path in tmp_path.glob("*.tar*")) == ["x.tar"]


async def test_import_bundle_public_and_restricted_at_once_is_refused(
    target: Served, tmp_path: Path
) -> None:
    """Neither silently wins; nothing is read."""
    for flags in (["--public", "--restricted"], ["--restricted", "--public"]):
        result = await run(target, "import-bundle", str(tmp_path / "absent.tar"), *flags)
        assert (result.exit_code, "exclude each other" in result.stderr) == (2, True)
