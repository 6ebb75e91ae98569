"""The files of the page. A request names one of this list, so that no other file can be read."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from engine.runtime.errors import quote
from engine.serve.protocol.errors import ApiError

FOLDER = Path(__file__).parent / "page"
KINDS = {
    ".html": "text/html",
    ".css": "text/css",
    ".mjs": "text/javascript",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
INDEX = FOLDER / "index.html"
STATIC = {
    path.relative_to(FOLDER).as_posix(): path
    for path in sorted(FOLDER.rglob("*"))
    if path.suffix in KINDS and path != INDEX
}


async def index(request: Request) -> Response:
    """The page."""
    return await _file(request, INDEX)


async def static(request: Request) -> Response:
    """A file that the page uses."""
    name = request.path_params["name"]
    if name not in STATIC:
        raise ApiError(404, f"there is no file {quote(name)}")
    return await _file(request, STATIC[name])


async def _file(request: Request, path: Path) -> Response:
    """A file. A browser asks each time whether it has changed."""
    content = await asyncio.to_thread(path.read_bytes)
    headers = {"cache-control": "no-cache", "etag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}
    if headers["etag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=KINDS[path.suffix], headers=headers)
