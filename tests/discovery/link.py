"""
Owns the networks that these tests run in: private namespaces, bridges and cables between them.

Knows nothing of p2pcache.
Invariants: whatever was made is removed, also when making it failed half-way; names are unique.
Source: network_namespaces(7), ip-netns(8).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True, slots=True)
class Host:
    """A machine on a test link: the name of its namespace and its address there."""

    namespace: str
    address: str


def find_obstacle() -> str | None:
    """Return why namespaces cannot be used here, or None if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "the command `ip` is missing; install iproute2"
    probe = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    return None if probe.returncode == 0 else "this container forbids network namespaces"


def run_ip(*arguments: str, in_namespace: str | None = None) -> str:
    """Run ip(8), in a namespace if given, and return what it printed; an error is an exception."""
    where = ["-n", in_namespace] if in_namespace else []
    done = subprocess.run(["ip", *where, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join([*where, *arguments])}: {done.stderr.strip()}")
    return done.stdout


def is_link_up(name: str) -> bool:
    """
    Tell whether the kernel counts an interface as usable.

    It does so some time after `ip link set up` has returned: the state is brought up to date by
    a task of its own, which waits for a lock that all network namespaces share.
    """
    return "state UP" in run_ip("-oneline", "link", "show", name)


@contextlib.contextmanager
def private_network() -> Iterator[None]:
    """Move this thread into a new namespace that has only loopback, and back at the end."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(_CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        try:
            run_ip("link", "set", "lo", "up")
            yield
        finally:
            if libc.setns(home, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(home)


@contextlib.contextmanager
def bridged_hosts(count: int) -> Iterator[list[Host]]:
    """Make hosts on one switch: a namespace for the bridge, and one for each host."""
    tag = secrets.token_hex(3)
    switch = f"p2pc-{tag}-sw"
    hosts = [Host(f"p2pc-{tag}-{i}", f"10.77.0.{i + 1}") for i in range(count)]
    with contextlib.ExitStack() as cleanup:
        for name in [switch, *(host.namespace for host in hosts)]:
            run_ip("netns", "add", name)
            cleanup.callback(run_ip, "netns", "del", name)
        run_ip("link", "add", "br0", "type", "bridge", in_namespace=switch)
        run_ip("link", "set", "br0", "up", in_namespace=switch)
        for i, host in enumerate(hosts):
            inside, port = host.namespace, f"port{i}"
            run_ip("link", "add", port, "type", "veth", "peer", "eth0", "netns", inside,
                   in_namespace=switch)  # fmt: skip
            run_ip("link", "set", port, "master", "br0", "up", in_namespace=switch)
            run_ip("addr", "add", f"{host.address}/24", "dev", "eth0", in_namespace=inside)
            run_ip("link", "set", "lo", "up", in_namespace=inside)
            run_ip("link", "set", "eth0", "up", in_namespace=inside)
        yield hosts
