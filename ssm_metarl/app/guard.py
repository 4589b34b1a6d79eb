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
WRITABLE = {f"{API}/queue/join": "event", f"{API}/cancel": "cancel", f"{API}/reset": "cancel"}
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
    """

    def __init__(self, app: ASGIApp, local: bool) -> None:
        self._app, self._local = app, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with 4xx."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # no web sockets
        refusal = self._refusal(scope)
        if refusal is None and scope["method"] == "POST":
            content = await _read(receive)
            if content is None:
                refusal = (413, f"expected a body of at most {MAX_BODY} bytes")
            else:
                refusal, receive = (
                    self._refused_body(scope["path"], content),
                    _replay(content, receive),
                )
        if refusal is not None:
            status, why = refusal
            await JSONResponse({"detail": why}, status)(scope, receive, send)
            return
        await self._app(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason where the request's head is refused."""
        path, method = scope["path"], scope["method"]
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        host = urlsplit(f"//{headers.get('host', '')}").hostname
        if self._local and host not in LOCAL_HOSTS:
            return 421, "expected a host name of this machine"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host"):
            return 403, "expected a request from the app's own page"
        if ".." in path or "\\" in path or "//" in path or "\0" in path:
            return 400, "expected a plain path"
        if method in ("GET", "HEAD"):
            known = any(pattern.fullmatch(path) for pattern in READABLE)
            return None if known else (404, "no such page")
        if method == "POST":
            return None if path.rstrip("/") in WRITABLE else (404, "no such page")
        return 405, "expected GET, HEAD or POST"

    def _refused_body(self, path: str, content: bytes) -> tuple[int, str] | None:
        """Status and reason where the body is refused."""
        try:
            body = json.loads(content)
        except (ValueError, RecursionError):
            return 400, "expected JSON"
        if not isinstance(body, dict):
            return 400, "expected a JSON object"
        if WRITABLE[path.rstrip("/")] == "cancel":
            return None if _plain(list(body.values())) else (400, "expected plain values")
        data, event = body.get("data"), body.get("event_data")
        if not isinstance(data, list) or not _plain(data):
            return 400, f"data: expected a list of at most {MAX_VALUES} plain values"
        if event is not None and not (isinstance(event, dict) and _plain(list(event.values()))):
            return 400, "event_data: expected a small object of plain values"
        return None


def _plain(values: Sequence[Any]) -> bool:
    """Whether all are nothing, booleans, numbers or short strings."""

    def scalar(value: object) -> bool:
        if isinstance(value, str):
            return len(value) <= MAX_TEXT
        return value is None or isinstance(value, (bool, int, float))

    return len(values) <= MAX_VALUES and all(map(scalar, values))


async def _read(receive: Receive) -> bytes | None:
    """The body, or None as soon as it is too long."""
    content = b""
    while True:
        message = await receive()
        content += bytes(message.get("body", b""))
        if len(content) > MAX_BODY:
            return None
        if not message.get("more_body", False):
            return content


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body once more, then whatever comes (that the client has gone)."""
    sent = False

    async def again() -> Message:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *HEADERS]
        await send(message)

    return sending
