"""Python's clients, unmodified, through the gateway: each behaviour of the matrix, from each client's own API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import pytest

from tests.clients.conftest import HEARTBEAT, RETRIES, Tell
from tests.clients.cutting import CHUNKS, Cut
from tests.clients.matrix import ROWS, cells
from tests.clients.python_clients import CLIENTS, Ask, Client, Reading
from tests.support import raw
from tests.support.chaos import ChaosProcess
from tests.support.server import ServerProcess
from tests.support.waiting import eventually

pytestmark = [pytest.mark.real]


def words(count: int) -> str:
    """The first ``count`` tokens of the upstream's answer."""
    return "".join(f"token{number} " for number in range(count))


@pytest.fixture
def client(request: pytest.FixtureRequest) -> Client:
    """The client of this cell."""
    return CLIENTS[request.node.callspec.params["row"]]


@pytest.fixture
def user() -> str:
    """A name that no other request has."""
    return uuid4().hex


def generations(chaos: ChaosProcess, user: str) -> list[dict[str, Any]]:
    return [one for one in chaos.state()["generations"] if one["user"] == user]


def every_client(behaviour: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("row", "behaviour"), cells(CLIENTS, behaviour))


def assert_whole(client: Client, reading: Reading, text: str, tokens: int) -> None:
    """All of the text, one end where the client shows one, and the right count."""
    assert reading.error is None
    assert reading.failure is None
    assert reading.text == text
    assert reading.ends == {"finish_reason": ["stop"], "[DONE]": ["[DONE]"], None: []}[client.end]
    assert reading.usages == ([tokens] if client.counts else [])


@every_client("full stream")
def test_a_full_stream(row: str, behaviour: str, client: Client, gateway: ServerProcess, tell: Tell) -> None:
    """Twenty tokens, exactly, and the end, and how many they were."""
    reading = client.read(Ask(gateway.url, "ok:tokens=20"))
    assert_whole(client, reading, words(20), 20)
    tell("whole, usage" if reading.usages else "whole", client.version)


@every_client("cancel")
def test_leaving_ends_the_generation(
    row: str, behaviour: str, client: Client, gateway: ServerProcess, chaos: ChaosProcess, user: str, tell: Tell
) -> None:
    """Five tokens of an endless answer, then the client's own way out: the upstream sees it, and stops."""
    reading = client.read(Ask(gateway.url, "endless:rate=100", user), leave_after=5)
    assert reading.error is None
    assert reading.text.startswith(words(5))
    (left,) = eventually(
        lambda: [one for one in generations(chaos, user) if one["state"] != "running"], why="the upstream has ended it"
    )
    assert left["state"] == "client_left"
    tell("upstream stops", client.version)


@every_client("error before")
def test_an_error_before_the_first_token(
    row: str, behaviour: str, client: Client, gateway: ServerProcess, chaos: ChaosProcess, tell: Tell
) -> None:
    """What the upstream refused is the client's own error, and is asked for once. What failed in spite of the
    gateway's own attempts is one too: and the client, told so, does not multiply them."""
    before = chaos.state()["requests"]
    refused = client.read(Ask(gateway.url, "status:code=404"))
    assert chaos.state()["requests"] == before + 1
    failed = client.read(Ask(gateway.url, "status:code=503,retry_after=0"))
    assert chaos.state()["requests"] == before + 1 + 1 + RETRIES
    names = []
    for reading, expected in ((refused, 404), (failed, 503)):
        assert reading.pieces == []
        assert reading.error is not None
        status, said = client.refusal(reading.error)
        assert status == expected
        assert str(expected) in said
        names.append(type(reading.error).__name__)
    tell(f"{', '.join(dict.fromkeys(names))}; asked once", client.version)


@every_client("error after")
def test_an_error_in_mid_stream(row: str, behaviour: str, client: Client, gateway: ServerProcess, tell: Tell) -> None:
    """The tokens until then are there; then the client knows that it failed: the upstream died, or said so itself."""
    verdicts = []
    for model in ("die-mid-chunk:tokens=5", "error-in-stream:tokens=5"):
        reading = client.read(Ask(gateway.url, model))
        assert reading.text == words(5)
        assert reading.ends == []
        assert reading.error is not None
        verdicts.append(f"{'error event, ' if reading.failure else ''}{type(reading.error).__name__}")
    assert verdicts[0] == verdicts[1]
    tell(verdicts[0], client.version)


