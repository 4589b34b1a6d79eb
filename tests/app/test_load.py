"""Eight visitors at once for three minutes, on loopback: all are answered, memory is given back.

Each presses as fast as the server answers, at most twice a second: plants of their own, live runs,
and now and then a training that is cancelled.
"""

from __future__ import annotations

import http.client
import itertools
import json
import random
import threading
import time
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

pytestmark = pytest.mark.nightly
VISITORS, SECONDS, PAUSE = 8, 180.0, 0.5
FIRST_SECONDS = 45.0
LEFT_MB = 25.0


class Client:
    """One visitor, speaking to the queue as the page does."""

    def __init__(self, url: str, number: int) -> None:
        self.parts, self.session = urlsplit(url), f"visitor{number}"
        config = self._get("/config")
        ids = {c["props"].get("elem_id"): c["id"] for c in config["components"]}
        self.fields = {c["id"]: c["props"] for c in config["components"]}
        self.events = {}
        for dependency in config["dependencies"]:
            for target, name in dependency["targets"]:
                self.events[target, name] = dependency
        self.ids = ids
        (load,) = (d for (_, name), d in self.events.items() if name == "load")
        self.token = self.send(load, [""])["data"][0]

    def _get(self, path: str) -> Any:
        connection = http.client.HTTPConnection(self.parts.hostname, self.parts.port, timeout=60)
        connection.request("GET", path)
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return answer

    def send(self, dependency: dict[str, Any], data: list[Any], detail: Any = None) -> Any:
        """The event's output; None where the server is busy or refuses."""
        connection = http.client.HTTPConnection(self.parts.hostname, self.parts.port, timeout=60)
        body = {"data": data, "fn_index": dependency["id"], "session_hash": self.session}
        headers = {"content-type": "application/json"}
        connection.request(
            "POST", "/gradio_api/queue/join", json.dumps(body | {"event_data": detail}), headers
        )
        answer = connection.getresponse()
        said = json.loads(answer.read())
        if answer.status == 503:
            return None
        assert answer.status == 200, said
        connection.request("GET", f"/gradio_api/queue/data?session_hash={self.session}")
        for line in connection.getresponse():
            if line.startswith(b"data:") and b"process_completed" in line:
                message = json.loads(line[5:])
                connection.close()
                return message["output"] if message["success"] else None
        raise AssertionError("the event did not end")

    def fill(self, elem_id: str, name: str, **entered: Any) -> Any:
        """Fire an event with all its fields as the page shows them, but for those that are given.

        Args:
            elem_id: Of the component.
            name: Of the event.
            entered: By the field's elem_id, with underscores.
        """
        event = self.events[self.ids[elem_id], name]
        fields = [self.fields[number] for number in event["inputs"][1:]]
        names = [str(field.get("elem_id")).replace("-", "_") for field in fields]
        assert entered.keys() <= set(names), "the page has such fields"
        data = [entered.get(n, field.get("value")) for n, field in zip(names, fields, strict=True)]
        return self.send(event, [self.token, *data])

    def press(self, elem_id: str, name: str, *data: Any, detail: Any = None) -> Any:
        """Fire an event of a component."""
        return self.send(self.events[self.ids[elem_id], name], [self.token, *data], detail)


def visit(client: Client, number: int, until: float, told: dict[int, list[Any]]) -> None:
    """What a visitor does; what the server told is kept."""
    rng = random.Random(number)
    force = 5.0 + number  # each has a plant that no other visitor has
    plant = {"disturb": True, "plant_force": force}
    answers = told[number]
    for turn in itertools.count():
        if time.monotonic() > until:
            return
        came = client.fill("adapt", "click", **plant)
        answers.append(came)
        if came is not None:
            assert f"force {force:g} N" in came["data"][1], "another visitor's result"
        client.press("start-over", "click")
        begun = client.fill("live", "begin", **plant)
        if begun is not None:
            run = begun["data"][0]["run"]
            for _ in range(2):
                piece = client.press("live", "more", detail={"run": run, "have": 0})
                assert piece is None or piece["data"][0]["run"] == run, "another visitor's plant"
                time.sleep(PAUSE * rng.random())
        if turn % 10 == number:
            client.fill("train", "click", train_steps=20_000)
            client.press("train-cancel", "click")
        time.sleep(PAUSE)


def rush(clients: list[Client], seconds: float) -> dict[int, list[Any]]:
    """All visitors at once; what each was told."""
    told: dict[int, list[Any]] = {i: [] for i in range(len(clients))}
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            visit(clients[number], number, time.monotonic() + seconds, told)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(clients))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 120)
    assert failures == []
    return told


def test_eight_visitors_for_three_minutes(app: Any) -> None:
    clients = [Client(app.url, i) for i in range(VISITORS)]
    assert len({c.token for c in clients}) == VISITORS
    process = psutil.Process(app.pid)
    rush(clients, FIRST_SECONDS)  # what is loaded and made once: kernels, threads, eight states
    before = process.memory_info().rss / 1e6
    told = rush(clients, SECONDS)
    answered = [came for answers in told.values() for came in answers if came is not None]
    assert all(any(came is not None for came in answers) for answers in told.values())
    time.sleep(5)
    after = process.memory_info().rss / 1e6
    print(f"{len(answered)} presses answered, {before:.0f} MB before, {after:.0f} MB after")
    assert after - before < LEFT_MB
    assert len(process.children(recursive=True)) <= 1, "at most one job runs at a time"
