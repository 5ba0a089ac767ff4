"""
Owns the tests of core.peers.

Knows nothing of connections.
Invariants: a ban needs proof or several faults in a row, has a reason and an end.
Source: core/peers.py.
"""

from __future__ import annotations

from p2pcache.core.peers import (
    BAN_S,
    FAULTS_KEPT_MAX,
    FAULTS_PER_SOURCE_MAX,
    PROTOCOL_FAULTS_IN_A_ROW_MAX,
    RECORDS_MAX,
    Ban,
    BlameBook,
    Fault,
)


def make_fault(source_id: str = "liar", detail: str = "chunk 3 was wrong") -> Fault:
    """Make one fault."""
    return Fault(source_id, f"name of {source_id}", "wrong bytes", detail, 1.0)


def test_blame_wrong_byte_bans_at_once_with_the_reason() -> None:
    """One proven wrong byte is enough, and the reason is kept."""
    book = BlameBook()
    book.note_wrong_bytes(make_fault(), now_s=10.0)
    assert book.find_ban("liar", now_s=10.0) == "chunk 3 was wrong"
    assert book.find_ban("other", now_s=10.0) is None
    assert list(book.faults) == [make_fault()]


def test_blame_ban_ends_after_its_time() -> None:
    """A banned source is asked again later."""
    book = BlameBook()
    book.note_wrong_bytes(make_fault(), now_s=10.0)
    assert book.find_ban("liar", now_s=10.0 + BAN_S - 0.001)
    assert book.find_ban("liar", now_s=10.0 + BAN_S) is None


def test_blame_faults_in_a_row_ban_only_the_last_time() -> None:
    """Broken promises are forgiven until there are several in a row."""
    book = BlameBook()
    for _ in range(PROTOCOL_FAULTS_IN_A_ROW_MAX - 1):
        book.note_fault(make_fault(), now_s=0.0)
    assert book.find_ban("liar", now_s=0.0) is None
    book.note_fault(make_fault(detail="once too often"), now_s=0.0)
    assert book.find_ban("liar", now_s=0.0) == "once too often"


def test_blame_good_run_starts_the_count_anew() -> None:
    """Faults that are not in a row do not ban; praise for strangers is ignored."""
    book = BlameBook()
    for _ in range(3 * PROTOCOL_FAULTS_IN_A_ROW_MAX):
        book.note_fault(make_fault(), now_s=0.0)
        book.note_good("liar")
        book.note_good("stranger")
    assert book.find_ban("liar", now_s=0.0) is None


def test_blame_good_run_does_not_lift_a_ban() -> None:
    """A run that was under way when the proof came changes nothing."""
    book = BlameBook()
    book.note_wrong_bytes(make_fault(), now_s=0.0)
    book.note_good("liar")
    assert book.find_ban("liar", now_s=1.0)


def test_blame_memory_is_bounded() -> None:
    """Many faults of many sources keep only the most recent ones."""
    book = BlameBook()
    for n in range(RECORDS_MAX + 1):
        book.note_wrong_bytes(make_fault(f"source-{n}"), now_s=0.0)
    assert len(book.faults) == FAULTS_KEPT_MAX
    assert book.find_ban("source-0", now_s=0.0) is None
    assert book.find_ban("source-1", now_s=0.0)


def test_blame_lists_who_is_banned_and_for_how_long() -> None:
    """A name, the reason, what is left of the hour; who is not banned any more is not listed."""
    book = BlameBook()
    book.note_wrong_bytes(make_fault(), now_s=0.0)
    book.note_wrong_bytes(make_fault("other", "chunk 4"), now_s=100.0)
    book.note_fault(make_fault("third"), now_s=100.0)
    assert book.list_bans(now_s=200.0) == [
        Ban("liar", "name of liar", "chunk 3 was wrong", BAN_S - 200),
        Ban("other", "name of other", "chunk 4", BAN_S - 100),
    ]
    assert [ban.source_id for ban in book.list_bans(now_s=BAN_S)] == ["other"]
    assert book.list_bans(now_s=2 * BAN_S) == []


def test_blame_lists_the_last_faults_of_a_source_whatever_others_did() -> None:
    """One that fails all the time does not push another's faults out of sight."""
    book = BlameBook()
    seldom = Fault("seldom", "name", "protocol", "too short", 1.0)
    book.note_fault(seldom, now_s=0.0)
    untold = Fault("seldom", "name", "other layout", "cut wrongly", 2.0)
    for n in range(2 * FAULTS_KEPT_MAX):
        book.note_fault(make_fault("often", str(n)), now_s=0.0)
    book.faults.append(untold)
    assert book.list_faults("seldom") == [seldom, untold]
    often = book.list_faults("often")
    assert [int(fault.detail) for fault in often] == [
        2 * FAULTS_KEPT_MAX - n for n in range(FAULTS_PER_SOURCE_MAX, 0, -1)
    ]
    assert book.list_faults("stranger") == []
