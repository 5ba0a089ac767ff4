"""
Owns the machines that a swarm is measured on: network namespaces with shaped links on one switch,
or, without root, this machine under several names.

Knows nothing of p2pcache.
Invariants: whatever was made is removed, also when making it failed half-way; a link is shaped at
both of its ends, so a rate holds whoever sends; a machine's loopback is never shaped, so whoever
asks its local API costs it nothing.
Source: tc-tbf(8), veth(4), network_namespaces(7); setns(2) moves one thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar

from tests.discovery.link import run_ip

P = ParamSpec("P")
R = TypeVar("R")

_CLONE_NEWNET = 0x40000000
_PREFIX = "p2pswarm"
# Whoever asks a machine something while something else waits there: the pull, a poll, a metric.
THREADS_PER_MACHINE = 6
# A bucket must hold a segment as the kernel builds them (64 KiB), or each is cut up in software;
# a slow link must not give away a second of itself at once.
BURST_BYTES = 128 * 1024
BURST_SLOW_BYTES = 16 * 1024
SLOW_MBIT_S = 50.0
# Queue at a link's end, in time: what switches have, and enough for TCP to fill the link.
QUEUE_S = 0.025
QUEUE_BYTES_MIN = 64 * 1024


class Machine(Protocol):
    """Where programs run: on a link of its own, or on the one machine there is."""

    name: str
    address: str

    def submit(self, work: Callable[P, R], /, *arguments: P.args, **options: P.kwargs) -> Future[R]:
        """Run something in a thread that is on this machine."""
        ...

    def run(self, work: Callable[P, R], /, *arguments: P.args, **options: P.kwargs) -> R:
        """Run something on this machine and wait for it."""
        ...

    def count_sent_bytes(self) -> int | None:
        """Return the bytes that its link has sent, headers included; None if it has no link."""
        ...


@dataclass(frozen=True, slots=True)
class LinkRate:
    """What a machine's link carries, in megabits a second; None is unshaped."""

    up_mbit_s: float | None = None
    down_mbit_s: float | None = None


