"""The app as it is served, against somebody who does not use its page.

200 inputs: paths that climb, forged requests, files, URLs, and too much of everything. None of them
may give a byte of a file, none may make the server call anybody.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

SECRET = "a secret that no visitor may read"
JOIN = "/gradio_api/queue/join"
TARGETS = ("/etc/passwd", "/proc/self/environ", "{secret}", "~/.ssh/id_rsa")
CLIMBS = ("../" * 8, "..%2f" * 8, "%2e%2e/" * 8, "....//" * 8, "..\\" * 8, "/", "//", "%00/")
DOORS = (
    "/assets/", "/static/", "/svelte/", "/gradio_api/file=", "/gradio_api/file/",
    "/gradio_api/proxy=", "/file=", "/gradio_api/custom_component/x/client/y/",
)  # fmt: skip
URLS = (
    "http://169.254.169.254/latest/meta-data/", "http://example.com/", "http://localhost:22/",
    "file:///etc/passwd", "gopher://127.0.0.1:25/", "//example.com/x", "https://[::1]/",
)  # fmt: skip


@dataclass(frozen=True)
class Attack:
    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def event(fn_index: int, *data: Any, **more: Any) -> bytes:
    body = {"data": list(data), "fn_index": fn_index, "session_hash": "attack", **more}
    return json.dumps(body).encode()


def attacks(secret: Path) -> Iterator[Attack]:
    targets = [t.format(secret=secret) for t in TARGETS]
    for door in DOORS:
        for climb in CLIMBS:
            yield Attack("GET", f"{door}{climb}{targets[hash((door, climb)) % 2].lstrip('/')}")
    for target in targets:  # Gradio's file payloads, plain and in disguise, to every event
        for fn_index in range(6):
            payload = {"path": target, "meta": {"_type": "gradio.FileData"}}
            yield Attack("POST", JOIN, event(fn_index, payload))
            yield Attack("POST", JOIN, event(fn_index, "t", [payload], event_data={"x": payload}))
    for url in URLS:
        payload = {"url": url, "path": url, "meta": {"_type": "gradio.FileData"}}
        yield Attack("POST", JOIN, event(0, payload))
        yield Attack("POST", JOIN, event(1, "t", {"url": url}))
        yield Attack("GET", f"/gradio_api/proxy={url}")
        yield Attack("GET", f"/gradio_api/file={url}")
        yield Attack("POST", "/gradio_api/upload", b"x", {"content-type": "multipart/form-data"})
        yield Attack("POST", "/gradio_api/component_server", event(0, url))
    for size in (16_385, 100_000, 1_000_000):
        yield Attack("POST", JOIN, b" " * size)
        yield Attack("POST", JOIN, event(0, "x" * size))
    for values in (300, 3000):
        yield Attack("POST", JOIN, event(0, *range(values)))
    for depth in (50, 5000):
        yield Attack("POST", JOIN, b'{"data":' + b"[" * depth + b"]" * depth + b"}")
    for body in (b"", b"[]", b"null", b'"x"', b"{", b"\x00", b"{'data': []}", b"<x/>"):
        yield Attack("POST", JOIN, body)
    for origin in ("http://evil.example", "null", "https://127.0.0.1", "http://localhost:1"):
        for path in (JOIN, "/gradio_api/cancel", "/gradio_api/reset"):
            yield Attack("POST", path, event(0, ""), {"origin": origin})
    for host in ("evil.example", "127.0.0.1.evil.example", "0.0.0.0", "169.254.169.254"):
        yield Attack("GET", "/", headers={"host": host})
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"):
        yield Attack(method, JOIN, event(0, ""))
    for path in ("/login", "/docs", "/monitoring", "/runs", "/gradio_api/run/predict",
                 "/gradio_api/call/steer", "/gradio_api/api/adapt", "/gradio_api/deep_link",
                 "/gradio_api/stream/x", "/gradio_api/process_recording",
                 "/gradio_api/vibe-edit", "/gradio_api/openapi.json"):  # fmt: skip
        yield Attack("POST", path, event(0, ""))
        yield Attack("GET", path)


def send(url: str, attack: Attack) -> tuple[int, bytes]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
    headers = {"content-type": "application/json", **attack.headers}
    connection.putrequest(attack.method, attack.path, skip_host="host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.putheader("content-length", str(len(attack.body)))
    try:
        connection.endheaders(attack.body or None)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (BrokenPipeError, ConnectionResetError):  # it hung up on a body that was too long
        return 413, b""
    finally:
        connection.close()


def test_no_forged_or_oversized_input_gets_anything(app: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text(SECRET)
    tried = list(attacks(secret))
    assert len(tried) >= 200
    environment = Path("/proc/self/environ").read_bytes()[:40]
    for attack in tried:
        status, answer = send(app.url, attack)
        assert 400 <= status < 500, (attack, status, answer[:200])
        assert SECRET.encode() not in answer and b"root:" not in answer, attack
        assert environment not in answer and len(answer) < 500, (attack, answer[:200])
    assert app.outbound() == []
    assert send(app.url, Attack("GET", "/"))[0] == 200, "and it goes on"


def events(app: Any) -> list[dict[str, Any]]:
    """All events of the page, as anybody can read them from its configuration."""
    config = json.loads(send(app.url, Attack("GET", "/config"))[1])
    return [d for d in config["dependencies"] if d["backend_fn"]]


def outcome(app: Any, fn_index: int, data: list[Any]) -> dict[str, Any]:
    """Send an event by hand and wait for what comes of it."""
    parts, session = urlsplit(app.url), f"byhand{fn_index}"
    body = {"data": data, "fn_index": fn_index, "session_hash": session}
    status, answer = send(app.url, Attack("POST", JOIN, json.dumps(body).encode()))
    if status != 200:
        return {"success": False, "status": status, "detail": answer}
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    connection.request("GET", f"/gradio_api/queue/data?session_hash={session}")
    for line in connection.getresponse():
        if line.startswith(b"data:"):
            message = json.loads(line[5:])
            if message["msg"] == "process_completed":
                connection.close()
                return dict(message)
    raise AssertionError("the event did not end")


def test_every_event_refuses_a_visitor_that_it_does_not_know(app: Any) -> None:
    """What an event takes first is the token: a wrong one gets nothing, whatever follows."""
    config = json.loads(send(app.url, Attack("GET", "/config"))[1])
    kinds = {c["id"]: c["type"] for c in config["components"]}
    asked = 0
    for dependency in events(app):
        inputs = dependency["inputs"]
        if not inputs or kinds[inputs[0]] != "browserstate" or len(dependency["outputs"]) > 40:
            continue  # loading the page is what gives a new visitor their token
        asked += 1
        data = ["forged-token", *[1] * (len(inputs) - 1)]
        came = outcome(app, dependency["id"], data)
        assert not came["success"], dependency
    assert asked >= 15


def test_the_daemon_is_neither_started_nor_stopped_without_a_password(
    app: Any, tmp_path: Path
) -> None:
    """By hand, as a visitor whom the server knows: steering is off, for no password is set."""
    config = json.loads(send(app.url, Attack("GET", "/config"))[1])
    token = visitor_token(app)
    buttons = {
        c["props"]["elem_id"]: c["id"]
        for c in config["components"]
        if str(c["props"].get("elem_id", "")).startswith("daemon-") and c["type"] == "button"
    }
    steering = [
        d for d in events(app) for n in ("start", "stop", "pause", "resume")
        if [buttons[f"daemon-{n}"], "click"] in d["targets"]
    ]  # fmt: skip
    assert len(steering) == 4
    for dependency in steering:
        for password in ("", "admin", "x" * 100):
            came = outcome(app, dependency["id"], [token, password, "cartpole"])
            assert not came["success"]
            assert "Steering is off" in json.dumps(came)


def visitor_token(app: Any) -> str:
    """The token that the page gets when it is loaded."""
    (load,) = (d for d in events(app) if [t[1] for t in d["targets"]] == ["load"])
    came = outcome(app, load["id"], [""])
    assert came["success"], came
    token = came["output"]["data"][0]
    assert isinstance(token, str) and len(token) >= 43
    return token


def test_two_visitors_get_tokens_of_their_own(app: Any) -> None:
    assert visitor_token(app) != visitor_token(app)


@pytest.mark.parametrize("value", [1e308, -1, "1", None, True, "'; drop table"])
def test_an_event_by_hand_with_a_bad_value_is_refused(app: Any, value: object) -> None:
    """The server checks what the page's own fields would not let through."""
    config = json.loads(send(app.url, Attack("GET", "/config"))[1])
    (adapt,) = (c["id"] for c in config["components"] if c["props"].get("elem_id") == "adapt")
    (press,) = (d for d in events(app) if [adapt, "click"] in d["targets"])
    count = len(press["inputs"]) - 1
    came = outcome(app, press["id"], [visitor_token(app), *[value] * count])
    assert not came["success"] and came["status"] == 422, came
