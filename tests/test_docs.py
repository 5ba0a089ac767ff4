"""
Owns the promise that the documentation is true: complete, not stale, runnable, well linked.

Knows nothing of prose.
Invariants: what is run asks the sample hub alone, below a temporary folder, on free ports.
Source: docs/generate.py; blocks that begin with "```sh run".
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

from docs import generate
from p2pcache.cli.group import p2pcache
from p2pcache.config import SETTINGS
from tests.hub import HubProcess

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"
PAGES = sorted(
    path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
)
RUN_TIMEOUT_S = 50.0
README_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
# Standard output goes to a file; a reader waits for the ready line of each daemon, so do we.
WAIT_READY = 'until [ "$(grep -c "^p2pcache ready" "$SEEN")" -ge {count} ]; do sleep 0.05; done'

_BLOCK = re.compile(r"^```sh run\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[[^\]\n]+\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)


@cache
def read_page(name: str) -> str:
    """Return a page's text."""
    return (ROOT / name).read_text(encoding="utf-8")


def anchors_of(name: str) -> set[str]:
    """Return what a link to a heading of a page may name, as code hosts make it."""
    headings = _HEADING.findall(_FENCE.sub("", read_page(name)))
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("name", generate.PAGES)
def test_generated_page_is_not_stale(name: str) -> None:
    """A page made from code is what the code makes now; else run python -m docs.generate."""
    assert (REFERENCE / name).read_text(encoding="utf-8") == generate.PAGES[name]()


def test_every_command_setting_error_and_metric_is_documented() -> None:
    """The generated pages name all that there is, each in a place of its own."""
    cli, config = read_page("docs/reference/cli.md"), read_page("docs/reference/config.md")
    assert [n for n, _ in generate.commands() if f"\n## {n}\n" not in cli] == []
    assert [n for n in p2pcache.commands if f"\n## {n}\n" not in cli] == []
    options = {opt for _, c in generate.commands() for p in c.params for opt in p.opts}
    assert [o for o in options if o.startswith("-") and f"`{o}`" not in cli] == []
    assert [s.name for s in SETTINGS if f"`{s.environment}`" not in config] == []
    errors = read_page("docs/reference/errors.md")
    assert [c for c in generate.error_classes() if f"`{c.__name__}`" not in errors] == []
    metrics = read_page("docs/reference/metrics.md")
    assert [m.name for m in generate.metrics() if f"`{m.name}`" not in metrics] == []
    assert len(generate.metrics()) == len(generate.METRIC_NOTES)


@pytest.mark.parametrize("name", PAGES)
def test_links_of_a_page_resolve(name: str) -> None:
    """Every link to another page, file or heading leads somewhere."""
    broken = []
    for target in _LINK.findall(_FENCE.sub("", read_page(name))):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        resolved = (ROOT / name).parent / path if path else ROOT / name
        page = os.path.relpath(resolved, ROOT)
        if not resolved.exists() or (anchor and anchor not in anchors_of(page)):
            broken.append(target)
    assert broken == []


def test_every_page_is_reachable_from_the_index() -> None:
    """A page that nobody links to is a page that nobody reads."""
    index = read_page("docs/index.md")
    linked = {os.path.normpath(f"docs/{link.partition('#')[0]}") for link in _LINK.findall(index)}
    pages = {name for name in PAGES if name.startswith("docs/")} - {"docs/index.md"}
    assert pages - linked == set()


def test_every_change_and_decision_has_its_form() -> None:
    """Change notes are named for an issue and a kind; decisions have their three parts."""
    names = [path.name for path in (ROOT / "changes").glob("*.md")]
    assert [
        n for n in names if not re.fullmatch(r"\d+\.(feature|fix|removal|doc|misc)\.md", n)
    ] == []
    for name in (page for page in PAGES if page.startswith("docs/decisions/")):
        assert {"context", "decision", "consequences"} <= anchors_of(name), name


def make_script(page: str, after: str = "") -> str:
    """Return the runnable blocks of a page as one script, which waits as a reader would."""
    lines, daemons = ["set -euo pipefail"], 0
    for block in _BLOCK.findall(read_page(page)):
        lines.append(block)
        started = len(re.findall(r"^p2pcache up ", block, re.MULTILINE))
        daemons += started
        if started:
            lines.append(WAIT_READY.format(count=daemons))
    return "\n".join([*lines, after])


