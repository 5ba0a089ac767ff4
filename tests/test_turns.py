"""
Owns tests of the turns that tests take on the machine.

Knows nothing of pytest.
Invariants: every wait is for a condition; threads stand for the processes, as flock(2) locks the
opened file and not the process.
Source: tests/turns.py.
"""

from __future__ import annotations

import fcntl
import threading
from pathlib import Path

from tests.daemons import wait_until
from tests.turns import take_turn

JOIN_S = 20.0


class Player:
    """Somebody who takes a turn, and has it until told to go."""

    def __init__(self, folder: Path, *, is_alone: bool = False) -> None:
        self.has_turn = threading.Event()
        self._may_go = threading.Event()
        self._folder, self._is_alone = folder, is_alone
        self._thread = threading.Thread(target=self._play, daemon=True)
        self._thread.start()

    def _play(self) -> None:
        with take_turn(self._folder, is_alone=self._is_alone):
            self.has_turn.set()
            self._may_go.wait(JOIN_S)
            self.has_turn.clear()

    def go(self) -> None:
        """Give the turn back."""
        self._may_go.set()
        self._thread.join(JOIN_S)
        assert not self._thread.is_alive()


def is_closed(path: Path) -> bool:
    """Return whether somebody has locked a file against everybody."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_shared_turns_are_side_by_side(tmp_path: Path) -> None:
    """Tests that measure nothing do not wait for each other."""
    players = [Player(tmp_path) for _ in range(3)]
    for player in players:
        wait_until(player.has_turn.is_set, "a turn beside the others")
    assert all(player.has_turn.is_set() for player in players), "nobody had to go first"
    assert not is_closed(tmp_path / "gate")
    for player in players:
        player.go()
    assert not is_closed(tmp_path / "floor")


def test_lone_turn_comes_after_those_under_way_and_before_later_ones(tmp_path: Path) -> None:
    """Nobody plays beside it, and those who come later cannot starve it."""
    early = Player(tmp_path)
    wait_until(early.has_turn.is_set, "the first turn")
    lone = Player(tmp_path, is_alone=True)
    wait_until(lambda: is_closed(tmp_path / "gate"), "the lone one waits inside the gate")
    late = Player(tmp_path)
    assert not lone.has_turn.is_set()
    early.go()
    wait_until(lone.has_turn.is_set, "the lone turn")
    wait_until(lambda: is_closed(tmp_path / "gate"), "the late one waits inside the gate")
    assert not late.has_turn.is_set()
    lone.go()
    wait_until(late.has_turn.is_set, "the turn after it")
    late.go()
