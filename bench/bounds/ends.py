"""A client that leaves after three tokens; and three tokens that must arrive one by one."""

from __future__ import annotations

import socket
import time
from itertools import pairwise
from typing import Any

from bench.bounds.clients import chat, connect, post, read_until
from bench.bounds.server import OWN_SOURCE, Rawstream, wait_for
from bench.bounds.table import Bench, Row, Verdict

_LEAVERS = 20


def three_and_away(bench: Bench) -> Verdict:
    """Several at once, singly and in batches; each reads three yields and closes."""
    found: dict[str, Any] = {}
    with Rawstream(bench.cores.server, "--source", OWN_SOURCE) as server:
        for batch in (1, 8):
            links: list[tuple[str, socket.socket]] = []
            for number in range(_LEAVERS):
                name = f"{batch}-{number}"
                request = chat(name=name, bounds={"wait": 0.05, "batch": batch})
                links.append((name, connect(server.port, request, receive_buffer=0)))
            for _, link in links:
                with link:
                    read_until(link, b'"token"', 3 * batch)
            names = {name for name, _ in links}

            def ended(names: set[str] = names) -> dict[str, int]:
                closed = {
                    name: yields for kind, name, _, yields in server.events() if kind == "close" and name in names
                }
                return closed if len(closed) == len(names) else {}

            # The one further yield would come within 50 ms; finally may take no longer.
            closed = wait_for(ended, "finally has run in every source", 5.0)
            found[f"batch {batch}"] = {"further_yields": max(closed.values()) - 3, "finally": len(closed)}
        other = _broken(server)
    passed = all(run["further_yields"] <= 1 and run["finally"] == _LEAVERS for run in found.values())
    measured = "; ".join(
        f"{name}: {run['further_yields']} further yields at most, finally ran in {run['finally']} of {_LEAVERS}"
        for name, run in found.items()
    )
    return Verdict(passed, measured, f"/chat-broken: {other} further yields after 1 s, and on", found)


def _broken(server: Rawstream) -> int:
    with connect(server.port, chat("/chat-broken", name="broken", bounds={"wait": 0.05}), receive_buffer=0) as link:
        read_until(link, b'"token"', 3)
    time.sleep(1.0)
    return int(sum(stream["tokens"] for stream in server.debug()["streams"])) - 3


def one_by_one(bench: Bench) -> Verdict:
    """``hello``, `` ``, ``world``, 200 ms apart."""
    with Rawstream(bench.cores.server, "--lab", "--source", OWN_SOURCE) as server:
        bounds = {"texts": ["hello", " ", "world"], "wait": 0.2, "count": 3}
        arrivals = _arrivals(server.port, post("/text", {"prompt": "hello", "bounds": bounds}))
        whole = _arrivals(server.port, chat("/chat-whole", name="whole", bounds=bounds))
    gaps = [later - earlier for (earlier, _), (later, _) in pairwise(arrivals)]
    text = [data for _, data in arrivals]
    passed = text == ["hello", " ", "world"] and all(0.15 < gap < 0.25 for gap in gaps)
    measured = ", ".join(f"{data!r} at {at * 1000:.0f} ms" for at, data in arrivals)
    other = f"/chat-whole: nothing before {whole[0][0] * 1000:.0f} ms"
    return Verdict(passed, measured, other, {"arrivals": arrivals, "whole": whole})


def _arrivals(port: int, request: bytes) -> list[tuple[float, str]]:
    """When each part of the body came (s after the request), its framing taken off."""
    arrivals: list[tuple[float, str]] = []
    with connect(port, request, receive_buffer=0) as link:
        began = time.monotonic()
        got, head_over = b"", False
        while True:
            got += link.recv(65536)
            at = time.monotonic() - began
            if not head_over and b"\r\n\r\n" in got:
                got, head_over = got.partition(b"\r\n\r\n")[2], True
            texts: list[str] = []
            while head_over and (line := got.find(b"\r\n")) >= 0:
                size = int(got[:line], 16)
                if size == 0:
                    return [*arrivals, *([(at, "".join(texts))] if texts else [])]
                texts.append(got[line + 2 : line + 2 + size].decode())
                got = got[line + 2 + size + 2 :]
            if texts:
                arrivals.append((at, "".join(texts)))


ROWS = (
    Row(
        "three-and-away",
        "a client that reads three tokens and leaves",
        "at most one further yield (one batch), finally has run",
        three_and_away,
    ),
    Row(
        "one-by-one",
        "hello, space, world, 200 ms apart, as text/plain",
        "three arrivals 200 ms apart, not one after 600 ms",
        one_by_one,
    ),
)
