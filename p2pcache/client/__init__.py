"""The typed client of the local daemon."""

from p2pcache.client.answers import Json, error_of_answer, error_of_download
from p2pcache.client.bundles import BundleClient, ExportStream
from p2pcache.client.checkup import CheckClient
from p2pcache.client.client import FINAL_STATES, Client
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
from p2pcache.client.space import SpaceClient
from p2pcache.client.wire import ANSWER_BYTES_MAX, API_PREFIX

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
    "ExportStream",
    "ImportClient",
    "Json",
    "SpaceClient",
    "default_store",
    "error_of_answer",
    "error_of_download",
    "find_endpoint",
    "find_named_store",
]
