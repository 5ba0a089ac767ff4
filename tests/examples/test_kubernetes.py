"""
Owns tests of the Kubernetes examples: their commands in a real shell, their gate against an API
server that speaks real HTTP.

Knows nothing of a cluster.
Invariants: what is run is what the files say.
Source: examples/kubernetes; Kubernetes, "Pod Scheduling Readiness"; RFC 6902.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from examples.kubernetes.gate import GATE, Gate, Kubernetes, is_for
from p2pcache.client import SpaceClient
from tests.daemons import DaemonProcess, wait_until
from tests.examples.conftest import EXAMPLES, MODEL

FOLDER = EXAMPLES / "kubernetes"


def read_yaml(name: str) -> list[dict[str, Any]]:
    """Return the objects of a file."""
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def test_objects_are_complete_and_fit_together() -> None:
    """Volumes that are mounted exist, names that refer lead somewhere."""
    [pod] = read_yaml("init-container.yaml")
    gated, daemons, account, role, binding = read_yaml("scheduling-gate.yaml")
    for spec in (pod["spec"], gated["spec"], daemons["spec"]["template"]["spec"]):
        volumes = {volume["name"] for volume in spec["volumes"]}
        for container in [*spec["containers"], *spec.get("initContainers", ())]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    assert gated["spec"]["schedulingGates"] == [{"name": GATE}]
    assert is_for(gated, {"accelerator": "h100"})
    assert not is_for(gated, {"accelerator": "l4"})
    spec = daemons["spec"]["template"]["spec"]
    assert spec["serviceAccountName"] == account["metadata"]["name"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"][0]["name"] == account["metadata"]["name"]


def test_init_container_becomes_ready_with_the_model_and_leases_it(
    daemon: DaemonProcess, environment: dict[str, str]
) -> None:
    """Its command fetches and stays, its probe tells when; at its end the lease ends."""
    [pod] = read_yaml("init-container.yaml")
    container = pod["spec"]["initContainers"][0]
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    variables["P2PCACHE_STORE"] = str(daemon.store)  # the test's, not the node's
    environment = {**environment, **variables}
    probe = container["startupProbe"]["exec"]["command"]

    def is_ready() -> bool:
        return subprocess.run(probe, env=environment, capture_output=True).returncode == 0

    assert not is_ready()
    process = subprocess.Popen(
        container["command"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        wait_until(is_ready, "readiness")
        leases = SpaceClient(daemon.local, daemon.store).leases
        wait_until(lambda: leases()["leases"], "a lease")
        process.terminate()
        process.wait(20)
        wait_until(lambda: not leases()["leases"], "the end of the lease")
    finally:
        process.kill()
        process.communicate()


# --- the gate ---


@dataclass
class FakeKubernetes:
    """An API server with one pod and some nodes."""

    pod: dict[str, Any]
    nodes: dict[str, dict[str, str]]
    patches: list[tuple[str, int]] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, path: str) -> dict[str, Any] | None:
        """Answer a GET."""
        self.queries.append(path)
        name = path.removeprefix("/api/v1/nodes/")
        if name in self.nodes:
            return {"metadata": {"name": name, "labels": self.nodes[name]}}
        if path == "/api/v1/pods?labelSelector=p2pcache.io%2Fgated%3Dtrue":
            return {"items": [copy.deepcopy(self.pod)]}
        return None

    def patch(self, path: str, operations: list[dict[str, Any]]) -> int:
        """Answer a PATCH as JSON Patch says; all of it or nothing."""
        with self.lock:
            changed = copy.deepcopy(self.pod)
            for operation in operations:
                *parents, last = operation["path"].strip("/").split("/")
                place: Any = changed
                for name in parents:
                    place = place[int(name) if isinstance(place, list) else name]
                key: Any = int(last) if isinstance(place, list) else last
                if operation["op"] == "test" and place[key] != operation["value"]:
                    return 422
                if operation["op"] == "remove":
                    del place[key]
                if operation["op"] == "add":
                    place[key] = operation["value"]
            changed["metadata"]["resourceVersion"] += "1"
            self.pod = changed
            return 200


@pytest.fixture
def kubernetes() -> Iterator[tuple[FakeKubernetes, str]]:
    """Serve one gated pod, and two nodes that it may run on, over HTTP."""
    pod = read_yaml("scheduling-gate.yaml")[0]
    pod["metadata"] |= {"namespace": "default", "resourceVersion": "7"}
    labels = {"accelerator": "h100"}
    nodes = {n: {**labels, "kubernetes.io/hostname": n} for n in ("gpu-1", "gpu-2")}
    fake = FakeKubernetes(pod, {**nodes, "small": {"accelerator": "l4"}})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(fake.get(self.path))

        def do_PATCH(self) -> None:
            assert self.headers["Content-Type"] == "application/json-patch+json"
            length = int(self.headers["Content-Length"])
            status = fake.patch(self.path, json.loads(self.rfile.read(length)))
            fake.patches.append((self.path, status))
            self._answer({} if status == 200 else None, status)

        def _answer(self, body: dict[str, Any] | None, status: int = 404) -> None:
            content = json.dumps(body or {}).encode()
            self.send_response(200 if body is not None else status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            """Stay quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield fake, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def make_gate(server: str, daemon: DaemonProcess, node: str, folder: Path) -> Gate:
    """Return the gate of a node; without a service account, as behind `kubectl proxy`."""
    return Gate(Kubernetes(server, folder), daemon.client, node)


