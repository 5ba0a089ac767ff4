"""
Owns the tests of what the dialect decides purely: client releases, lists of branches, promises.

Knows nothing of HTTP.
Invariants: time is passed.
Source: core/hubclient.py, hubrefs.py, promises.py, saidrefs.py.
"""

from __future__ import annotations

import pytest

from p2pcache.core.hubclient import HeadForm, choose_head_form, find_client_release
from p2pcache.core.hubrefs import list_refs, pin_refs
from p2pcache.core.promises import PROMISE_S, PROMISES_MAX, Promise, Promises
from p2pcache.core.refs import ModelReference
from p2pcache.core.saidrefs import SaidRef
from p2pcache.errors import InputError

LIMIT_BYTES = 50_000_000_000
MAIN = ModelReference.parse("org/name")
OLD, NEW = Promise("1" * 40), Promise("2" * 40, is_stale=True)


@pytest.mark.parametrize(
    ("agent", "release"),
    [
        ("unknown/None; hf_hub/2.4.0; python/3.11.7", (2, 4)),
        ("transformers/5.0; hf_hub/1.30.0.rc1; torch/2", (1, 30)),
        ("hf_hub/0.24.7", (0, 24)),
        ("x_hf_hub/2.4.0", None),
        ("hf_hub/99999.1", None),
        ("hf_hub/", None),
        ("", None),
    ],
)
def test_client_release_is_read_from_the_user_agent(
    agent: str, release: tuple[int, int] | None
) -> None:
    """What is not huggingface_hub, or says no release, is none."""
    assert find_client_release(agent) == release


@pytest.mark.parametrize(
    ("agent", "above"),
    [
        ("hf_hub/0.30.2", HeadForm.SIZED),
        ("hf_hub/0.31.0", HeadForm.REFUSED),
        ("hf_hub/1.30.9", HeadForm.REFUSED),
        ("hf_hub/1.31.0", HeadForm.UNSIZED),
        ("hf_hub/10.0.0", HeadForm.UNSIZED),
        ("llama-cpp", HeadForm.SIZED),
    ],
)
def test_head_form_depends_on_the_release_above_fifty_gigabytes_only(
    agent: str, above: HeadForm
) -> None:
    """Exactly 50 GB is fetched by every client."""
    assert choose_head_form(agent, LIMIT_BYTES) is HeadForm.SIZED
    assert choose_head_form(agent, LIMIT_BYTES + 1) is above


def test_list_of_refs_puts_each_revision_into_its_group() -> None:
    """Branches, pull requests, conversions and tags, by the names that the hub gives them."""
    commits = {
        "main": "1",
        "dev/x": "2",
        "refs/pr/3": "3",
        "refs/convert/parquet": "4",
        "refs/tags/nightly": "5",
        "v1.0": "6",
    }
    listed = list_refs(commits, with_pull_requests=True)

    def show(group: str) -> list[tuple[str, ...]]:
        entries = listed[group]
        assert isinstance(entries, list)
        return [(entry["name"], entry["ref"], entry["targetCommit"]) for entry in entries]

    assert show("branches") == [
        ("dev/x", "refs/heads/dev/x", "2"),
        ("main", "refs/heads/main", "1"),
    ]
    assert show("pullRequests") == [("refs/pr/3", "refs/pr/3", "3")]
    assert show("converts") == [("parquet", "refs/convert/parquet", "4")]
    assert show("tags") == [("nightly", "refs/tags/nightly", "5"), ("v1.0", "refs/tags/v1.0", "6")]
    assert "pullRequests" not in list_refs(commits, with_pull_requests=False)


def test_pinned_refs_replace_the_hubs_and_nothing_else() -> None:
    """A branch is replaced by name, a pull request by its whole name; odd answers pass."""
    listed = {
        "branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": "old"}, 7],
        "tags": [{"name": "v1", "ref": "refs/tags/v1", "targetCommit": "tag"}],
        "pullRequests": [{"name": "1", "ref": "refs/pr/1", "targetCommit": "pr"}],
        "converts": None,
    }
    assert pin_refs(listed, {"main": "new", "refs/pr/1": "pinned"}) == {
        "branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": "new"}, 7],
        "tags": [{"name": "v1", "ref": "refs/tags/v1", "targetCommit": "tag"}],
        "pullRequests": [{"name": "1", "ref": "refs/pr/1", "targetCommit": "pinned"}],
        "converts": None,
    }
    assert pin_refs(["odd"], {"main": "new"}) == ["odd"]


def test_promise_is_kept_for_its_client_and_no_longer_than_said() -> None:
    """Two clients who were told different things get what each was told; then nothing."""
    promises = Promises()
    promises.note("a", MAIN, "f", OLD, now_s=0.0)
    promises.note("b", MAIN, "f", NEW, now_s=1.0)
    assert promises.find("a", MAIN, "f", now_s=2.0) == OLD
    assert promises.find("b", MAIN, "f", now_s=2.0) == NEW
    assert promises.find("c", MAIN, "f", now_s=2.0) == NEW
    assert promises.find("a", MAIN, "other", now_s=2.0) is None
    assert promises.find("a", MAIN, "f", now_s=PROMISE_S) is None
    assert promises.find("c", MAIN, "f", now_s=1.0 + PROMISE_S) is None


def test_promises_forget_the_oldest_above_their_limits() -> None:
    """Clients of one file and files are bounded; who is forgotten goes by what was said last."""
    promises = Promises()
    promises.note("first", MAIN, "f", OLD, now_s=0.0)
    for number in range(Promises.CLIENTS_PER_FILE_MAX):
        promises.note(number, MAIN, "f", NEW, now_s=0.0)
    assert promises.find("first", MAIN, "f", now_s=1.0) == NEW
    for number in range(PROMISES_MAX):
        promises.note("a", MAIN, str(number), OLD, now_s=0.0)
    assert promises.find("a", MAIN, "f", now_s=1.0) is None
    assert promises.find("a", MAIN, "0", now_s=1.0) == OLD


def test_age_of_a_word_survives_the_way_to_a_peer() -> None:
    """Milliseconds, bounded; what is no number is refused; silence is no age."""
    assert SaidRef.find_in(SaidRef(1.25).to_json()) == SaidRef(1.25)
    assert SaidRef.find_in(SaidRef(1e12).to_json()) == SaidRef(86_400.0)
    assert SaidRef.find_in(SaidRef(-5.0).to_json()) == SaidRef(0.0)
    assert SaidRef.find_in({"hub": "hf"}) is None
    for age in (-1, 1e3, "1", 86_400_001):
        with pytest.raises(InputError):
            SaidRef.find_in({"age_ms": age})
