"""What may reach the app at all: few paths, small bodies, plain values, no foreign pages.

Place in the flow: stage 10, before everything; an ASGI middleware around Gradio's own routes, many
of which (files, uploads, proxies, streams, its editor) this app does not use. What is not listed
here does not exist.

Inputs are numbers, booleans, short strings and nothing: no handler takes a path, a URL or a
file, and Gradio's file payloads (dictionaries that name a path or a URL) are refused before Gradio
looks at them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ssm_metarl.app.config import LOCAL_HOSTS

MAX_BODY = 16_384  # bytes
MAX_TEXT = 200  # characters of a string
MAX_VALUES = 64  # values of one event

API = "/gradio_api"
READABLE = (
    re.compile(r"/"),
    re.compile(r"/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json)"),
    re.compile(r"/(assets|static|svelte)/[\w./@+-]+"),
    re.compile(rf"{API}/queue/data"),
    re.compile(rf"{API}/heartbeat/\w+"),
    re.compile(rf"{API}/startup-events"),
)
JOIN = f"{API}/queue/join"
WRITABLE = (JOIN, f"{API}/cancel", f"{API}/reset")
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    # The page is drawn by scripts that it carries itself; nothing is fetched from anywhere else.
    (
        b"content-security-policy",
        b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
        b"style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
        b"worker-src 'self' blob:; form-action 'self'; base-uri 'self'; object-src 'none'",
    ),
)


class Guard:
    """Refuses what the page itself never asks for.

    Args:
        app: What it guards.
        local: Whether only this machine is to reach it: then other host names are refused, too,
            so that no page from elsewhere can make its own name point here.
        most_values: What one event may have, where the page has more fields than is usual.
    """

    def __init__(self, app: ASGIApp, local: bool, most_values: int = MAX_VALUES) -> None:
        self._app, self._local, self._most_values = app, local, most_values

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with 4xx."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        if scope["type"] != "http":  # no web sockets
            return
        try:
            self._check_head(scope)
            if scope["method"] == "POST":
                content = await _read(receive)
                self._check_body(scope["path"], content)
                receive = _replay(content, receive)
        except HTTPException as refusal:
            answer = JSONResponse({"detail": refusal.detail}, refusal.status_code)
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, _with_headers(send))

    def _check_head(self, scope: Scope) -> None:
        path, method, headers = scope["path"], scope["method"], Headers(scope=scope)
        host = urlsplit(f"//{headers.get('host', '')}").hostname
        if self._local and host not in LOCAL_HOSTS:
            raise HTTPException(421, "expected a host name of this machine")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host"):
            raise HTTPException(403, "expected a request from the app's own page")
        if any(climbing in path for climbing in ("..", "\\", "//", "\0")):
            raise HTTPException(400, "expected a plain path")
        if method not in ("GET", "HEAD", "POST"):
            raise HTTPException(405, "expected GET, HEAD or POST")
        if method == "POST":
            known = path.rstrip("/") in WRITABLE
        else:
            known = any(pattern.fullmatch(path) for pattern in READABLE)
        if not known:
            raise HTTPException(404, "no such page")

    def _check_body(self, path: str, content: bytes) -> None:
        try:
            body = json.loads(content)
        except (ValueError, RecursionError):
            raise HTTPException(400, "expected JSON") from None
        if not isinstance(body, dict):
            raise HTTPException(400, "expected a JSON object")
        if path.rstrip("/") != JOIN:
            if not self._plain(list(body.values())):
                raise HTTPException(400, "expected plain values")
            return
        data, event = body.get("data"), body.get("event_data")
        if not isinstance(data, list) or not self._plain(data):
            expected = f"data: expected a list of at most {self._most_values} plain values"
            raise HTTPException(400, expected)
        if event is not None and not (
            isinstance(event, dict) and self._plain(list(event.values()))
        ):
            raise HTTPException(400, "event_data: expected a small object of plain values")

    def _plain(self, values: Sequence[Any]) -> bool:
        """Whether all are nothing, booleans, numbers or short strings."""

        def scalar(value: object) -> bool:
            if isinstance(value, str):
                return len(value) <= MAX_TEXT
            return value is None or isinstance(value, (bool, int, float))

        return len(values) <= self._most_values and all(map(scalar, values))


async def _read(receive: Receive) -> bytes:
    """The body; refused as soon as it is too long."""
    content, more = b"", True
    while more:
        message = await receive()
        content += bytes(message.get("body", b""))
        if len(content) > MAX_BODY:
            raise HTTPException(413, f"expected a body of at most {MAX_BODY} bytes")
        more = message.get("more_body", False)
    return content


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body once more, then whatever comes (that the client has gone)."""
    first = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def again() -> Message:
        return next(first, None) or await receive()

    return again


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *HEADERS]
        await send(message)

    return sending
