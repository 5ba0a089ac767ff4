"""
Owns that the environments of clients are made once, anew when they change, and never in silence.

Knows nothing of clients.
Invariants: no registry is asked; the one that is named does not listen.
Source: none.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.clients import environments
from tests.clients.environments import NEWEST, READY_NAME, make_key, open_environment

NAME = "nothing"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep environments in a folder of the test's own, with a registry that does not answer."""
    monkeypatch.setattr(environments, "CACHE", tmp_path)
    for name, value in {
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_INDEX_URL": "http://127.0.0.1:1/simple",
        "PIP_FIND_LINKS": "",
    }.items():
        monkeypatch.setenv(name, value)
    open_environment.cache_clear()
    return tmp_path


def require(monkeypatch: pytest.MonkeyPatch, *requirements: str) -> None:
    """Let there be one environment, of these requirements."""
    monkeypatch.setattr(environments, "ENVIRONMENTS", {NAME: requirements})


def test_environment_without_a_registry_is_skipped_by_its_name(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The skip says which environment is missing, and why; nothing half made is left."""
    require(monkeypatch, "a-package-of-nobody==1.0")
    with pytest.raises(pytest.skip.Exception, match=rf"{NAME}.*a-package-of-nobody.*no registry"):
        open_environment(NAME)
    assert not list(cache.glob(f"{NAME}-*"))


def test_environment_of_a_checkout_that_was_moved_is_another_one(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its programs would look for the interpreter where the checkout was."""
    here = make_key(("a-package-of-nobody==1.0",))
    monkeypatch.setattr(environments, "CACHE", cache / "elsewhere")
    assert make_key(("a-package-of-nobody==1.0",)) != here


def test_environment_that_fails_otherwise_is_an_error(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A requirement that cannot be read is not taken for a registry that is away."""
    require(monkeypatch, "not a requirement ==")
    with pytest.raises(RuntimeError, match=NAME):
        open_environment(NAME)
    assert not list(cache.glob(f"{NAME}-*"))


def test_environment_is_made_once_and_anew_when_it_has_no_mark(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One with its mark is used as it is; else it, and any older one of the name, is replaced."""
    require(monkeypatch, "a-package-of-nobody==1.0")
    former = cache / f"{NAME}-{make_key(('a-package-of-nobody==0.9',))}"
    current = cache / f"{NAME}-{make_key(('a-package-of-nobody==1.0',))}"
    assert former != current
    for folder in (former, current):
        (folder / "bin").mkdir(parents=True)
    (current / READY_NAME).touch()
    assert open_environment(NAME) == current / "bin" / "python"
    (current / READY_NAME).unlink()
    open_environment.cache_clear()
    with pytest.raises(pytest.skip.Exception):
        open_environment(NAME)
    assert not former.exists()
    assert not current.exists()


def test_newest_client_is_in_the_environment_of_the_tests() -> None:
    """The short run is with the release that users get today, and with Xet at hand."""
    assert environments.ENVIRONMENTS[NEWEST] == ()
    for name in ("huggingface_hub", "hf_xet"):
        assert importlib.util.find_spec(name) is not None
