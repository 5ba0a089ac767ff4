"""
Owns tests of the Ray example: the callback, called as Ray Serve LLM calls it.

Knows nothing of Ray, which is not installed here: the constructor's arguments and the order of the
calls are those of its documentation.
Invariants: a real daemon.
Source: examples/ray/callback.py; Ray Serve LLM, "Callbacks".
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.ray import callback
from p2pcache.client import SpaceClient
from p2pcache.errors import RepositoryNotFoundError
from tests.daemons import DaemonProcess
from tests.examples.conftest import MODEL


@pytest.fixture(autouse=True)
def leases(daemon: DaemonProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the callback find the daemon; end its leases as the end of its process would."""
    monkeypatch.setenv("P2PCACHE_STORE", str(daemon.store))
    yield
    while callback._LEASES:
        callback._LEASES.popitem()[1].end()


def make_callback(model: str) -> callback.ResidentModelCallback:
    """Return the callback as Ray makes it from `callback_kwargs`."""
    return callback.ResidentModelCallback(
        llm_config=object(), raise_error_on_callback=True, ctx_kwargs={}, model=model, timeout_s=30
    )


def test_callback_has_the_model_before_the_engine_looks_for_it(daemon: DaemonProcess) -> None:
    """Both hooks, in their order; one lease for the process, held while it lives."""
    made = make_callback(MODEL)
    asyncio.run(made.on_before_node_init())
    residency = daemon.client.residency(MODEL)
    assert residency["state"] == "resident"
    made.on_before_download_model_files_distributed()
    [lease] = SpaceClient(daemon.local, daemon.store).leases()["leases"]
    assert (lease["holder"], lease["path"]) == ("ray", residency["path"])
    assert callback.bring(MODEL) == residency["path"]
    assert (Path(residency["path"]) / "model.safetensors").stat().st_size == 3_000_000


def test_callback_of_a_model_that_cannot_be_had_fails_the_deployment(
    daemon: DaemonProcess,
) -> None:
    """With the hub's reason, which Ray shows."""
    with pytest.raises(RepositoryNotFoundError, match="no/such"):
        make_callback("no/such").on_before_download_model_files_distributed()
