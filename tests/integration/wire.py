"""
Owns a wire between two daemons that carries no more than a given rate.

Knows nothing of what goes over it.
Invariants: listens on loopback only; the rate holds over all its connections together; a side
that closes is closed on the other; a side that is silent is not.
Source: none.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from types import TracebackType

from tests.ports import pick_port

# Small, so that a slow wire is slow all the time and not in bursts.
PIECE_BYTES = 16 * 1024
# What the kernel may hold back on either side; else a megabyte would be "sent" and never arrive.
BUFFER_BYTES = 64 * 1024
JOIN_S = 5.0


class SlowWire:
    """
    A TCP relay with a pace. Attributes may be changed at any time.

    Attributes:
        address: Where to connect instead of the target.
        rate_bytes_per_s: Of what the target sends.
        relayed_bytes: What the target has sent so far.
    """

    def __init__(self, target: str, rate_bytes_per_s: float) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self.rate_bytes_per_s = rate_bytes_per_s
        self.relayed_bytes = 0
        self._pace = threading.Lock()
        self._ends: list[socket.socket] = []
        self._carriers: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", pick_port()))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> SlowWire:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _shut(self._listener)
        self._listener.close()
        for end in list(self._ends):
            _shut(end)
        for carrier in list(self._carriers):
            carrier.join(JOIN_S)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            carrier = threading.Thread(target=self._carry, args=(near,), daemon=True)
            self._carriers.append(carrier)
            carrier.start()

    def _carry(self, near: socket.socket) -> None:
        """Carry one connection to its end, and close both of its sides."""
        with near, contextlib.suppress(OSError), socket.create_connection(self._target) as far:
            for end in (near, far):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
                self._ends.append(end)
            asked = threading.Thread(target=self._relay, args=(near, far, False), daemon=True)
            asked.start()
            self._relay(far, near, True)
            asked.join()

    def _relay(self, source: socket.socket, sink: socket.socket, is_paced: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(PIECE_BYTES):
                if is_paced:
                    with self._pace:
                        time.sleep(len(piece) / self.rate_bytes_per_s)
                        self.relayed_bytes += len(piece)
                sink.sendall(piece)
        _shut(source)
        _shut(sink)


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
