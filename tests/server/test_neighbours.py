"""Several workers without Redis: what is asked of a live stream is answered by the worker that has it."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from contextlib import ExitStack
from pathlib import Path

from rawstream.errors import BadRequest
from rawstream.limits.users import new_key
from rawstream.server.neighbours import Neighbours, Question, Reply
from tests.support.flow import turns
from tests.support.raw import Client, chat, get, post
from tests.support.server import ServerProcess


def all_three(server: ServerProcess, stack: ExitStack) -> list[Client]:
    """A connection to each worker."""
    found: dict[int, Client] = {}
    for _ in range(40):
        client = stack.enter_context(Client(server.port, deadline=20))
        found.setdefault(client.ask(get("/debug/streams")).json()["worker"], client)
        if len(found) == 3:
            break
    assert len(found) == 3
    return list(found.values())


def test_any_worker_stops_a_stream_and_tells_of_it() -> None:
    """Without Redis: who presses stop does not choose the worker that his connection comes to."""
    with ServerProcess("--workers", "3") as server, ExitStack() as stack:
        reader = stack.enter_context(Client(server.port, deadline=20))
        stream = reader.send(chat(tokens=None, tokens_per_second=20)).head().header("x-stream-id")
        assert stream
        workers = all_three(server, stack)
        states = [client.ask(get(f"/streams/{stream}")) for client in workers]
        assert [state.status for state in states] == [200] * 3
        assert len({state.json()["id"] for state in states}) == 1
        for client in workers:
            assert client.ask(post(f"/streams/{stream}/signal", "x")).status == 409
            assert client.ask(post(f"/streams/{stream}/credit", {"consumed": 1})).json()["code"] == "no_credit"
            assert client.ask(post(f"/streams/{stream}/credit", {})).status == 400
            assert client.ask(get(f"/streams/{'0' * 32}")).json()["code"] == "no_such_stream"
        stopped = [client.ask(post(f"/streams/{stream}/stop", {})).status for client in workers]
        assert stopped[0] == 202
        assert set(stopped) <= {202, 404}
        reader.until(b"data: [DONE]")


def test_a_user_cannot_stop_anothers_stream_at_another_worker_either(tmp_path: Path) -> None:
    config = tmp_path / "users.toml"
    keys = {name: new_key() for name in ("ann", "bob")}
    config.write_text("".join(f'[[users]]\nname = "{name}"\nkeys = ["{kept}"]\n' for name, (_, kept) in keys.items()))
    with ServerProcess("--workers", "2", "--config", str(config)) as server, ExitStack() as stack:
        as_user = {name: {"authorization": f"Bearer {key}"} for name, (key, _) in keys.items()}
        reader = stack.enter_context(Client(server.port, deadline=20))
        body = {"prompt": "x", "mock": {"tokens": None, "tokens_per_second": 20}}
        stream = reader.send(post("/chat", body, **as_user["ann"])).head().header("x-stream-id")
        for name, status in (("bob", 404), ("ann", 202)):
            for _ in range(6):  # connections: some come to the one worker, some to the other
                with Client(server.port, deadline=20) as client:
                    told = client.ask(post(f"/streams/{stream}/stop", {}, **as_user[name])).status
                assert told == status or (name == "ann" and told == 404)
        reader.until(b"data: [DONE]")


async def test_a_neighbour_that_is_hung_or_speaks_nonsense_has_no_stream(tmp_path: Path) -> None:
    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"no message")
        writer.close()

    server = await asyncio.start_unix_server(nonsense, tmp_path / "2.ask")
    (tmp_path / "3.ask").touch()
    one = Neighbours(tmp_path, 1, {})
    await one.start()
    assert await one.ask(Question("state", "x", None)) is None
    four = Neighbours(tmp_path, 4, {"state": lambda question: Reply(200, question.stream.encode())})
    await four.start()
    assert await one.ask(Question("state", "x", None)) == Reply(200, b"x")
    assert await one.ask(Question("other", "x", None)) is None
    reader, writer = await asyncio.open_unix_connection(tmp_path / "4.ask")
    writer.write(b"no question")
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()
    await four.aclose()
    await one.aclose()
    await one.aclose()
    server.close()
    assert await Neighbours(tmp_path / "gone", 1, {}).ask(Question("state", "x", None)) is None


async def test_a_hung_neighbour_costs_the_asker_nothing_that_lasts(tmp_path: Path) -> None:
    """A question larger than what the kernel holds for a sibling that does not read: dropped at the deadline."""
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(str(tmp_path / "2.ask"))
        hung.listen(16)
        one = Neighbours(tmp_path, 1, {})
        before = len(os.listdir("/proc/self/fd"))
        assert await one.ask(Question("signal", "x", None, bytes(1 << 20))) is None
        await turns()
        assert len(os.listdir("/proc/self/fd")) == before


async def test_an_answer_is_preferred_to_an_error(tmp_path: Path) -> None:
    """Who only reads a stream may refuse what the one that has it takes."""

    def refuses(question: Question) -> Reply:
        raise BadRequest("not here", status=409, code="no_credit")

    def late(question: Question) -> Reply:
        time.sleep(0.05)
        return Reply(204)

    others = [Neighbours(tmp_path, 2, {"credit": refuses}), Neighbours(tmp_path, 3, {"credit": late})]
    one = Neighbours(tmp_path, 1, {})
    for other in others:
        await other.start()
    assert await one.ask(Question("credit", "x", None)) == Reply(204)
    await others[1].aclose()
    assert await one.ask(Question("credit", "x", None)) == Reply(409, b"not here", "no_credit")
    await others[0].aclose()
