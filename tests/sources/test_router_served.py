"""Several upstreams behind the running server: what clients and the log are told, byte for byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from tests.sources.fake_upstream import ANSWER, HEAD, LAST_CHUNK, FakeUpstream, Peer, Script, answering, chunk, delta
from tests.support import raw
from tests.support.server import ServerProcess

KEY = "sk-served-0123456789"
T = TypeVar("T")


def refusing(status: int, *fields: str, times: int = 10**9) -> Script:
    """An upstream that refuses the first ``times`` requests, each quoting the key that it was given."""
    left = times

    async def script(peer: Peer) -> None:
        nonlocal left
        while True:
            asked = await peer.request()
            left -= 1
            if left < 0:
                await peer.send(HEAD + chunk(ANSWER) + LAST_CHUNK)
                continue
            said = asked.headers.get("authorization", "none").replace("bearer", "the key")
            body = b'{"error": {"message": "%b is tired"}}' % said.encode()
            head = "".join(field + "\r\n" for field in fields)
            start = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{head}"
            await peer.send(start.encode() + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))

    return script


@asynccontextmanager
async def serving(tmp_path: Path, *scripts: Script, flags: tuple[str, ...] = ()) -> AsyncIterator[Any]:
    """A server process before these upstreams: u0 for any model, u1 for ``second``, and so on."""
    async with asyncio.timeout(40):
        fakes = [FakeUpstream(script) for script in scripts]
        lines = ["heartbeat = 0"]
        for index, fake in enumerate(fakes):
            await fake.__aenter__()
            models = ["*", "second", "third"][index]
            lines += ["[[upstreams]]", f'name = "u{index}"', f'url = "{fake.url}"']
            lines += [f'models = ["{models}"]', 'api_key_env = "UP_KEY"']
        file = tmp_path / "rawstream.toml"
        file.write_text("\n".join(lines) + "\n")
        server = await asyncio.to_thread(ServerProcess, "--config", str(file), *flags, env={"UP_KEY": KEY})
        try:
            with server:
                yield server, fakes
                await asyncio.to_thread(server.assert_steady)
                assert KEY not in server.stderr
        finally:
            for fake in fakes:
                await fake.__aexit__(None, None, None)


async def in_thread(call: Callable[..., T], *values: Any, **named: Any) -> T:
    return await asyncio.to_thread(call, *values, **named)


def completion(model: str = "m", **fields: Any) -> bytes:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": True, **fields}
    return raw.post("/v1/chat/completions", body)


async def test_after_several_attempts_the_client_is_told_so_and_not_to_try_again(tmp_path: Path) -> None:
    """Status and Retry-After of the last cause, ``x-should-retry: false``, OpenAI's JSON; no key and no name."""
    async with serving(tmp_path, refusing(503, "retry-after-ms: 2", f"x-key: {KEY}")) as (server, fakes):
        reply = await in_thread(raw.ask, server.port, completion(), within=15)
        assert len(fakes[0].requests) == 4
        assert (reply.status, reply.header("x-should-retry"), reply.header("retry-after-ms")) == (503, "false", "2")
        last = "the upstream answered with status 503"
        assert reply.json()["error"]["message"] == f"the upstream failed after 4 attempts; the last: {last}"
        assert KEY.encode() not in reply.raw + reply.body
        assert b"u0" not in reply.body
        assert server.stderr.count("upstream u0: status 503; trying u0 again in") == 3


async def test_a_retry_that_succeeds_is_a_stream_like_any_other(tmp_path: Path) -> None:
    async with serving(tmp_path, refusing(503, times=1)) as (server, fakes):
        reply = await in_thread(raw.ask, server.port, completion(), within=15)
        assert (reply.status, reply.whole, reply.events[-1]) == (200, True, "[DONE]")
        assert len(fakes[0].requests) == 2


async def test_with_no_retries_the_refusal_is_the_upstreams_own(tmp_path: Path) -> None:
    flags = ("--upstream-retries", "0", "--upstream-breaker-failures", "2")
    async with serving(tmp_path, refusing(500, "retry-after: 3"), flags=flags) as (server, _):
        first = await in_thread(raw.ask, server.port, completion())
        assert (first.status, first.header("x-should-retry"), first.header("retry-after")) == (500, None, "3")
        await in_thread(raw.ask, server.port, completion())
        third = await in_thread(raw.ask, server.port, completion())
        assert (third.status, third.header("x-should-retry"), third.header("retry-after")) == (503, "false", "5")
        assert third.json()["error"]["code"] == "upstream_unavailable"
        assert KEY.encode() not in first.raw + first.body + third.raw + third.body


async def test_a_model_that_nobody_serves_is_404_in_openais_shape(tmp_path: Path) -> None:
    async with serving(tmp_path, answering(HEAD + chunk(ANSWER) + LAST_CHUNK)) as (server, fakes):
        file = tmp_path / "rawstream.toml"
        assert 'models = ["*"]' in file.read_text()
        assert (await in_thread(raw.ask, server.port, completion("anything"))).status == 200
        assert fakes[0].requests[0].json["model"] == "anything"
    file.write_text(file.read_text().replace('models = ["*"]', 'models = ["one", "two-*"]'))
    with await in_thread(ServerProcess, "--config", str(file), env={"UP_KEY": KEY}) as server:
        for stream in (True, False):
            reply = await in_thread(raw.ask, server.port, completion("gpt", stream=stream))
            assert reply.status == 404
            assert reply.json()["error"] == {
                "message": "no upstream serves the model 'gpt'; there are: one, two-*",
                "type": "invalid_request_error",
                "param": None,
                "code": "model_not_found",
            }


async def test_a_client_that_leaves_while_it_waits_for_a_retry_is_noticed_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path, refusing(503, "retry-after: 20")) as (server, fakes):
        client = raw.Client(server.port)
        await in_thread(client.send, completion())
        await in_thread(server.wait_line, lambda line: "trying u0 again in 20 s" in line)
        client.close()
        line = await in_thread(server.wait_line, lambda line: '"outcome":"client_left"' in line)
        assert '"seconds":' in line
        assert len(fakes[0].requests) == 1


async def test_a_heartbeat_ends_the_attempts(tmp_path: Path) -> None:
    """Once the client has been told 200, the failure is told in the stream, and nothing is tried again."""
    script = refusing(503, "retry-after: 1")
    async with serving(tmp_path, script, flags=("--heartbeat", "0.2")) as (server, fakes):
        reply = await in_thread(raw.ask, server.port, completion(), within=15)
        assert (reply.status, reply.whole) == (200, False)
        assert reply.error is not None
        assert "[DONE]" not in reply.events
        assert len(fakes[0].requests) == 1


async def test_a_stream_that_is_cut_after_a_token_is_told_in_the_stream_and_not_tried_again(tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunk(delta("a")))

    async with serving(tmp_path, script) as (server, fakes):
        reply = await in_thread(raw.ask, server.port, completion())
        assert (reply.status, reply.whole) == (200, False)
        assert len(fakes[0].requests) == 1


async def test_the_models_of_all_are_listed(tmp_path: Path) -> None:
    body = b'{"object": "list", "data": [{"id": "a"}]}'
    listing = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    async with serving(tmp_path, answering(listing), answering(listing)) as (server, _):
        reply = await in_thread(raw.ask, server.port, raw.get("/v1/models"))
        assert sorted((model["id"], model["owned_by"]) for model in reply.json()["data"]) == [
            ("a", "u0"),
            ("second", "u1"),
        ]