@every_client("cut")
def test_a_lost_connection(row: str, behaviour: str, client: Client, cut: Mapping[Cut, str], tell: Tell) -> None:
    """No event tells of it: the missing end of the framing does, to every client, and so does a reset."""
    errors = []
    for kind in (Cut.BETWEEN, Cut.INSIDE, Cut.RESET):
        reading = client.read(Ask(cut[kind], "ok:tokens=50,rate=100"))
        assert_beginning(reading, least=0 if kind is Cut.RESET else CHUNKS - 2)
        assert reading.error is not None
        errors.append(type(reading.error).__name__)
    tell(" or ".join(dict.fromkeys(errors)), client.version)


@every_client("ended early")
def test_an_end_without_the_terminal_event(
    row: str, behaviour: str, client: Client, cut: Mapping[Cut, str], tell: Tell
) -> None:
    """rawstream never does this, something on the way may: a client that looks no further than the framing's end
    takes it for an end. What its user can look at is that the terminal event is missing, where there is one."""
    reading = client.read(Ask(cut[Cut.CLEAN], "ok:tokens=50,rate=100"))
    assert_beginning(reading, least=CHUNKS - 2)
    if reading.error is not None:
        tell(type(reading.error).__name__, client.version)
    else:
        tell(f"cannot tell: {'plain text has no end' if client.end is None else f'no {client.end}'}", client.version)


def assert_beginning(reading: Reading, least: int) -> None:
    """At least so many tokens, not all of them, and nothing that says so. (A reset may throw away what came before.)"""
    assert words(least) in reading.text
    assert words(50).startswith(reading.text)
    assert len(reading.text) < len(words(50))
    assert reading.ends == []
    assert reading.failure is None


@every_client("heartbeats")
def test_silence(row: str, behaviour: str, client: Client, gateway: ServerProcess, tell: Tell) -> None:
    """Before the first token and between two: heartbeats go by, and every token arrives."""
    for model, tokens in (("slow-first:seconds=0.4,tokens=10", 10), ("ok:tokens=3,rate=4", 3)):
        assert_whole(client, client.read(Ask(gateway.url, model)), words(tokens), tokens)
    plain = ROWS[row].endpoint == "/text"
    tell("exact (plain text has no heartbeats)" if plain else "exact", client.version)


@every_client("non-ASCII")
def test_characters_cut_on_the_way(
    row: str, behaviour: str, client: Client, gateway: ServerProcess, tell: Tell
) -> None:
    """Umlauts, Chinese, Cyrillic, emoji and a combining accent, each byte in a packet of its own on the other side."""
    reading = client.read(Ask(gateway.url, "unicode:tokens=10"))
    assert_whole(client, reading, "grüße 世界 Привет 🌊🚰 \u00e9\u0301 " * 2, 10)
    tell("exact", client.version)


@pytest.mark.parametrize(
    ("request_bytes", "heartbeat"),
    [
        (raw.post("/chat", {"prompt": "hello", "model": "slow-first:seconds=0.5"}), b": hb\n\n"),
        (raw.get("/stream?prompt=hello&model=slow-first:seconds%3D0.5"), b": hb\n"),
        (
            raw.post(
                "/v1/chat/completions",
                {"model": "slow-first:seconds=0.5", "stream": True, "messages": [{"role": "user", "content": "hello"}]},
            ),
            b": hb\n",
        ),
    ],
    ids=["/chat", "/stream", "/v1/chat/completions"],
)
def test_there_are_heartbeats_to_survive(gateway: ServerProcess, request_bytes: bytes, heartbeat: bytes) -> None:
    """The control: while the upstream thinks for half a second, heartbeats are really sent."""
    reply = raw.ask(gateway.port, request_bytes)
    assert reply.body.count(heartbeat) >= 0.5 / HEARTBEAT - 2