def test_gate_lets_a_pod_go_when_its_model_is_resident(
    kubernetes: tuple[FakeKubernetes, str], daemon: DaemonProcess, tmp_path: Path
) -> None:
    """First it fetches, and the pod stays; then the pod goes, once, tied to the node."""
    fake, server = kubernetes
    gate = make_gate(server, daemon, "gpu-1", tmp_path)
    assert gate.look() == []
    assert fake.pod["spec"]["schedulingGates"] == [{"name": GATE}]
    wait_until(lambda: daemon.client.residency(MODEL)["state"] == "resident", "the model")
    assert gate.look() == ["default/qwen3"]
    assert fake.pod["spec"]["schedulingGates"] == []
    hostname = {"accelerator": "h100", "kubernetes.io/hostname": "gpu-1"}
    assert fake.pod["spec"]["nodeSelector"] == hostname
    assert gate.look() == []
    assert [status for _, status in fake.patches] == [200]


def test_gate_runs_as_its_daemon_set_says(
    kubernetes: tuple[FakeKubernetes, str],
    daemon: DaemonProcess,
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    """The container's command, with this test's API server: fetches, looks again, lets go."""
    fake, server = kubernetes
    [container] = read_yaml("scheduling-gate.yaml")[1]["spec"]["template"]["spec"]["containers"]
    shell, option, line = container["command"]
    line = line.replace("python3 /gate", f"{sys.executable} {FOLDER}")
    said = tmp_path / "said"
    with said.open("wb") as errors:
        process = subprocess.Popen(
            [shell, option, f"{line} --server {server} --every 0.1"],
            env={**environment, "NODE": "gpu-2"},
            stderr=errors,
        )
    try:
        wait_until(lambda: not fake.pod["spec"]["schedulingGates"], "the end of the gate")
        wait_until(lambda: "default/qwen3 goes to gpu-2" in said.read_text(), "the last word")
    finally:
        process.terminate()
        process.wait(timeout=20)
    assert f"fetching {MODEL}@main" in said.read_text()


def test_gates_of_two_nodes_let_a_pod_go_once(
    kubernetes: tuple[FakeKubernetes, str],
    daemon: DaemonProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both saw it gated and resident; the second one's patch is refused, and it says nothing."""
    fake, server = kubernetes
    assert daemon.pull(MODEL).returncode == 0
    first = make_gate(server, daemon, "gpu-1", tmp_path)
    second = make_gate(server, daemon, "gpu-2", tmp_path)
    before = copy.deepcopy(fake.pod)
    assert first.look() == ["default/qwen3"]
    monkeypatch.setattr(fake, "get", {
        "/api/v1/nodes/gpu-2": {"metadata": {"labels": fake.nodes["gpu-2"]}},
        "/api/v1/pods?labelSelector=p2pcache.io%2Fgated%3Dtrue": {"items": [before]},
    }.get)  # fmt: skip
    assert second.look() == []
    assert [status for _, status in fake.patches] == [200, 422]
    assert fake.pod["spec"]["nodeSelector"]["kubernetes.io/hostname"] == "gpu-1"


def test_gate_leaves_pods_alone_that_may_not_run_on_its_node(
    kubernetes: tuple[FakeKubernetes, str], daemon: DaemonProcess, tmp_path: Path
) -> None:
    """Nothing is fetched for them, either."""
    fake, server = kubernetes
    assert make_gate(server, daemon, "small", tmp_path).look() == []
    assert daemon.client.status()["downloads"] == 0
    assert daemon.client.residency(MODEL)["state"] == "absent"
    assert fake.patches == []


def test_gate_goes_on_after_a_pod_whose_model_cannot_be(
    kubernetes: tuple[FakeKubernetes, str],
    daemon: DaemonProcess,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log says which pod, and why; the pod stays gated."""
    fake, server = kubernetes
    fake.pod["metadata"]["annotations"]["p2pcache.io/model"] = "not a name"
    assert make_gate(server, daemon, "gpu-1", tmp_path).look() == []
    assert "default/qwen3 stays gated" in caplog.text
