"""
Owns the scheduling gate of one node: fetch the models of gated pods, and let a pod go where its
model is resident first.

Knows nothing of how a model comes here; asks the node's p2pcache daemon.
Invariants: a pod is let go once, by one node, and is tied to that node; a pod that changed in
between is looked at again; what goes wrong with one pod stops no other.
Source: Kubernetes, "Pod Scheduling Readiness"; RFC 6902 (JSON Patch, with its `test`).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote

from p2pcache.client import FINAL_STATES, Client
from p2pcache.core.refs import ModelReference
from p2pcache.errors import P2PCacheError

log = logging.getLogger("gate")

GATE = "p2pcache.io/resident"
LABEL = "p2pcache.io/gated=true"
MODEL = "p2pcache.io/model"
HOSTNAME = "kubernetes.io/hostname"
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
LOOK_S = 5.0
# A model that the hub does not have is not asked for every five seconds.
RETRY_S = 60.0
REQUEST_TIMEOUT_S = 30.0

Json = dict[str, Any]


class Kubernetes:
    """The parts of the API that a gate needs. One thread."""

    def __init__(self, server: str, account: Path = ACCOUNT) -> None:
        self._server = server.rstrip("/")
        self._account = account
        ca = account / "ca.crt"
        self._tls = ssl.create_default_context(cafile=str(ca)) if ca.exists() else None

    def list_gated(self) -> list[Json]:
        """Return the pods that carry the label, of all namespaces."""
        answer = self._ask("GET", f"/api/v1/pods?labelSelector={quote(LABEL, safe='')}")
        items: list[Json] = answer.get("items", [])
        return items

    def get_labels(self, node: str) -> dict[str, str]:
        """Return a node's labels."""
        labels: dict[str, str] = self._ask("GET", f"/api/v1/nodes/{node}")["metadata"]["labels"]
        return labels

    def let_go(self, pod: Json, hostname: str) -> bool:
        """Remove the gate, and tie the pod to a node; False if the pod has changed meanwhile."""
        metadata, spec = pod["metadata"], pod["spec"]
        place = [gate["name"] for gate in spec["schedulingGates"]].index(GATE)
        version = metadata["resourceVersion"]
        selector = {**spec.get("nodeSelector", {}), HOSTNAME: hostname}
        patch: list[Json] = [
            {"op": "test", "path": "/metadata/resourceVersion", "value": version},
            {"op": "remove", "path": f"/spec/schedulingGates/{place}"},
            {"op": "add", "path": "/spec/nodeSelector", "value": selector},
        ]
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        try:
            self._ask("PATCH", path, patch)
        except urllib.error.HTTPError as error:
            if error.code in (404, 409, 422):
                return False
            raise
        return True

    def _ask(self, method: str, path: str, body: object = None) -> Json:
        headers = {"Accept": "application/json"}
        token = self._account / "token"
        if token.exists():  # read every time: Kubernetes renews it
            headers["Authorization"] = f"Bearer {token.read_text().strip()}"
        content = None
        if body is not None:
            content = json.dumps(body).encode()
            headers["Content-Type"] = "application/json-patch+json"
        request = urllib.request.Request(self._server + path, content, headers, method=method)
        with urllib.request.urlopen(
            request, timeout=REQUEST_TIMEOUT_S, context=self._tls
        ) as answer:
            decoded: Json = json.load(answer)
        return decoded


class Gate:
    """What one node does for gated pods."""

    def __init__(self, kubernetes: Kubernetes, client: Client, node: str) -> None:
        self._kubernetes = kubernetes
        self._client = client
        self._node = node
        self._downloads: dict[str, str] = {}
        self._retry_s: dict[str, float] = {}

    def look(self) -> list[str]:
        """Do what can be done now; return the names of the pods that were let go."""
        labels = self._kubernetes.get_labels(self._node)
        gone = []
        for pod in self._kubernetes.list_gated():
            name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
            try:
                if not is_for(pod, labels) or not self._is_resident(pod):
                    continue
                if self._kubernetes.let_go(pod, labels.get(HOSTNAME, self._node)):
                    log.info("%s goes to %s: its model is resident", name, self._node)
                    gone.append(name)
            except (P2PCacheError, OSError) as error:
                log.warning("%s stays gated: %s", name, error)
        return gone

    def _is_resident(self, pod: Json) -> bool:
        """Return whether a pod's model is here; begin to fetch it if nobody does."""
        reference = str(ModelReference.parse(pod["metadata"]["annotations"][MODEL]))
        if self._client.residency(reference).get("state") == "resident":
            return True
        if not self._is_coming(reference) and self._retry_s.get(reference, 0.0) <= time.monotonic():
            self._retry_s[reference] = time.monotonic() + RETRY_S
            self._downloads[reference] = str(self._client.pull(reference)["id"])
            log.info("fetching %s", reference)
        return False

    def _is_coming(self, reference: str) -> bool:
        download_id = self._downloads.get(reference)
        if download_id is None:
            return False
        job = self._client.download(download_id)
        if job.get("state") == "failed":
            log.warning("%s failed: %s", reference, job.get("error"))
        return job.get("state") not in FINAL_STATES


def is_for(pod: Json, labels: dict[str, str]) -> bool:
    """Return whether a pod is gated by us, names a model, and may run on a node of these labels."""
    spec = pod["spec"]
    gates = [gate.get("name") for gate in spec.get("schedulingGates", ())]
    wanted = spec.get("nodeSelector", {})
    return (
        GATE in gates
        and MODEL in pod["metadata"].get("annotations", {})
        and all(labels.get(name) == value for name, value in wanted.items())
    )


def find_server() -> str:
    """Return the API server as a pod finds it."""
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "kubernetes.default.svc")
    return f"https://{host}:{os.environ.get('KUBERNETES_SERVICE_PORT', '443')}"


def main() -> None:
    """Look again and again."""
    parser = argparse.ArgumentParser(description="Let gated pods go where their model is.")
    parser.add_argument("--node", required=True, help="this node's name")
    parser.add_argument("--server", default=find_server(), help="the API server")
    parser.add_argument("--every", type=float, default=LOOK_S, help="seconds between two looks")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    gate = Gate(Kubernetes(arguments.server), Client(), arguments.node)
    while True:
        try:
            gate.look()
        except (OSError, KeyError, ValueError) as error:
            log.warning("the API server cannot be asked: %s", error)
        time.sleep(arguments.every)


if __name__ == "__main__":
    main()
