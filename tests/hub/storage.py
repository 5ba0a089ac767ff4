"""
Owns the second listener: object storage behind signed addresses, which clients call the CDN.

Knows nothing of revisions or tokens; a token that arrives here is a leak and is refused.
Invariants: no X-Repo-Commit, no sha256 in the ETag, nothing without a valid signature.
Source: public dumps of storage answers (403 XML when expired, another ETag).
"""

from __future__ import annotations

import hashlib

from aiohttp import web

from tests.hub.answers import storage_error
from tests.hub.body import send_file
from tests.hub.content import HubFile
from tests.hub.signing import SignatureError
from tests.hub.state import Call, HubState


async def answer_storage(call: Call) -> web.StreamResponse:
    """Answer HEAD or GET of a signed address."""
    request, state = call.request, call.state
    if "Authorization" in request.headers or "Cookie" in request.headers:
        return storage_error(400, "InvalidArgument", "Only one auth mechanism allowed")
    raw_path = request.raw_path.partition("?")[0]
    try:
        key = state.signer.open(raw_path, request.query)
    except SignatureError as error:
        return storage_error(403, str(error), "Request has expired or is not signed")
    call.record.key = key
    file = _find_file(state, raw_path)
    if file is None:
        return storage_error(404, "NoSuchKey", "The specified key does not exist.")
    etag = hashlib.md5(file.xet_hash.encode(), usedforsecurity=False).hexdigest()
    headers = {
        "ETag": f'"{etag}"',
        "Content-Disposition": request.query["response-content-disposition"],
        "Cache-Control": "public, max-age=31536000",
        "X-Cache": "Hit from cloudfront",
    }
    return await send_file(call, file, headers)


def _find_file(state: HubState, raw_path: str) -> HubFile | None:
    """Return the file that a storage path names."""
    _, _, oid, xet_hash = raw_path.split("/")
    for repository in state.catalog:
        if repository.oid != oid:
            continue
        for commit in repository.commits.values():
            for file in commit.files.values():
                if file.sha256 is not None and file.xet_hash == xet_hash:
                    return file
    return None
