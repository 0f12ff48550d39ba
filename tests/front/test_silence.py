"""A source that is silent for longer than a proxy waits: heartbeats keep the stream alive, and nothing else does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from tests.front.behind import SOURCE, asking, new_id
from tests.support import raw
from tests.support.fronts import Front, HAProxy, Nginx, change, haproxy_readme, nginx_readme
from tests.support.server import ServerProcess

pytestmark = pytest.mark.real


def _fronts(limit: str) -> tuple[tuple[type[Front], str], ...]:
    """The README's configurations with this limit to what may be silent for how long, on every side."""
    return (
        (Nginx, change(nginx_readme(), ("proxy_read_timeout", f"proxy_read_timeout {limit};"))),
        (
            HAProxy,
            change(
                haproxy_readme(),
                ("timeout server", f"timeout server {limit}"),
                ("timeout client", f"timeout client {limit}"),
            ),
        ),
    )


def _quiet(silence: float, when: str, request_id: str) -> bytes:
    fields: dict[str, Any] = {"count": 3, when: silence}
    return asking("/chat", request_id=request_id, **fields)


def _alive(front: Front, silence: float, when: str) -> None:
    """The whole answer arrives, ``silence`` seconds of nothing in it (or before it), and heartbeats in between."""
    with raw.Client(front.port, deadline=silence + 10) as client:
        reply = client.ask(_quiet(silence, when, new_id("alive")), within=silence + 10)
    assert (reply.status, reply.whole, reply.done) == (200, True, True)
    assert reply.tokens == ["t1. ", "t2. ", "t3. "]
    assert b"\n:" in b"\n" + reply.body, "heartbeats are comments"


def _dead(front: Front, server: ServerProcess, silence: float, when: str) -> None:
    """The proxy gives up: 504 before the first token, a cut after it; the source is closed then."""
    request_id = new_id("dead")
    with raw.Client(front.port, deadline=silence + 10) as client:
        reply = client.ask(_quiet(silence, when, request_id), within=silence + 10)
    if when == "first":
        assert reply.status == 504
    else:
        assert (reply.status, reply.tokens, reply.whole, reply.done) == (200, ["t1. "], False, False)
    line = server.ended(request_id)
    assert line["outcome"] == "client_left"
    assert line["seconds"] < silence - 1


def _lives_on_heartbeats(limit: str, silence: float, heartbeat: str) -> None:
    """Everything at once: both proxies, with heartbeats and without, silent before the first token and after it."""
    with ExitStack() as stack:
        beating = stack.enter_context(ServerProcess(*SOURCE, "--heartbeat", heartbeat))
        mute = stack.enter_context(ServerProcess(*SOURCE, "--heartbeat", "0"))
        pool = stack.enter_context(ThreadPoolExecutor(8, "client"))
        waiting = []
        for kind, text in _fronts(limit):
            alive = stack.enter_context(kind(text, beating.port))
            dead = stack.enter_context(kind(text, mute.port))
            for when in ("first", "silence"):
                waiting.append(pool.submit(_alive, alive, silence, when))
                waiting.append(pool.submit(_dead, dead, mute, silence, when))
        for each in waiting:
            each.result(silence + 20)


def test_heartbeats_keep_a_silent_stream_alive_behind_a_proxy_that_cuts() -> None:
    """1.5 s of patience, 4 s of silence, a heartbeat each 0.5 s; without heartbeats it is cut."""
    _lives_on_heartbeats("1500ms", 4.0, "0.5")


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_65_seconds_of_silence_behind_limits_of_30_seconds() -> None:
    """The limits people have, and rawstream's default heartbeat of 15 s; without it both cut after 30 s."""
    _lives_on_heartbeats("30s", 65.0, "15")