class Namespace:
    """A machine in a network namespace of its own."""

    def __init__(self, name: str, address: str, namespace: str, port: str) -> None:
        self.name = name
        self.address = address
        self.namespace = namespace
        self.port = port
        self._threads = ThreadPoolExecutor(
            THREADS_PER_MACHINE, thread_name_prefix=name, initializer=self._enter
        )

    def submit(self, work: Callable[P, R], /, *arguments: P.args, **options: P.kwargs) -> Future[R]:
        """Run something in a thread that is in the namespace; so are the processes it starts."""
        return self._threads.submit(work, *arguments, **options)

    def run(self, work: Callable[P, R], /, *arguments: P.args, **options: P.kwargs) -> R:
        """Run something in the namespace and wait for it."""
        return self.submit(work, *arguments, **options).result()

    def count_sent_bytes(self) -> int | None:
        """Return the bytes that its end of the link has sent."""
        text = self.run(Path("/proc/thread-self/net/dev").read_text)
        match = re.search(r"^\s*eth0:((?:\s+\d+)+)", text, re.MULTILINE)
        assert match is not None, "every machine has an eth0"
        return int(match[1].split()[8])

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _enter(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        with Path(f"/var/run/netns/{self.namespace}").open("rb") as handle:
            if libc.setns(handle.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")


class ShapedNetwork:
    """Machines on one switch, each behind a link with a rate of its own."""

    is_shaped = True

    def __init__(self, names: Sequence[str]) -> None:
        self._switch = f"{_PREFIX}-{os.getpid()}-sw"
        self.machines = {
            name: Namespace(name, f"10.77.1.{n + 1}", f"{_PREFIX}-{os.getpid()}-{n}", f"port{n}")
            for n, name in enumerate(names)
        }

    def shape(self, name: str, rate: LinkRate) -> None:
        """Give a machine's link another rate, from now on."""
        machine = self.machines[name]
        for namespace, device, mbit_s in (
            (machine.namespace, "eth0", rate.up_mbit_s),
            (self._switch, machine.port, rate.down_mbit_s),
        ):
            _tc(namespace, "qdisc", "del", "dev", device, "root", is_checked=False)
            if mbit_s is not None:
                _tc(namespace, "qdisc", "add", "dev", device, "root", *tbf_words(mbit_s))

    def find_free_port(self, name: str) -> int:
        """Return a port that nothing listens on, on a machine."""
        machine = self.machines[name]
        return machine.run(_find_free_port, machine.address)

    def _open(self, cleanup: contextlib.ExitStack) -> None:
        remove_leftovers()
        for namespace in [self._switch, *(m.namespace for m in self.machines.values())]:
            run_ip("netns", "add", namespace)
            cleanup.callback(run_ip, "netns", "del", namespace)
        _pass_frames(self._switch)
        run_ip("link", "add", "br0", "type", "bridge", in_namespace=self._switch)
        run_ip("link", "set", "br0", "up", in_namespace=self._switch)
        for machine in self.machines.values():
            inside, port = machine.namespace, machine.port
            run_ip("link", "add", port, "type", "veth", "peer", "eth0", "netns", inside,
                   in_namespace=self._switch)  # fmt: skip
            run_ip("link", "set", port, "master", "br0", "up", in_namespace=self._switch)
            run_ip("addr", "add", f"{machine.address}/24", "dev", "eth0", in_namespace=inside)
            run_ip("link", "set", "lo", "up", in_namespace=inside)
            run_ip("link", "set", "eth0", "up", in_namespace=inside)
            cleanup.callback(machine.close)
            machine.run(_use_cubic)


class LoopbackNetwork:
    """This machine under several names: nothing is shaped, nothing is told apart."""

    is_shaped = False

    def __init__(self, names: Sequence[str]) -> None:
        self.machines = {name: Local(name) for name in names}

    def shape(self, name: str, rate: LinkRate) -> None:
        """Do nothing: loopback has no rate."""

    def find_free_port(self, name: str) -> int:
        """Return a port that nothing listens on."""
        return _find_free_port(self.machines[name].address)


Network = ShapedNetwork | LoopbackNetwork


class Local:
    """This machine under another name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.address = "127.0.0.1"
        self._threads = ThreadPoolExecutor(THREADS_PER_MACHINE, thread_name_prefix=name)

    def submit(self, work: Callable[P, R], /, *arguments: P.args, **options: P.kwargs) -> Future[R]:
        """Run something in a thread."""
        return self._threads.submit(work, *arguments, **options)

    def run(self, work: Callable[P, R], /, *arguments: P.args, **options: P.kwargs) -> R:
        """Run something."""
        return work(*arguments, **options)

    def count_sent_bytes(self) -> int | None:
        """Return None: one loopback is everybody's."""
        return None

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def open_network(names: Sequence[str], *, is_shaped: bool) -> Iterator[Network]:
    """Make a network of these machines, and remove it."""
    with contextlib.ExitStack() as cleanup:
        if is_shaped:
            shaped = ShapedNetwork(names)
            shaped._open(cleanup)
            yield shaped
        else:
            network = LoopbackNetwork(names)
            for machine in network.machines.values():
                cleanup.callback(machine.close)
            yield network


def tbf_words(mbit_s: float) -> list[str]:
    """Return the tbf settings of a rate."""
    burst = BURST_BYTES if mbit_s >= SLOW_MBIT_S else BURST_SLOW_BYTES
    queue = max(QUEUE_BYTES_MIN, round(mbit_s * 1e6 / 8 * QUEUE_S))
    rate = f"{round(mbit_s * 1e6)}bit"
    return ["tbf", "rate", rate, "burst", f"{burst}b", "limit", f"{burst + queue}b"]


def remove_leftovers() -> None:
    """Remove the namespaces of measurements that were killed before they could."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    for line in listed.stdout.splitlines():
        match = re.match(rf"({_PREFIX}-(\d+)-\w+)", line)
        if match is not None and not Path(f"/proc/{match[2]}").exists():
            run_ip("netns", "del", match[1])


def _tc(namespace: str, *words: str, is_checked: bool = True) -> None:
    command = ["tc", "-n", namespace, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if is_checked and done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


def _pass_frames(switch: str) -> None:
    """
    Keep the host's packet filter out of a switch's frames.

    A switch has none; where the host loads br_netfilter, each frame went through it, at some
    hundredths of the processor time of a whole measurement.
    """
    for protocol in ("arp", "ip", "ip6"):
        setting = f"net.bridge.bridge-nf-call-{protocol}tables=0"
        command = ["ip", "netns", "exec", switch, "sysctl", "-q", "-w", setting]
        # Nothing to set where the filter is not there.
        subprocess.run(command, capture_output=True, check=False)


def _use_cubic() -> None:
    # What machines in the field have; a new namespace takes over whatever the host was set to.
    with contextlib.suppress(OSError):
        Path("/proc/sys/net/ipv4/tcp_congestion_control").write_text("cubic")


def _find_free_port(address: str) -> int:
    with socket.create_server((address, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