def run_script(script: str, folder: Path, environment: Mapping[str, str]) -> str:
    """Run a script with a home of its own; return what it printed. All its children end."""
    seen, complaints = folder / "seen", folder / "complaints"
    clean = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "SEEN": str(seen),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        **environment,
    }
    with seen.open("wb") as output, complaints.open("wb") as errors:
        shell = subprocess.Popen(
            ["bash", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            cwd=folder,
            env=clean,
            start_new_session=True,
        )
        try:
            code = shell.wait(RUN_TIMEOUT_S)
        finally:
            # The session is ours alone: everything in it was started by the script.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
    assert code == 0, seen.read_text() + complaints.read_text()
    return seen.read_text()


def test_commands_of_the_readme_work(tmp_path: Path) -> None:
    """Start, pull, an unmodified client, offline: as written; and /metrics has what is listed."""
    folder = tmp_path / "models" / README_MODEL
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "bert"}\n')
    (folder / "model.safetensors").write_bytes(random.Random(3).randbytes(5_000_000))
    names = tmp_path / "metrics"
    ask_metrics = (
        f'python -c "import os, urllib.request as r; '
        f"print(r.urlopen(os.environ['HF_ENDPOINT'] + '/metrics').read().decode())\" > {names}"
    )
    with HubProcess(tmp_path / "models") as hub:
        environment = {
            "P2PCACHE_STORE": str(tmp_path / "store"),
            "P2PCACHE_LOCAL": "127.0.0.1:0",
            "P2PCACHE_LISTEN": "127.0.0.1:0",
            "P2PCACHE_DISCOVER": "none",
            "P2PCACHE_HF_UPSTREAM": hub.url,
        }
        seen = run_script(make_script("README.md", ask_metrics), tmp_path, environment)
    folders = [Path(line) for line in seen.splitlines() if line.startswith(str(tmp_path))]
    assert len(folders) == 3
    expected = (folder / "model.safetensors").read_bytes()
    for path in folders:
        assert (path / "model.safetensors").read_bytes() == expected
    assert str(tmp_path / "store") in str(folders[-1])
    declared = re.findall(r"^# TYPE (\S+) (\S+)$", names.read_text(), re.MULTILINE)
    assert declared == [(metric.name, metric.kind) for metric in generate.metrics()]


def test_commands_of_limiting_the_disk_work(tmp_path: Path) -> None:
    """Two models, room for one and a half, a pin, gc and rm: as written."""
    for name in ("org/first", "org/second"):
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        (folder / "model.bin").write_bytes(random.Random(name).randbytes(25_000_000))
    with HubProcess(tmp_path / "models") as hub:
        environment = {
            "P2PCACHE_STORE": str(tmp_path / "store"),
            "P2PCACHE_LOCAL": "127.0.0.1:0",
            "P2PCACHE_LISTEN": "127.0.0.1:0",
            "P2PCACHE_DISCOVER": "none",
            "P2PCACHE_HF_UPSTREAM": hub.url,
        }
        seen = run_script(make_script("docs/how-to/limit-disk.md"), tmp_path, environment)
    lines = seen.splitlines()
    assert "refused, as it should be" in lines
    assert [line.split()[0] for line in lines if " resident " in line] == ["org/second"]
    assert lines[-1].startswith("Removed org/second@main: 25.0 MB")


def test_commands_of_limiting_bandwidth_work(tmp_path: Path) -> None:
    """A daemon with limits, a pull, and what it says of them: as written."""
    folder = tmp_path / "models" / "org/name"
    folder.mkdir(parents=True)
    (folder / "model.bin").write_bytes(random.Random(5).randbytes(5_000_000))
    with HubProcess(tmp_path / "models") as hub:
        environment = {
            "P2PCACHE_STORE": str(tmp_path / "store"),
            "P2PCACHE_LOCAL": "127.0.0.1:0",
            "P2PCACHE_LISTEN": "127.0.0.1:0",
            "P2PCACHE_DISCOVER": "none",
            "P2PCACHE_HF_UPSTREAM": hub.url,
        }
        seen = run_script(make_script("docs/how-to/limit-bandwidth.md"), tmp_path, environment)
    assert '"upstream_bps": 25000000, "download_bps": null, "upload_bps": 25000000' in seen


def test_commands_of_the_tutorial_work(tmp_path: Path) -> None:
    """Three daemons, the hub gone halfway, an offline client: as written."""
    seen = run_script(make_script("docs/tutorials/first-swarm.md"), tmp_path, {})
    assert seen.splitlines()[-1] == "the same"
    assert '"bytes_from_upstream": 0' in seen
    assert re.search(r"^state +resident$", seen, re.MULTILINE)
