"""
Owns a forked child that runs one piece of work and tells its parent what it did.

Knows nothing of the work.
Invariants: the parent has neither threads nor an event loop when it forks; every child ends, at
the latest when its time is up, and shows then where each of its threads stood.
Source: none.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

# The slowest piece of work takes 3 s on a busy machine of two cores; this one hangs.
CHILD_S_MAX = 30.0
_DUMP_S_MAX = 2.0
_PIPE_BYTES = 1 << 16
_LOG_CHARS_MAX = 6000

Message = dict[str, Any]


class Channel:
    """The child's end of the pipe. Safe from several threads."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._write = os.write
        self._lock = threading.Lock()

    def tell(self, what: str, **fields: Any) -> None:
        """Send a message; it is with the parent when this returns, whatever comes next."""
        line = json.dumps({"what": what, **fields}).encode() + b"\n"
        with self._lock:
            while line:
                line = line[self._write(self._fd, line) :]


@dataclass(slots=True)
class Outcome:
    """What a child said, and how it ended."""

    messages: list[Message] = field(default_factory=list)
    status: int = 0
    is_hung: bool = False
    log: str = ""

    @property
    def was_killed(self) -> bool:
        """Return whether it ended by SIGKILL, and not for being late."""
        return os.WIFSIGNALED(self.status) and not self.is_hung

    @property
    def is_well(self) -> bool:
        """Return whether it came to its end."""
        return self.status == 0 and not self.is_hung

    def all(self, what: str) -> list[Message]:
        """Return the messages of one kind."""
        return [message for message in self.messages if message["what"] == what]


def run_child(
    work: Callable[[Channel], None],
    *,
    timeout_s: float = CHILD_S_MAX,
    attend: Callable[[int], None] | None = None,
) -> Outcome:
    """
    Fork, do the work there, return what it told.

    Args:
        work: Done in the child.
        timeout_s: When it counts as hanging.
        attend: Called in the parent with the child's pid before the work begins.
    """
    receiver, sender = os.pipe2(os.O_CLOEXEC)
    gate, opener = os.pipe2(os.O_CLOEXEC)
    with tempfile.TemporaryFile() as log:
        pid = os.fork()
        if pid == 0:
            os.close(receiver)
            os.close(opener)
            os.read(gate, 1)
            _work_and_end(work, Channel(sender), log)
        os.close(sender)
        os.close(gate)
        outcome = Outcome()
        try:
            if attend is not None:
                attend(pid)
            os.close(opener)
            outcome.is_hung = not _read(receiver, pid, outcome, timeout_s)
        finally:
            os.close(receiver)
            _, outcome.status = os.waitpid(pid, 0)
        log.seek(0)
        outcome.log = log.read().decode(errors="replace")[-_LOG_CHARS_MAX:]
        return outcome


def _work_and_end(work: Callable[[Channel], None], channel: Channel, log: IO[bytes]) -> None:
    """The child's whole life; never returns."""
    code = 1
    try:
        os.dup2(log.fileno(), 2)
        faulthandler.register(signal.SIGUSR1, file=log.fileno(), all_threads=True)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        work(channel)
        code = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(code)


def _read(fd: int, pid: int, outcome: Outcome, timeout_s: float) -> bool:
    """Collect messages until the child ends; False when it had to be ended."""
    deadline_s = time.monotonic() + timeout_s
    rest, is_dumped = b"", False
    while True:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            os.kill(pid, signal.SIGKILL if is_dumped else signal.SIGUSR1)
            if is_dumped:
                return False
            is_dumped, deadline_s = True, time.monotonic() + _DUMP_S_MAX
            continue
        if not select.select([fd], [], [], left_s)[0]:
            continue
        piece = os.read(fd, _PIPE_BYTES)
        if not piece:
            return not is_dumped
        *lines, rest = (rest + piece).split(b"\n")
        outcome.messages += [json.loads(line) for line in lines]
