"""The typed client of the local daemon."""

from typing import TYPE_CHECKING

from p2pcache.client.answers import Json, error_of_answer, error_of_download
from p2pcache.client.bundles import BundleClient, ExportStream
from p2pcache.client.checkup import CheckClient
from p2pcache.client.client import Client
from p2pcache.client.events import Event
from p2pcache.client.finding import (
    ENDPOINT_NAME,
    LOCAL_DEFAULT,
    LOCK_NAME,
    TOKEN_NAME,
    default_store,
    find_endpoint,
    find_named_store,
)
from p2pcache.client.imports import ImportClient
from p2pcache.client.leasing import Lease
from p2pcache.client.residency import (
    EtaAnswer,
    ResidencyAnswer,
    ResidencyClient,
    WeightsAnswer,
)
from p2pcache.client.space import SpaceClient
from p2pcache.client.versions import VersionClient
from p2pcache.client.waiting import FINAL_STATES
from p2pcache.client.wire import ANSWER_BYTES_MAX, API_PREFIX

if TYPE_CHECKING:
    from p2pcache.client.indexview import IndexView, read_index

__all__ = [
    "ANSWER_BYTES_MAX",
    "API_PREFIX",
    "ENDPOINT_NAME",
    "FINAL_STATES",
    "LOCAL_DEFAULT",
    "LOCK_NAME",
    "TOKEN_NAME",
    "BundleClient",
    "CheckClient",
    "Client",
    "EtaAnswer",
    "Event",
    "ExportStream",
    "ImportClient",
    "IndexView",
    "Json",
    "Lease",
    "ResidencyAnswer",
    "ResidencyClient",
    "SpaceClient",
    "VersionClient",
    "WeightsAnswer",
    "default_store",
    "error_of_answer",
    "error_of_download",
    "find_endpoint",
    "find_named_store",
    "read_index",
]


def __getattr__(name: str) -> object:
    """Import what reads the index when it is wanted: commands must start fast."""
    if name in ("IndexView", "read_index"):
        from p2pcache.client import indexview

        found: object = getattr(indexview, name)
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
