"""
Owns the tests of store.lookjson.

Knows nothing of indexes and disks: what a look found is given.
Invariants: field names are the contract's; what is not known is null.
Source: store/lookjson.py; docs/reference/http-api.md (what is here).
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from p2pcache.core.listing import Listing
from p2pcache.core.refs import ModelReference, RepoId, SnapshotId
from p2pcache.core.residency import Residency, State
from p2pcache.core.snapshot import FileEntry
from p2pcache.core.tensors import Format
from p2pcache.core.weights import FLOOR_FIXED_BYTES, ShapeCount, Weights
from p2pcache.store.indexreader import SnapshotFacts
from p2pcache.store.lookjson import describe_look, describe_unknown
from p2pcache.store.lookup import Look
from tests.samples import COMMIT, make_sample

REPO = RepoId.of("ms", "models", "org/model")
REFERENCE = ModelReference(REPO, "master")
SAMPLE = make_sample(1000)
ENTRY = FileEntry("a.safetensors", 1000, SAMPLE.blob, COMMIT)
FILES = Listing.of(SnapshotId(REPO, COMMIT), [ENTRY])
FACTS = SnapshotFacts(FILES, True, None, False)
PARTIAL = Look(FACTS, FILES, Residency(State.PARTIAL, 1000, 400), need_bytes=600)
RESIDENT = Look(FACTS, FILES, Residency(State.RESIDENT, 1000, 1000, 9.5), path="/here")
WEIGHTS = Weights(
    Format.SAFETENSORS, 1, 1000, 2, 900, 800, {"BF16": 450}, (ShapeCount((4, 100), 800, 1),)
)


def test_unknown_model_has_every_field_and_no_figure() -> None:
    """Null and zero, in the same fields as a model that is known."""
    answer = describe_unknown(REFERENCE, 77)
    assert answer == {
        "model": "ms:org/model",
        "commit": None,
        "state": "absent",
        "pinned": False,
        "bytes_total": None,
        "bytes_local": 0,
        "bytes_missing": None,
        "missing_from_peers": None,
        "missing_from_upstream": None,
        "eta_s": {"p50": None, "p95": None},
        "disk_free": 77,
        "fits_disk": None,
        "weights": None,
        "memory_floor_bytes": None,
    }
    # Whether a list was confirmed is no question where there is none.
    assert set(describe_look(REFERENCE, PARTIAL, 77)) == {*answer, "confirmed"}


def test_look_at_a_part_leaves_open_where_the_rest_comes_from() -> None:
    """Only a daemon knows peers and rates."""
    assert describe_look(REFERENCE, PARTIAL, 5000) == {
        "model": "ms:org/model",
        "commit": COMMIT,
        "confirmed": True,
        "state": "partial",
        "pinned": False,
        "bytes_total": 1000,
        "bytes_local": 400,
        "bytes_missing": 600,
        "missing_from_peers": None,
        "missing_from_upstream": None,
        "eta_s": {"p50": None, "p95": None},
        "disk_free": 5000,
        "fits_disk": True,
        "weights": None,
        "memory_floor_bytes": None,
    }


def test_look_at_what_is_whole_knows_that_nothing_is_to_come() -> None:
    """No byte from anybody, no second to wait; when it was hashed, and where a loader opens it."""
    facts = replace(FACTS, is_pinned=True, is_confirmed=False)
    answer = describe_look(REFERENCE, replace(RESIDENT, facts=facts), 0)
    assert (answer["state"], answer["pinned"], answer["confirmed"]) == ("resident", True, False)
    assert (answer["missing_from_peers"], answer["missing_from_upstream"]) == (0, 0)
    assert answer["eta_s"] == {"p50": 0.0, "p95": 0.0}
    assert (answer["bytes_missing"], answer["fits_disk"]) == (0, True)
    assert (answer["verified_at"], answer["path"]) == (9.5, "/here")


def test_look_whole_bytes_that_are_not_proven_have_no_path_and_no_time() -> None:
    """Nothing is missing, and a loader is not sent there yet."""
    for state in (State.VERIFYING, State.CORRUPT):
        look = replace(RESIDENT, residency=Residency(state, 1000, 1000))
        answer = describe_look(REFERENCE, look, 0)
        assert (answer["state"], answer["bytes_missing"]) == (state.value, 0)
        assert not {"verified_at", "path"} & set(answer)
    unlinked = describe_look(REFERENCE, replace(RESIDENT, path=None), 0)
    assert (unlinked["state"], "path" in unlinked) == ("resident", False)


@pytest.mark.parametrize(("disk_free", "fits"), [(599, False), (600, True), (601, True)])
def test_look_fits_a_disk_that_has_what_it_needs(disk_free: int, fits: bool) -> None:
    """To the last byte."""
    assert describe_look(REFERENCE, PARTIAL, disk_free)["fits_disk"] is fits


def test_look_weights_are_told_in_the_words_of_their_format() -> None:
    """Counts and bytes are whole numbers; nothing of ranks where nobody asked."""
    answer = describe_look(REFERENCE, replace(PARTIAL, weights=WEIGHTS, variants=1), 0)
    assert answer["weights"] == {
        "format": "safetensors",
        "files": 1,
        "bytes": 900,
        "file_bytes": 1000,
        "params": {"BF16": 450},
        "tensors": 2,
        "largest_tensor_bytes": 800,
    }
    assert answer["memory_floor_bytes"] == 1080 + FLOOR_FIXED_BYTES
    assert "memory_floor_per_rank_bytes" not in answer


def test_look_weights_are_split_by_every_number_of_ranks() -> None:
    """Under the names that were asked for, each with its floor."""
    answer = describe_look(REFERENCE, replace(PARTIAL, weights=WEIGHTS, variants=1), 0, (2, 3, 4))
    described = answer["weights"]
    assert isinstance(described, dict)
    # Neither 4 nor 100 can be divided by three: every rank holds all of it.
    assert described["per_rank_bytes"] == {"tp=2": 400, "tp=3": 800, "tp=4": 200}
    assert answer["memory_floor_per_rank_bytes"] == {
        "tp=2": 480 + FLOOR_FIXED_BYTES,
        "tp=3": 960 + FLOOR_FIXED_BYTES,
        "tp=4": 240 + FLOOR_FIXED_BYTES,
    }
    unread = describe_look(REFERENCE, PARTIAL, 0, (2,))
    assert (unread["weights"], unread["memory_floor_bytes"]) == (None, None)
    assert "memory_floor_per_rank_bytes" not in unread


def test_look_at_several_variants_has_no_floor_for_all_of_them() -> None:
    """Nobody loads every quantisation at once: no number is better than that one."""
    look = replace(PARTIAL, weights=replace(WEIGHTS, format=Format.GGUF), variants=3)
    answer = describe_look(REFERENCE, look, 0, (2,))
    described = answer["weights"]
    assert isinstance(described, dict)
    assert (described["format"], described["variants"]) == ("gguf", 3)
    assert answer["memory_floor_bytes"] is None
    assert not {"per_rank_bytes"} & set(described)
    assert "memory_floor_per_rank_bytes" not in answer


def test_look_answers_do_not_change_with_what_callers_add() -> None:
    """The daemon puts its own figures in: into one answer, not into all."""
    first = describe_look(REFERENCE, PARTIAL, 0)
    first["missing_from_peers"] = 5
    assert describe_look(REFERENCE, PARTIAL, 0)["missing_from_peers"] is None
    for answer in (first, describe_look(REFERENCE, replace(RESIDENT, weights=WEIGHTS), 0, (2,))):
        assert json.loads(json.dumps(answer)) == answer
