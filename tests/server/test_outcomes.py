"""Each stream ends in exactly one outcome, and says so in one line (rule 8, and the log)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support import raw
from tests.support.raw import ENDLESS, Client, chat, get, post
from tests.support.server import ServerProcess
from tests.support.waiting import eventually

FIELDS = {
    "time", "level", "message", "stream", "request_id", "path", "dialect", "outcome", "ended_by", "status", "tokens",
    "delivered", "bytes", "writes", "seconds", "tokens_per_second", "first_token_seconds", "seconds_source",
    "seconds_client", "seconds_network", "user", "detail",
}  # fmt: skip


@pytest.fixture(scope="module")
def shared_server() -> Iterator[ServerProcess]:
    with ServerProcess("--stall-timeout", "0.4", "--stream-timeout", "1.6", "--heartbeat", "0") as server:
        yield server


def completed(server: ServerProcess, name: str) -> None:
    assert raw.ask(server.port, chat(request_id=name, tokens=5, tokens_per_second=None)).done


def empty(server: ServerProcess, name: str) -> None:
    assert raw.ask(server.port, chat(request_id=name, tokens=0)).done


def left_mid_stream(server: ServerProcess, name: str) -> None:
    with Client(server.port) as client:
        client.send(chat(request_id=name, tokens=None, tokens_per_second=100))
        client.head()
        client.until(b"token")


def left_before_the_first_token(server: ServerProcess, name: str) -> None:
    with Client(server.port) as client:
        client.send(chat(request_id=name, tokens=5, first_token_seconds=60))
        eventually(lambda: server.debug()["totals"]["streams"] == 1)


def left_while_stalled(server: ServerProcess, name: str) -> None:
    with Client(server.port, rcvbuf=4096) as client:
        client.send(chat(request_id=name, **ENDLESS))
        eventually(lambda: any(s["state"] == "paused" for s in server.debug()["streams"]))
        client.reset()


def stalled(server: ServerProcess, name: str) -> None:
    with Client(server.port, rcvbuf=4096) as client:
        client.send(chat(request_id=name, **ENDLESS))
        server.ended(name)


def misbehaved(server: ServerProcess, name: str) -> None:
    with Client(server.port) as client:
        client.send(chat(request_id=name, tokens=None, tokens_per_second=100))
        client.head()
        client.try_send(b"x" * 20_000)
        client.rest()


def failed_at_once(server: ServerProcess, name: str) -> None:
    assert raw.ask(server.port, chat(request_id=name, tokens=5, fail_after=0)).status == 500


def failed_later(server: ServerProcess, name: str) -> None:
    reply = raw.ask(server.port, chat(request_id=name, tokens=9, tokens_per_second=None, fail_after=4))
    assert not reply.done


def too_long(server: ServerProcess, name: str) -> None:
    reply = raw.ask(server.port, chat(request_id=name, tokens=None, tokens_per_second=50))
    assert reply.error is not None
    assert (reply.error["code"], reply.done, reply.whole) == ("stream_deadline", False, False)


def too_long_without_a_token(server: ServerProcess, name: str) -> None:
    reply = raw.ask(server.port, chat(request_id=name, tokens=1, first_token_seconds=60))
    assert (reply.status, reply.json()["code"]) == (504, "stream_deadline")


def stopped(server: ServerProcess, name: str) -> None:
    with Client(server.port) as client:
        client.send(chat(request_id=name, tokens=None, tokens_per_second=100))
        stream = client.head().header("x-stream-id")
        assert raw.ask(server.port, post(f"/streams/{stream}/stop", {})).status == 202
        client.until(b"[DONE]")


Cause = Callable[[ServerProcess, str], None]
CAUSES: list[tuple[Cause, str, str, int, int | None]] = [
    # what happens, outcome, ended by, status, tokens (None: some)
    (completed, "completed", "source", 200, 5),
    (empty, "completed", "source", 200, 0),
    (left_mid_stream, "client_left", "client", 200, None),
    (left_before_the_first_token, "client_left", "client", 499, 0),
    (left_while_stalled, "client_left", "client", 200, None),
    (stalled, "client_stalled", "client", 200, None),
    (misbehaved, "client_misbehaved", "client", 200, None),
    (failed_at_once, "source_failed", "source", 500, 0),
    (failed_later, "source_failed", "source", 200, 4),
    (too_long, "deadline", "server", 200, None),
    (too_long_without_a_token, "deadline", "server", 504, 0),
    (stopped, "stopped", "operator", 200, None),
]


@pytest.mark.parametrize(
    ("cause", "outcome", "by", "status", "tokens"), CAUSES, ids=lambda value: getattr(value, "__name__", None)
)
def test_each_end_has_one_outcome_and_one_line(
    server: ServerProcess, cause: Cause, outcome: str, by: str, status: int, tokens: int | None
) -> None:
    """The line has all its figures, they agree with each other, and the totals count it once."""
    before = server.debug()["totals"]
    cause(server, cause.__name__)
    line = server.ended(cause.__name__)
    assert set(line) == FIELDS
    assert (line["outcome"], line["ended_by"], line["status"]) == (outcome, by, status)
    assert line["tokens"] == tokens if tokens is not None else line["tokens"] > 0
    assert line["level"] == ("warning" if outcome == "source_failed" else "info")
    assert (line["path"], line["dialect"]) == ("/chat", "chat")
    assert line["writes"] <= line["bytes"]
    waited = line["seconds_source"] + line["seconds_client"] + line["seconds_network"]
    assert 0 <= waited <= line["seconds"] + 0.01
    if line["tokens"] == 0 and outcome != "completed":
        assert line["first_token_seconds"] is None
    else:
        assert 0 <= line["first_token_seconds"] <= line["seconds"]
    server.assert_steady()
    after = server.debug()["totals"]
    counted = {name: after["outcomes"][name] - before["outcomes"][name] for name in after["outcomes"]}
    assert {name: count for name, count in counted.items() if count} == {outcome: 1}
    assert sum(1 for one in server.logs() if one.get("request_id") == cause.__name__) == 1


def test_the_seconds_say_who_was_waited_for(server: ServerProcess) -> None:
    """A slow source costs source seconds; a client that takes nothing costs client seconds."""
    raw.ask(server.port, chat(request_id="slow-source", tokens=5, tokens_per_second=10))
    line = server.ended("slow-source")
    assert line["seconds_source"] > max(0.4, 4 * line["seconds_client"])
    assert 0 < line["tokens_per_second"] < 13
    stalled(server, "slow-client")
    line = server.ended("slow-client")
    assert line["seconds_client"] > max(0.3, 3 * line["seconds_source"])


def test_who_does_not_take_the_end_of_an_answer_is_stalled_too() -> None:
    """All tokens are made and wait in the transport: the stream is not complete before the kernel has them."""
    with ServerProcess("--stall-timeout", "0.5", "--write-high", "256KiB") as server:
        with Client(server.port, rcvbuf=4096) as client:
            client.send(chat(request_id="end", tokens=2000, tokens_per_second=None))
            line = server.ended("end")
            assert (line["outcome"], line["tokens"]) == ("client_stalled", 2000)
        server.assert_steady()


def test_what_never_began_has_no_line(server: ServerProcess) -> None:
    """A refused request, a HEAD and a 204 are no streams."""
    for data in (
        post("/chat", {"prompt": 1}, x_request_id="refused"),
        get("/stream?prompt=a", x_request_id="ended", last_event_id="a.end"),
        raw.request("HEAD", "/stream?prompt=a", {"X-Request-Id": "head"}),
    ):
        raw.ask(server.port, data)
    completed(server, "after")
    server.ended("after")
    assert not [line for line in server.logs() if line.get("request_id") in ("refused", "ended", "head")]


def test_the_text_format_has_the_same_figures() -> None:
    """``--log-format text``: one line, ``name=value``."""
    with ServerProcess(log_format="text") as server:
        raw.ask(server.port, chat(request_id="texts", tokens=3, tokens_per_second=None))
        line = server.wait_line(lambda text: "request_id=texts" in text)
        pairs = dict(pair.split("=", 1) for pair in line.split(" ") if "=" in pair)
        assert (pairs["outcome"], pairs["ended_by"], pairs["tokens"], pairs["path"]) == (
            "completed",
            "source",
            "3",
            "/chat",
        )
        server.assert_steady()


def test_the_log_holds_nothing_that_a_client_sent(server: ServerProcess) -> None:
    """Neither prompts nor answers nor keys; and a line stays a line."""
    secret = "a secret prompt"
    body: dict[str, Any] = {"prompt": secret, "model": "m\ninjected", "user": "u\ninjected", "mock": {"tokens": 1}}
    raw.ask(server.port, post("/chat", body, x_request_id="private", authorization="Bearer sk-secret"))
    server.ended("private")
    assert "secret" not in server.stderr
    assert "injected" not in server.stderr
