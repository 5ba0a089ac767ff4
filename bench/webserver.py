"""
Owns the same bytes over a plain web server: nginx → curl to a file, nothing checked.

Knows nothing of p2pcache.
Invariants: nginx has one worker and sendfile, as most installations do; it is gone afterwards.
Source: nginx's documentation of `sendfile`, `worker_processes`.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from bench.daemonstats import read_cpu_s

START_S_MAX = 10.0
_CONFIGURATION = """
{user}
worker_processes 1;
pid {scratch}/nginx.pid;
error_log {scratch}/nginx.log;
events {{}}
http {{
  access_log off;
  sendfile on;
  client_body_temp_path {scratch}/t1;
  proxy_temp_path {scratch}/t2;
  fastcgi_temp_path {scratch}/t3;
  uwsgi_temp_path {scratch}/t4;
  scgi_temp_path {scratch}/t5;
  server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


@dataclass(frozen=True, slots=True)
class WebTimes:
    """What one transfer took."""

    seconds: float
    server_cpu_s: float
    client_cpu_s: float


def measure_nginx(source: Path, scratch: Path) -> WebTimes | None:
    """Return what nginx → curl needs for a file; None when one of them is not there."""
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None or shutil.which("curl") is None:
        return None
    scratch.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    configuration = scratch / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    configuration.write_text(
        _CONFIGURATION.format(user=user, scratch=scratch, port=port, root=source.parent)
    )
    server = subprocess.Popen(
        [nginx, "-c", str(configuration), "-g", "daemon off;"], stderr=subprocess.DEVNULL
    )
    try:
        _wait_for(port, server)
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        workers = [int(pid) for pid in children]
        before = sum(read_cpu_s(pid) or 0.0 for pid in workers)
        target = scratch / "curl"
        seconds, client_cpu_s = run_curl(f"http://127.0.0.1:{port}/{source.name}", target)
        after = sum(read_cpu_s(pid) or 0.0 for pid in workers)
    finally:
        server.terminate()
        server.wait()
    return WebTimes(seconds, after - before, client_cpu_s)


def run_curl(url: str, target: Path) -> tuple[float, float]:
    """Fetch an address to a file, which is removed; return seconds and CPU seconds."""
    before, started = os.times(), time.monotonic()
    subprocess.run(["curl", "--silent", "--fail", "--output", str(target), url], check=True)
    seconds, after = time.monotonic() - started, os.times()
    target.unlink()
    cpu_s = after.children_user - before.children_user
    return seconds, cpu_s + after.children_system - before.children_system


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    until_s = time.monotonic() + START_S_MAX
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if server.poll() is not None or time.monotonic() > until_s:
                raise
            time.sleep(0.05)
