"""Whatever a server answers to a question of the doctor's, it is an answer or none: never an error of our own."""

from __future__ import annotations

import asyncio

import pytest

from rawstream.doctor import upstream_probes
from rawstream.doctor.asking import Asker
from rawstream.doctor.target import target_of
from tests.sources.fake_upstream import FakeUpstream, answering

NO_JSON = [b"", b"<p>", b'"\xff"', b"[" * 5000 + b"]" * 5000]


def whole(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


@pytest.mark.parametrize("body", NO_JSON)
async def test_a_small_question_that_gets_no_json_gets_the_status_alone(body: bytes) -> None:
    async with asyncio.timeout(10), FakeUpstream(answering(whole(body))) as fake:
        asker = Asker()
        assert await asker.aside("GET", f"{fake.url}/models") == (200, None)
        await asker.aclose()


@pytest.mark.parametrize("body", NO_JSON)
async def test_a_whole_answer_that_is_no_json_is_seen_as_that(body: bytes) -> None:
    async with asyncio.timeout(10), FakeUpstream(answering(whole(body))) as fake:
        asker = Asker()
        seen = await upstream_probes.whole(asker, target_of(fake.url))
        assert (seen.status, seen.body) == (200, None)
        await asker.aclose()
