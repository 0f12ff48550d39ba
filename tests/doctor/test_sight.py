"""What the far side says is believed only when it is sure; what it does not say is not made up."""

from __future__ import annotations

from typing import Any

import pytest

from rawstream.doctor.asking import Asker
from rawstream.doctor.finding import CannotExamine
from rawstream.doctor.sight import RawstreamEye, State, is_mock, model_server_eye
from rawstream.doctor.target import target_of

Answer = tuple[int, Any] | None


class Scripted(Asker):
    """Answers questions beside the stream from a list per path; the last answer again and again."""

    def __init__(self, answers: dict[str, list[Answer]] | None = None) -> None:
        super().__init__()
        self.answers = answers or {}
        self.asked: list[tuple[str, tuple[tuple[str, str], ...]]] = []

    async def aside(self, method: str, url: str, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
        self.asked.append((url, headers))
        known = self.answers.get(url.rpartition("/")[2])
        if known is None:
            return 404, None
        return known.pop(0) if len(known) > 1 else known[0]


class Answered:
    """An exchange of which only the head is of interest."""

    def header(self, name: str) -> str:
        return "abc" if name == "x-stream-id" else ""


LIVE: Answer = (200, {"tokens": 3, "bytes": 75})
GONE: Answer = (404, {"error": "no stream"})
TARGET = target_of("http://edge/chat", headers=(("authorization", "Bearer secret"),))


async def test_a_stream_is_gone_when_it_is_not_found_three_times_in_a_row() -> None:
    asker = Scripted({"abc": [LIVE, LIVE, GONE, GONE, LIVE, GONE]})
    sight = await RawstreamEye(asker, TARGET, None).find(Answered())  # type: ignore[arg-type]  # its head is enough
    assert sight is not None
    assert await sight.look() == State(3, 75)
    assert await sight.look() == State(3, 75), "one server behind the balancer did not know it, the other did"
    assert await sight.look() is None
    assert await sight.until_gone(1.0) is not None


@pytest.mark.parametrize("broken", [None, (502, None), (429, None)])
async def test_an_edge_that_fails_does_not_mean_that_the_stream_is_gone(broken: Answer) -> None:
    asker = Scripted({"abc": [LIVE, broken]})
    sight = await RawstreamEye(asker, TARGET, None).find(Answered())  # type: ignore[arg-type]  # as above
    assert sight is not None
    with pytest.raises(CannotExamine):
        await sight.look()


async def test_the_users_key_goes_to_the_users_url_alone() -> None:
    asker = Scripted({"abc": [GONE], "streams": [(200, {"streams": []})]})
    eye = RawstreamEye(asker, TARGET, "127.0.0.1:8000")
    await eye.remember()
    assert await eye.find(Answered()) is None  # type: ignore[arg-type]  # as above
    sent = {url.partition("/streams")[0].removesuffix("/debug"): bool(headers) for url, headers in asker.asked}
    assert sent == {"http://127.0.0.1:8000": False, "http://edge": True}


async def test_an_address_that_is_no_rawstreams_is_told() -> None:
    with pytest.raises(CannotExamine, match="own address"):
        await RawstreamEye(Scripted(), TARGET, "http://nowhere").remember()


@pytest.mark.parametrize(
    ("path", "told", "name"),
    [
        ("slots", [{"is_processing": True, "next_token": [{"n_decoded": 7}]}, {"is_processing": False}], "llama.cpp"),
        ("state", {"generations": [{"state": "done", "tokens": 1}, {"state": "running", "tokens": 7}]}, "chaos"),
        ("streams", {"streams": [{"id": "x", "tokens": 7}]}, "rawstream"),
    ],
)
async def test_each_model_server_is_asked_in_its_own_way(path: str, told: Any, name: str) -> None:
    eye = await model_server_eye(Scripted({path: [(200, told)]}), "http://h/v1", ())
    assert eye is not None
    assert eye.name == name
    state = await eye.look()
    assert state is not None
    assert state.tokens == 7


async def test_a_model_server_that_says_nothing_is_not_looked_into() -> None:
    assert await model_server_eye(Scripted({"slots": [(200, {"error": "off"})]}), "http://h/v1", ()) is None


def test_the_mock_is_known_by_its_list_of_models() -> None:
    assert is_mock((200, {"data": [{"id": "mock", "owned_by": "rawstream"}]}))
    assert not is_mock((200, {"data": [{"id": "mock", "owned_by": "me"}]}))
    assert not is_mock((404, None))
    assert not is_mock(None)
