"""The guard: what reaches Gradio, and what is answered before."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from ssm_metarl.app.guard import MAX_BODY, MAX_VALUES, Guard

JOIN = "/gradio_api/queue/join"
EVENT = {"data": ["token", True, 1.5, None], "fn_index": 3, "session_hash": "abc"}


def ask(
    method: str, path: str, body: bytes = b"", *, local: bool = True, **headers: str
) -> tuple[int, bytes]:
    """A request through the guard: the status, and the body that what it guards has seen."""
    seen: list[bytes] = []
    statuses: list[int] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        content = b""
        if method == "POST":
            message = await receive()
            content = message["body"]
        seen.append(content)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    pieces = [body[i : i + 1000] for i in range(0, len(body), 1000)] or [b""]

    async def receive() -> dict[str, Any]:
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])
            if message["status"] == 200:
                names = dict(message["headers"])
                assert b"default-src 'self'" in names[b"content-security-policy"]

    given = {"host": "127.0.0.1:7860", **headers}
    scope = {
        "type": "http", "method": method, "path": path, "query_string": b"",
        "headers": [(k.encode(), v.encode()) for k, v in given.items()],
    }  # fmt: skip
    asyncio.run(Guard(inner, local)(scope, receive, send))  # type: ignore[arg-type]
    assert bool(seen) == (statuses[0] == 200)
    return statuses[0], seen[0] if seen else b""


@pytest.mark.parametrize(
    "path", ["/", "/config", "/theme.css", "/assets/index-x1.js", "/gradio_api/queue/data",
             "/gradio_api/heartbeat/abc", "/gradio_api/startup-events"],
)  # fmt: skip
def test_what_the_page_is_made_of_passes(path: str) -> None:
    assert ask("GET", path)[0] == 200


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/file=/etc/passwd", "/gradio_api/proxy=x.example", "/gradio_api/info", "/login",
     "/gradio_api/upload", "/gradio_api/call/adapt/1", "/monitoring", "/gradio_api/deep_link",
     "/gradio_api/stream/a/b/c/playlist.m3u8", "/runs", "/docs", "/openapi.json",
     "/gradio_api/custom_component/x/client/y/z.js", "/gradio_api/vibe-code"],
)  # fmt: skip
def test_what_it_is_not_made_of_does_not_exist(path: str) -> None:
    assert ask("GET", path)[0] == 404
    assert ask("POST", path, b"{}")[0] == 404


@pytest.mark.parametrize(
    "path", ["/assets/../../etc/passwd", "/assets//etc/passwd", "/static/a\\b", "/assets/a\0b"]
)
def test_a_path_that_climbs_is_refused(path: str) -> None:
    assert ask("GET", path)[0] == 400


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(method: str) -> None:
    assert ask(method, "/")[0] == 405


def test_an_event_passes_as_it_is() -> None:
    body = json.dumps(EVENT).encode()
    assert ask("POST", JOIN, body) == (200, body)


@pytest.mark.parametrize(
    "change",
    [
        {"data": [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}]},
        {"data": [{"url": "http://127.0.0.1:1/"}]}, {"data": [["nested"]]}, {"data": "text"},
        {"data": None}, {"data": ["x" * 201]}, {"data": [0] * (MAX_VALUES + 1)},
        {"event_data": ["list"]}, {"event_data": {"x": {"path": "/etc/passwd"}}},
    ],
)  # fmt: skip
def test_files_urls_and_structures_are_refused(change: dict[str, Any]) -> None:
    assert ask("POST", JOIN, json.dumps(EVENT | change).encode())[0] == 400


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 10_000])
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    assert ask("POST", JOIN, body)[0] == 400


def test_a_body_that_is_too_long_is_not_even_read() -> None:
    assert ask("POST", JOIN, b" " * (MAX_BODY + 1))[0] == 413


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1"])
def test_other_pages_cannot_ask(origin: str) -> None:
    body = json.dumps(EVENT).encode()
    assert ask("POST", JOIN, body, origin=origin)[0] == 403
    assert ask("POST", JOIN, body, origin="http://127.0.0.1:7860")[0] == 200


def test_another_name_for_this_machine_is_refused_unless_others_are_let_in() -> None:
    assert ask("GET", "/", host="rebound.example:7860")[0] == 421
    assert ask("GET", "/", host="rebound.example:7860", local=False)[0] == 200
    assert ask("GET", "/", host="[::1]:7860")[0] == 200
