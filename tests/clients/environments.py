"""
Owns the environments that hold other releases of the clients, one virtual environment for each.

Knows nothing of what is tested with them.
Invariants: a requirement set is installed once and kept below .cache/clients, in a folder named
for the set and the interpreter; a folder without its mark of completion is made anew; where no
package registry answers, the tests are skipped by name, and any other failure is a failure.
Source: pip's and venv's documentation.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "clients"
READY_NAME = ".ready"
INSTALL_TIMEOUT_S = 600.0
NEWEST = "hub-newest"
# The newest huggingface_hub, with hf_xet, is in the environment of the tests themselves.
ENVIRONMENTS: Mapping[str, tuple[str, ...]] = {
    "hub-0.24": ("huggingface_hub==0.24.7",),
    "hub-0.36": ("huggingface_hub==0.36.2", "hf_xet==1.5.2", "hf_transfer==0.1.9"),
    # Its command line imports click without asking for it.
    "hub-1.10": ("huggingface_hub==1.10.2", "hf_xet==1.8.0", "click==8.1.8"),
    NEWEST: (),
    "transformers": ("transformers==5.23.0", "huggingface_hub==2.4.0", "hf_xet==1.8.0"),
    "modelscope": ("modelscope==1.40.2",),
}
# What pip says when nobody answers.
_NO_ANSWER = ("connection broken by", "Max retries exceeded")


@cache
def open_environment(name: str) -> Path:
    """
    Return the Python of an environment, made now if need be; skips the test where it cannot be.

    Raises:
        RuntimeError: pip failed for another reason than that nobody answers it.
    """
    requirements = ENVIRONMENTS[name]
    if not requirements:
        return Path(sys.executable)
    folder = CACHE / f"{name}-{make_key(requirements)}"
    with _locked(CACHE / f"{name}.lock"):
        if not (folder / READY_NAME).is_file():
            for old in CACHE.glob(f"{name}-*"):
                shutil.rmtree(old)
            _make(name, folder, requirements)
    return folder / "bin" / "python"


def make_key(requirements: tuple[str, ...]) -> str:
    """Return what tells one set of requirements, interpreter and place from any other."""
    version = ".".join(str(part) for part in sys.version_info[:3])
    # Programs name the interpreter by its path: a checkout that was moved needs its own.
    text = "\n".join([version, sys.platform, str(CACHE), *sorted(requirements)])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def find_curl() -> str:
    """Return where curl is; skips the test where it is not."""
    found = shutil.which("curl")
    if found is None:
        pytest.skip("curl is missing")
    return found


def _make(name: str, folder: Path, requirements: tuple[str, ...]) -> None:
    """Make the environment; its mark comes last."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    # Not compiled: most modules are never imported, and the rest is compiled when they are.
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--python", str(python), "install"),
            # With a retry, pip says that nobody answered; without, that there is no such package.
            *("--disable-pip-version-check", "--no-input", "--retries", "2", "--no-compile"),
            *requirements,
        ],
        capture_output=True,
        text=True,
        timeout=INSTALL_TIMEOUT_S,
        check=False,
    )
    if done.returncode == 0:
        (folder / READY_NAME).write_text("\n".join(requirements) + "\n")
        return
    shutil.rmtree(folder)
    said = f"{done.stdout}{done.stderr}"
    if any(words in said for words in _NO_ANSWER):
        pytest.skip(f"client environment {name} ({', '.join(requirements)}): no registry answers")
    raise RuntimeError(f"client environment {name} cannot be made: {said}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock file: two test runs must not make one environment at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
