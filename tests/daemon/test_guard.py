"""
Owns the tests of daemon.guard: who may talk to the local endpoint.

Knows nothing of what is asked.
Invariants: tricks of browsers and proxies are refused before any handler runs.
Source: daemon/guard.py; design.md §7 (local side).
"""

from __future__ import annotations

import json

import pytest

from tests.daemon.local import Served, ask_raw

STATUS = "/_p2pcache/v1/status"
PINS = "/_p2pcache/v1/pins"
ALIAS = "/api/v1/models/download"


def get(target: str, *headers: str) -> str:
    """Write a request by hand."""
    return "\r\n".join([f"GET {target} HTTP/1.1", *headers, "Connection: close", "", ""])


def status_of(answer: bytes) -> int:
    """Return the status of a raw answer."""
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "[::1]", "LOCALHOST"])
async def test_own_names_are_answered(served: Served, name: str) -> None:
    """Every name of loopback with the right port is this endpoint."""
    port = served.local.rpartition(":")[2]
    assert status_of(await ask_raw(served.local, get(STATUS, f"Host: {name}:{port}"))) == 200


@pytest.mark.parametrize(
    "host",
    [
        "Host: evil.example",
        "Host: evil.example:{port}",
        "Host: 127.0.0.1",
        "Host: 127.0.0.1:1",
        "Host: localhost.evil.example:{port}",
        "Host: 127.0.0.1:{port}@evil.example",
        "Host: ",
        "Host: 127.1:{port}",
        "Host: 0.0.0.0:{port}",
        "Host: localhost.:{port}",
    ],
)
async def test_foreign_host_is_refused(served: Served, host: str) -> None:
    """A name that was rebound to loopback is not ours, with any port or none."""
    line = host.format(port=served.local.rpartition(":")[2])
    for target in (STATUS, "/metrics", "/healthz", "/org/model/resolve/main/config.json"):
        assert status_of(await ask_raw(served.local, get(target, line))) in (400, 403)


async def test_two_hosts_or_none_are_refused(served: Served) -> None:
    """Which one a proxy believed is not for us to guess."""
    own = f"Host: {served.local}"
    assert status_of(await ask_raw(served.local, get(STATUS, own, own))) in (400, 403)
    assert status_of(await ask_raw(served.local, get(STATUS, own, "Host: x"))) in (400, 403)
    answer = await ask_raw(served.local, f"GET {STATUS} HTTP/1.0\r\n\r\n")
    assert status_of(answer) in (400, 403)


@pytest.mark.parametrize("scheme", ["http", "HTTP", "https", "ftp"])
async def test_absolute_form_is_refused(served: Served, scheme: str) -> None:
    """We are no proxy, not even for ourselves."""
    target = f"{scheme}://{served.local}{STATUS}"
    answer = await ask_raw(served.local, get(target, f"Host: {served.local}"))
    assert status_of(answer) in (400, 403)


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://{local}", 200),
        ("https://{local}", 403),
        ("http://evil.example", 403),
        ("null", 403),
        ("http://127.0.0.1", 403),
        ("http://{local}.evil.example", 403),
        ("", 403),
    ],
)
async def test_origin_of_another_page_is_refused(served: Served, origin: str, status: int) -> None:
    """A script of another site may not even read."""
    headers = {"Origin": origin.format(local=served.local)}
    for path in (STATUS, "/metrics"):
        assert (await served.ask(path, headers=headers)).status == status


@pytest.mark.parametrize(
    ("site", "status"),
    [("none", 200), ("same-origin", 200), ("same-site", 403), ("cross-site", 403), ("x", 403)],
)
async def test_sec_fetch_site_of_another_page_is_refused(
    served: Served, site: str, status: int
) -> None:
    """A browser that says where a request comes from is listened to."""
    assert (await served.ask(STATUS, headers={"Sec-Fetch-Site": site})).status == status


@pytest.mark.parametrize("path", [PINS, "/_p2pcache/v1/downloads", ALIAS, "/_p2pcache/v1/gc"])
async def test_change_needs_token_and_header(served: Served, path: str) -> None:
    """Without either, or with a wrong one, nothing is changed and the answer says what to send."""
    right = served.change_headers
    bearer, mark = right["Authorization"], right["X-P2PCache"]
    cases: list[tuple[dict[str, str], int]] = [
        ({}, 401),
        ({"Authorization": bearer}, 403),
        ({"X-P2PCache": mark}, 401),
        ({"Authorization": bearer + "x", "X-P2PCache": mark}, 401),
        ({"Authorization": "Bearer ", "X-P2PCache": mark}, 401),
        ({"Authorization": bearer.removeprefix("Bearer "), "X-P2PCache": mark}, 401),
        ({"Authorization": bearer.replace("Bearer", "Basic"), "X-P2PCache": mark}, 401),
        ({"Authorization": bearer, "X-P2PCache": "0"}, 403),
        ({"Authorization": "Bearer é", "X-P2PCache": mark}, 401),
    ]
    for headers, status in cases:
        reply = await served.ask(path, "POST", body={"model": "org/model"}, headers=headers)
        assert reply.error[0] == status, headers
    assert served.engine.downloads.list_all() == []
    reply = await served.ask(path, "POST", body={"model": "org/model"}, headers=right)
    assert reply.status not in (401, 403)


@pytest.mark.parametrize(
    "path",
    [
        "/%5fp2pcache/v1/downloads",
        "/_p2pcache%2Fv1%2Fdownloads",
        "//_p2pcache/v1/downloads",
        "/x/../_p2pcache/v1/downloads",
        "/_p2pcache/./v1/downloads",
        "/_P2PCACHE/v1/downloads",
        "/api/v1/models/%64ownload",
        "/api//v1/models/download",
        "/api/v1/models/download/",
        "/api/v1/models/download?x=1",
    ],
)
async def test_other_spelling_of_a_change_begins_nothing_without_the_token(
    served: Served, path: str
) -> None:
    """No way of writing a path gets around the token."""
    body = json.dumps({"model": "org/model"})
    request = "\r\n".join(
        [
            f"POST {path} HTTP/1.1",
            f"Host: {served.local}",
            "X-P2PCache: 1",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Connection: close",
            "",
            body,
        ]
    )
    assert status_of(await ask_raw(served.local, request)) >= 400
    assert served.engine.downloads.list_all() == []


async def test_gateway_needs_no_admin_token(served: Served) -> None:
    """Unmodified clients read public files as they are used to."""
    assert (await served.ask("/org/model/resolve/main/config.json")).status == 200


async def test_unusual_methods_change_nothing(served: Served) -> None:
    """Whatever the method, a management route without the token refuses or does not exist."""
    for method in ("PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "FOO"):
        reply = await served.ask(PINS, method)
        assert reply.status in (400, 401, 403, 404, 405), method
