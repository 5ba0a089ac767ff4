"""
Owns the tests of store.warming that are about what it meets: others' files, folders, the memory
that a process may have.

Knows nothing of models.
Invariants: warming is a favour, never a failure.
Source: store/warming.py; cgroups(7), proc_meminfo(5).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from p2pcache.store import warming
from p2pcache.store.warming import SPAN_BYTES, find_budget, warm_files

# A file and a folder of root's that everybody can read; the file is cached, since it just ran.
ROOTS_FILE, ROOTS_FOLDER = Path("/bin/sh"), Path("/usr/bin")
WARM_AS_NOBODY = """
import os, sys
from pathlib import Path
from p2pcache.store.warming import warm_files
if os.geteuid() == 0:
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
for path in map(Path, sys.argv[1:]):
    warmth = warm_files([(path, path.stat().st_size)], 10**9)
    print(warmth.bytes_read, warmth.bytes_warm)
"""


def test_warm_file_of_somebody_else_is_read_whatever_the_system_says() -> None:
    """
    It says of others' files that all of it is cached: who believes that warms nothing. What gives
    no bytes counts for nothing.
    """
    status = ROOTS_FILE.stat()
    if status.st_uid != 0 or status.st_mode & 0o022 or not status.st_mode & 0o004:
        pytest.skip(f"{ROOTS_FILE} is not root's, to be read by all")
    paths = [str(ROOTS_FILE), str(ROOTS_FOLDER), str(ROOTS_FILE)]
    done = subprocess.run(
        [sys.executable, "-c", WARM_AS_NOBODY, *paths],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    all_of_it = f"{status.st_size} {status.st_size}"
    assert done.stdout.splitlines() == [all_of_it, "0 0", all_of_it]


def test_warm_name_that_is_gone_counts_for_nothing(tmp_path: Path) -> None:
    """All its spans; what was opened is closed."""
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "here").write_bytes(b"12345")
    files = [(tmp_path / "gone", 3 * SPAN_BYTES), (tmp_path / "empty", 0), (tmp_path / "here", 5)]
    before = len(os.listdir("/proc/self/fd"))
    warmth = warm_files(files, 10**9)
    assert (warmth.bytes_warm, warmth.bytes_total) == (5, 3 * SPAN_BYTES + 5)
    assert len(os.listdir("/proc/self/fd")) == before


def test_budget_of_this_machine_is_within_its_memory() -> None:
    """From the real files of this kernel, whichever version of control groups it has."""
    total = warming._read_field(Path("/proc/meminfo"), "MemTotal:")
    assert total is not None
    assert 0 <= find_budget(1.0) <= total * 1024
    assert find_budget(0.0) == 0


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of control groups and 1,000 KiB of memory; put `own` beside it to be in a group."""
    root = tmp_path / "cgroup"
    root.mkdir()
    (tmp_path / "meminfo").write_text("MemAvailable: 1000 kB\n")
    read_small = warming._read_small

    def read(path: Path) -> str:
        return read_small(tmp_path / "own" if path == Path("/proc/self/cgroup") else path)

    monkeypatch.setattr(warming, "_CGROUP", root)
    monkeypatch.setattr(warming, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(warming, "_read_small", read)
    return root


def set_limit(folder: Path, names: tuple[str, str], limit: int, used: int) -> None:
    """Limit a control group."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")


V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")
V2 = ("memory.max", "memory.current")


def test_budget_is_that_of_the_tightest_group_above_us(groups: Path) -> None:
    """A pod's limit counts for its containers; a neighbour's does not."""
    (groups.parent / "own").write_text("0::/pod/box\n")
    set_limit(groups / "pod" / "box", V2, 900_000, 100_000)
    assert find_budget(1.0) == 800_000
    set_limit(groups / "pod", V2, 500_000, 200_000)
    set_limit(groups / "other", V2, 1, 1)
    assert find_budget(1.0) == 300_000
    set_limit(groups, V2, 50_000, 0)
    assert find_budget(1.0) == 50_000
    (groups / "pod" / "memory.stat").write_text("anon 1\nfile 999\n")
    set_limit(groups, V2, 10**12, 0)
    assert find_budget(1.0) == 300_999


def test_budget_first_version_of_groups_has_other_names(groups: Path) -> None:
    """The memory controller's own tree, which may be mounted with others."""
    (groups.parent / "own").write_text("11:cpuset:/a\n4:hugetlb,memory:/box\n1:name=systemd:/\n")
    set_limit(groups / "memory" / "box", V1, 600_000, 400_000)
    (groups / "memory" / "box" / "memory.stat").write_text("cache 1\ntotal_cache 100000\n")
    set_limit(groups / "a", V1, 1, 1)
    assert find_budget(1.0) == 300_000
    # Both versions at once: whichever leaves less.
    (groups.parent / "own").write_text("4:memory:/box\n0::/box\n")
    set_limit(groups / "box", V2, 250_000, 0)
    assert find_budget(1.0) == 250_000


def test_budget_of_a_group_that_is_used_up_is_nothing(groups: Path) -> None:
    """Never below nothing, also when more is cached than is said to be used."""
    (groups.parent / "own").write_text("0::/box\n")
    set_limit(groups / "box", V2, 100, 900)
    assert find_budget(1.0) == 0
    (groups / "box" / "memory.stat").write_text("file 5000\n")
    assert find_budget(1.0) == 100


@pytest.mark.parametrize(
    "text", ["", "\n", "rubbish", "4", "4:memory", "::", "0:cpu:/x", "\0" * 99], ids=ascii
)
def test_budget_without_a_readable_group_is_what_the_machine_has(groups: Path, text: str) -> None:
    """A system without control groups, or one that says something new."""
    (groups.parent / "own").write_text(text)
    assert find_budget(1.0) == 1_024_000


@pytest.mark.parametrize("limit", ["max", "", "-1", "many", "1e9", "\n\n"])
def test_budget_limit_that_is_no_number_is_none(groups: Path, limit: str) -> None:
    """`max` is the word for that; anything else is not guessed at."""
    (groups.parent / "own").write_text("0::/box\n")
    set_limit(groups / "box", V2, 0, 0)
    (groups / "box" / V2[0]).write_text(limit)
    assert find_budget(1.0) == 1_024_000


@pytest.mark.parametrize("text", ["", "MemTotal: 5 kB\n", "MemAvailable: some kB\n"])
def test_budget_where_memory_is_not_told_is_nothing(groups: Path, text: str) -> None:
    """Warming is left out rather than guessed."""
    (groups.parent / "meminfo").write_text(text)
    (groups.parent / "own").write_text("0::/\n")
    assert find_budget(1.0) == 0
