"""
Owns that the hub is asked over verified TLS, and over nothing less.

Knows nothing of how connections are made.
Invariants: a certificate authority made for the test; the daemon trusts it only where told to.
Source: design.md §7 (tokens go over verified TLS).
"""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from tests.hub import HubProcess
from tests.integration.conftest import MODEL, MakeDaemon, assert_same_files


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    """Return a certificate authority of this test."""
    return trustme.CA()


@pytest.fixture
def server_file(authority: trustme.CA, tmp_path: Path) -> Path:
    """Return a PEM file for a server on loopback."""
    path = tmp_path / "server.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(path))
    return path


def test_model_is_pulled_over_verified_tls(
    models: Path,
    authority: trustme.CA,
    server_file: Path,
    make_daemon: MakeDaemon,
    tmp_path: Path,
) -> None:
    """Metadata and ranges come over https from hub and storage, with a certificate we trust."""
    trusted = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(trusted))
    with HubProcess(models, tls=server_file) as hub:
        assert hub.url.startswith("https://")
        daemon = make_daemon(
            "a", upstream=hub.url, environment={"SSL_CERT_FILE": str(trusted)}
        ).start()
        result = daemon.pull(MODEL)
    assert result.returncode == 0, result.stderr
    assert_same_files(Path(result.stdout.splitlines()[-1]), models)


def test_hub_with_a_certificate_of_somebody_else_gets_nothing(
    models: Path, server_file: Path, make_daemon: MakeDaemon
) -> None:
    """Without trust in the certificate there is no request, so no token leaves; exit code 12."""
    with HubProcess(models, tls=server_file) as hub:
        daemon = make_daemon("a", upstream=hub.url).start()
        result = daemon.pull(MODEL, "--token", "hf_secret")
        assert result.returncode == 12, result.stderr
        assert "certificate" in result.stderr.lower()
        assert "Traceback" not in result.stderr
        assert hub.stats()["requests_total"] == 0
