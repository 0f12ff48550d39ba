"""What a resumable answer promises, wherever its client comes back: in one process, and over Redis in another one."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.replay.conftest import Places, begin
from tests.support import raw
from tests.support.waiting import eventually

TOKENS: dict[str, Any] = {"tokens": 200, "tokens_per_second": 200}
ENDLESS: dict[str, Any] = {"tokens": None, "tokens_per_second": None}
FAST: dict[str, Any] = {"tokens": None, "tokens_per_second": 5000}
SLOW: dict[str, Any] = {"tokens": None, "tokens_per_second": 50}
ADA = {"x_user": "ada"}


def ids(body: bytes) -> list[str]:
    return re.findall(r"id: [0-9a-f]+\.(\w+)\n", body.decode())


def resume(stream: str, after: int | str, **headers: str) -> bytes:
    return raw.get("/stream?prompt=unused", last_event_id=f"{stream}.{after}", **(ADA | headers))


def begun(client: raw.Client, request: bytes, tokens: int) -> tuple[str, bytes]:
    """The id of the stream that was begun, and its first events."""
    head = client.send(request).head()
    assert head.status == 200
    assert head.header("x-resumable") is None
    stream = head.header("x-stream-id")
    assert stream is not None
    return stream, client.until(b".%d\ndata" % tokens)


def stop(places: Places, stream: str) -> None:
    reply = places.there.ask(raw.post(f"/streams/{stream}/stop", {}, **ADA))
    assert reply.status == 202
    eventually(lambda: places.generations("running") == 0, why="it is stopped")


@pytest.mark.parametrize("seen", [0, 1, 29, 60])
def test_every_token_comes_once_and_in_order(places: Places, seen: int) -> None:
    """Cut after some, read to some more elsewhere, cut again, and read to the end where it began."""
    with places.here.connect() as client:
        stream, got = begun(client, begin(places.here, mock=TOKENS), max(1, seen))
    have = len([one for one in ids(got) if one != "end"]) if seen else 0
    with places.there.connect() as client:
        assert client.send(resume(stream, have)).head().status == 200
        more = client.until(b".%d\ndata" % (have + 40))
    middle = ids(more)[:40]
    with places.here.connect() as client:
        rest = client.ask(resume(stream, have + 40))
    assert middle == [str(number) for number in range(have + 1, have + 41)]
    assert ids(rest.body) == [*(str(number) for number in range(have + 41, 201)), "end"]
    assert rest.whole


def test_whoever_has_seen_more_than_is_there_yet_gets_what_follows(places: Places) -> None:
    """What its owner sends a client is there before it can be read elsewhere: the client comes back at once."""
    for _ in range(10):
        with places.here.connect() as client:
            stream, got = begun(client, begin(places.here, mock={"tokens": 60, "tokens_per_second": 400}), 5)
        have = len(ids(got))
        rest = places.there.ask(resume(stream, have))
        assert ids(rest.body) == [*(str(number) for number in range(have + 1, 61)), "end"]


def test_the_end_that_was_seen_is_answered_with_204(places: Places) -> None:
    with places.here.connect() as client:
        stream, got = begun(client, begin(places.here, mock={"tokens": 3}), 3)
        assert b"[DONE]" in got + b"".join(client.parts())
    assert places.there.ask(resume(stream, "end")).status == 204


def test_an_answer_that_has_ended_can_still_be_read(places: Places) -> None:
    whole = places.here.ask(begin(places.here, mock={"tokens": 50, "tokens_per_second": None}))
    stream = whole.header("x-stream-id")
    assert stream is not None
    assert eventually(lambda: places.there.ask(resume(stream, 0))).body == whole.body


def test_what_is_not_kept_any_more_is_said_to_be_gone(places: Places) -> None:
    """410, and nothing else in its place."""
    with places.here.connect() as client:
        stream, _ = begun(client, begin(places.here, mock=ENDLESS), 30_000)
        for after in (1, 10**9):
            reply = places.there.ask(resume(stream, after))
            assert (reply.status, reply.json()["code"]) == (410, "replay_gone")
    stop(places, stream)


def test_nobody_else_can_read_or_stop_it(places: Places) -> None:
    with places.here.connect() as client:
        stream, _ = begun(client, begin(places.here, mock=SLOW), 3)
        for server in places.servers:
            assert server.ask(resume(stream, 1, x_user="eve")).status == 410
            assert server.ask(raw.post(f"/streams/{stream}/stop", {}, x_user="eve")).status == 404
            assert server.ask(raw.post(f"/streams/{stream}/signal", {}, x_user="eve")).status == 404
        client.until(b"data")
    stop(places, stream)


def test_a_stop_ends_it_for_everybody(places: Places) -> None:
    """Two read it, in two places; a third says stop."""
    with places.here.connect() as first, places.there.connect() as second:
        stream, _ = begun(first, begin(places.here, mock=SLOW), 3)
        assert second.send(resume(stream, 0)).head().status == 200
        second.until(b"data")
        stop(places, stream)
        for client in (first, second):
            assert b".end\ndata: [DONE]" in b"".join(client.parts())
    assert places.there.ask(raw.post(f"/streams/{stream}/stop", {}, **ADA)).status == 404


def test_signals_find_their_way(places: Places) -> None:
    """The mock reads none, and whoever sends one is told so, wherever it is sent; and that the stream is over."""
    with places.here.connect() as client:
        stream, _ = begun(client, begin(places.here, mock=SLOW), 3)
        for place in places.servers:
            told = place.ask(raw.post(f"/streams/{stream}/signal", {}, **ADA))
            assert (told.status, told.json()["code"]) == (409, "no_signals")
    stop(places, stream)
    assert places.there.ask(raw.post(f"/streams/{stream}/signal", {"a": 1}, **ADA)).status == 404


def test_a_repeated_idempotency_key_begins_nothing(places: Places) -> None:
    before = places.generations("opened")
    request = begin(places.here, mock={"tokens": 30}, headers=ADA | {"idempotency_key": "once"})
    first = places.here.ask(request)
    again = places.there.ask(request)
    assert (again.status, again.body) == (200, first.body)
    assert again.header("x-stream-id") == first.header("x-stream-id")
    assert places.generations("opened") == before + 1


def test_an_idempotency_key_is_for_one_request_of_one_user(places: Places) -> None:
    key = ADA | {"idempotency_key": "mine"}
    places.here.ask(begin(places.here, mock={"tokens": 3}, headers=key))
    other = places.there.ask(begin(places.there, mock={"tokens": 4}, headers=key))
    assert (other.status, other.json()["code"]) == (422, "idempotency_key_reused")
    eve = places.there.ask(begin(places.there, mock={"tokens": 3}, headers=key | {"x_user": "eve"}))
    assert eve.status == 200


def test_a_chat_goes_on_where_its_page_is_opened_again(places: Places) -> None:
    """What has passed comes in few events, and then what comes; the texts are the same."""
    body = {"id": "chat-1", "messages": [{"id": "m", "role": "user", "parts": [{"type": "text", "text": "hello"}]}]}
    options = {"mock": {"tokens": 120, "tokens_per_second": 200}}
    with places.here.connect() as first:
        first.send(raw.post("/api/chat", body | options, **ADA)).head()
        got = first.until(b"text-delta")
        with places.there.connect() as second:
            reply = second.ask(raw.get("/api/chat/chat-1/stream", **ADA))
        got += b"".join(first.parts())
    assert reply.status == 200
    assert _text(reply.body) == _text(got)
    assert [event for event in raw.data_lines(reply.body) if '"start"' in event] == [
        event for event in raw.data_lines(got) if '"start"' in event
    ]
    assert places.there.ask(raw.get("/api/chat/chat-1/stream", **ADA)).status == 204
    assert places.there.ask(raw.get("/api/chat/chat-1/stream", x_user="eve")).status == 204


def _text(body: bytes) -> str:
    events = [json.loads(event) for event in raw.data_lines(body) if event.startswith("{")]
    return "".join(event["delta"] for event in events if event["type"] == "text-delta")


def test_with_no_reader_the_source_waits_at_the_window(places: Places) -> None:
    before = places.tokens()
    with places.here.connect() as client:
        stream, _ = begun(client, begin(places.here, mock=FAST), 10)
    waits_at = places.settled()
    with places.there.connect() as client:
        client.send(resume(stream, 10)).head()
        client.until(b".5000\ndata")
    assert waits_at - before < 65_536 // 50 + 20_000
    eventually(lambda: places.tokens() > waits_at, why="it goes on with a reader")
    stop(places, stream)


def test_a_reader_that_takes_nothing_stops_the_source_wherever_it_reads(places: Places) -> None:
    with places.here.connect() as client:
        stream, _ = begun(client, begin(places.here, mock=FAST), 10)
    with places.there.connect(rcvbuf=4096) as slow:
        slow.send(resume(stream, 10)).head()
        places.settled()
        slow.until(b"data")
    stop(places, stream)


def test_a_grace_that_ends_is_the_end(places: Places) -> None:
    with places.here.connect() as client:
        stream, _ = begun(client, begin(places.here, mock=SLOW, on_disconnect="grace:0.5"), 3)
    with places.there.connect() as client:
        client.send(resume(stream, 1)).head()
        client.until(b".30\ndata")
    eventually(lambda: places.generations("running") == 0, why="the grace is over")
