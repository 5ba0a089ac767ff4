"""
Owns the test hub: a model hub on loopback that answers as the real one does, or fails on purpose.

Knows nothing of p2pcache; anything that speaks the hub's protocol can be tested against it.
Invariants: never leaves 127.0.0.1; what it sent is counted.
Source: public traces of the real hub; see the modules.
"""

from tests.hub.content import HubFile
from tests.hub.faults import Faults
from tests.hub.process import HubProcess
from tests.hub.repository import Commit, Repository
from tests.hub.server import Hub
from tests.hub.stats import RecordedRequest, Stats

__all__ = [
    "Commit",
    "Faults",
    "Hub",
    "HubFile",
    "HubProcess",
    "RecordedRequest",
    "Repository",
    "Stats",
]
