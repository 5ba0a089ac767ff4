"""
Owns the certificate of the hub that swarms are measured against.

Knows nothing of the hub.
Invariants: made anew for each run, by an authority that only this run's programs are told of.
Source: design.md §7: what comes from a hub over less than verified TLS is passed on only when the
whole file is proven, so a swarm is measured over TLS, as the real hub speaks it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True, slots=True)
class Certificate:
    """A server's key with its certificates, and the authority to verify them by."""

    server_file: Path
    authority_file: Path

    @property
    def environment(self) -> dict[str, str]:
        """Return what makes OpenSSL, and so every program here, trust the authority."""
        return {"SSL_CERT_FILE": str(self.authority_file)}


def make_certificate(folder: Path, address: str) -> Certificate:
    """Write a certificate for a server at an address."""
    made = Certificate(folder / "server.pem", folder / "authority.pem")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(made.authority_file))
    issued = authority.issue_cert(address)
    issued.private_key_and_cert_chain_pem.write_to_path(str(made.server_file))
    return made
