"""What a JavaScript client's report amounts to: a verdict for each behaviour, in the words of the matrix.

Rule 1: a reader says what one client's fields mean (``Answer``); a judge says what must hold, the same for all clients.
Rule 2: a judge fails where a token is lost, added or made up, and where an answer that is not whole passes for one
        without a word in the verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from tests.clients.javascript import UNICODE, words

ENDLESS_TEXT: Final = words(5000)
SILENCES: Final = 6
"""Heartbeats that the silences of ``heartbeats`` have room for, at least."""
CUTS: Final = {"between", "inside", "reset"}
"""Between two chunks, inside one, and by a TCP reset."""

Seen: TypeAlias = Mapping[str, Any]


class Answer(NamedTuple):
    """What one conversation came to."""

    text: str
    end: bool
    """Does the client say that it is whole?"""
    notices: tuple[str, ...] = ()
    """What told its user that it is not."""
    said: str = ""
    """The failure as it was told."""
    usage: int | None = None
    """Completion tokens."""


class Client(NamedTuple):
    """One row of the matrix."""

    script: str
    read: Callable[[Seen], Answer]
    packages: tuple[str, ...] = ()
    """Whose versions are the client's."""
    end: str = "[DONE]"
    """What its user would miss at an end that is none."""
    prefix: str = ""
    """Of its behaviours' names, where a script is several clients."""
    more: Mapping[str, Mapping[str, Any]] = {}
    """Cases beside those of the matrix."""
    words_lost: bool = False
    """Is it unable to hand on what we say about a refusal?"""
    plain: bool = False
    """Is it given plain text, which has neither heartbeats nor an end?"""
    asks: str = "asked once"
    """What it does about a refusal of which we say that asking again is of no use."""


# --- readers ------------------------------------------------------------------------------------------------


def _said(errors: Iterable[Seen]) -> str:
    return " ".join(f"{error['message']} {error.get('code')}" for error in errors)


def read_openai(seen: Seen) -> Answer:
    errors = [seen["error"]] if seen["error"] else []
    usage = seen.get("usage") or []
    return Answer(
        seen["text"],
        seen.get("finish") == ["stop"],
        tuple(error["kind"] for error in errors),
        _said(errors),
        usage[-1]["completion_tokens"] if usage else None,
    )


def read_ai(seen: Seen) -> Answer:
    errors = [*seen["errors"], *([seen["thrown"]] if "thrown" in seen else [])]
    usage = seen["usage"] or {}
    notices = tuple(error["kind"] for error in errors)
    return Answer(seen["text"], seen["finish"] == "stop", notices, _said(errors), usage.get("outputTokens"))


def read_use_chat(seen: Seen) -> Answer:
    """The hook's ``status`` and ``error``, and what ``onFinish`` was told."""
    errors = [seen["error"]] if seen["error"] else []
    assert (seen["status"] == "error") == bool(errors)
    assert [error["message"] for error in seen["errors"]] == [error["message"] for error in errors]
    finish = seen["finishes"][-1]
    assert finish["isError"] == bool(errors)
    usage = (seen["metadata"] or {}).get("usage") or {}
    return Answer(
        seen["text"],
        finish.get("finishReason") == "stop",
        tuple(error["kind"] for error in errors),
        _said(errors),
        usage.get("outputTokens"),
    )


def read_event_source(seen: Seen) -> Answer:
    """It says 'error' to everything, its end too; it closes for good only where it got no stream."""
    notices = ["error event"] * bool(seen["told"])
    if seen["opens"] == 0:
        codes = {error["code"] for error in seen["errors"]}
        notices.append("closed, with the status" if codes - {None} else "closed")
    elif seen["opens"] > 1:
        notices.append("asks again")
    return Answer(seen["text"], seen["done"] == 1, tuple(notices), _errors_told(seen))


def read_fetch_event_source(seen: Seen) -> Answer:
    rejected = seen["rejected"]
    notices = ["error event"] * bool(seen["told"]) + ([rejected["kind"]] if rejected else [])
    return Answer(
        seen["text"], seen["done"] == 1, tuple(notices), _errors_told(seen) + (_said([rejected]) if rejected else "")
    )


def read_ours(seen: Seen) -> Answer:
    """It returns only from a whole answer."""
    error = seen["error"]
    return Answer(seen["text"], error is None, (error["name"],) if error else (), _said([error]) if error else "")


def read_fetch(seen: Seen) -> Answer:
    """A page's own few lines around ``fetch``: the status, then events cut at blank lines."""
    refused = seen["body"] or {}
    error = seen["error"]
    notices = ["error event"] * bool(seen["told"])
    notices += [f"status {seen['status']}"] if refused else []
    notices += [error["name"]] if error else []
    return Answer(
        seen["text"],
        seen["ended"] and seen["done"] == (seen["type"] != "text/plain; charset=utf-8"),
        tuple(notices),
        f"{refused.get('error')} {refused.get('code')} {_errors_told(seen)}",
    )


def _errors_told(seen: Seen) -> str:
    return " ".join(f"{told['error']} {told['code']}" for told in seen["told"])


# --- judges -------------------------------------------------------------------------------------------------


def _whole(client: Client, seen: Seen, text: str, tokens: int) -> Answer:
    answer = client.read(seen)
    assert answer.text == text
    assert answer.end
    assert answer.notices == ()
    assert answer.usage in (None, tokens)
    return answer


def _broken(client: Client, seen: Seen) -> Answer:
    """The begin of an endless answer, which was asked for once, or told to be asked for again."""
    answer = client.read(seen)
    assert len(seen["requests"]) == 1 + ("asks again" in answer.notices)
    assert answer.text
    assert ENDLESS_TEXT.startswith(answer.text)
    return answer


def full_stream(client: Client, seen: Seen) -> str:
    """Twenty tokens, exactly, the end, and how many they were."""
    answer = _whole(client, seen, words(20), 20)
    if len(seen["requests"]) == 1:
        return "whole" if answer.usage is None else "whole, usage"
    # EventSource: it asks for what comes after the end, and is told that nothing does.
    first, second = seen["requests"]
    assert "last-event-id" not in first.lower()
    assert f"last-event-id: {seen['ids'][0].split('.')[0]}.end" in second.lower()
    assert seen["answers"][1].startswith("HTTP/1.1 204 ")
    assert seen["closed"]
    return "whole; 204 ends it"


def error_before(client: Client, seen: Seen) -> str:
    """A status, once, in the client's own form, with our words where it has a place for them."""
    names: dict[str, None] = {}
    asks = {"asked once"}
    for (_, one), status in zip(seen.items(), ("404", "503"), strict=True):
        answer = client.read(one)
        assert (answer.text, answer.end) == ("", False)
        assert answer.notices
        assert client.words_lost or status in answer.said
        assert [head.split()[1] for head in one["answers"]] == [status] * len(one["requests"])
        names.update(dict.fromkeys(answer.notices))
        if len(one["requests"]) > 1:
            asks = {f"asks {len(one['requests'])} times"}
    assert asks == {client.asks}
    return f"{', '.join(names)}; {client.asks}"


def error_after(client: Client, seen: Seen) -> str:
    """The tokens until then; then the client knows, whether the upstream died or said so."""
    verdicts = set()
    for model, one in seen.items():
        answer = client.read(one)
        assert answer.text == words(5)
        assert not answer.end
        said = "the model failed" if "error-in-stream" in model else "cut its stream"
        assert answer.said == "" or said in answer.said or set(answer.notices) == {"TypeError"}
        verdicts.add(", ".join(answer.notices))
    (verdict,) = verdicts
    assert verdict
    return verdict


def cut(client: Client, seen: Seen) -> str:
    """Wherever the connection is lost: never taken for the end."""
    assert set(seen) == CUTS
    verdicts = set()
    for one in seen.values():
        answer = _broken(client, one)
        assert answer.notices
        assert not answer.end
        _assert_begun_anew(one)
        verdicts.add(", ".join(answer.notices))
    (verdict,) = verdicts
    return verdict


def ended_early(client: Client, seen: Seen) -> str:
    """rawstream never ends a body so; a careless proxy does. The terminal event is what the user can miss."""
    answer = _broken(client, seen)
    assert answer.end == client.plain
    _assert_begun_anew(seen)
    return ", ".join(answer.notices) or f"cannot tell: {client.end}"


def _assert_begun_anew(seen: Seen) -> None:
    """A client that asks again by itself says what it had last, and gets a new answer, from its begin."""
    if seen.get("opens") == 2 and "again" in seen:
        had, new = (one.split(".")[0] for one in seen["ids"])
        assert had != new
        assert f"last-event-id: {had}." in seen["requests"][1].lower()
        assert ENDLESS_TEXT.startswith(seen["again"])


def heartbeats(client: Client, seen: Seen) -> str:
    """Silence before the first token and between tokens: heartbeats pass, and every token arrives."""
    _whole(client, seen, words(4), 4)
    if client.plain:
        assert seen["heartbeats"] == 0
        return "exact (plain text has no heartbeats)"
    assert seen["heartbeats"] >= SILENCES
    if "messages" in seen and seen.get("empty"):
        # fetch-event-source hands on an empty message for each blank line, against the specification.
        assert seen["empty"] == seen["heartbeats"]
        return "exact; heartbeats are empty messages"
    return "exact"


def non_ascii(client: Client, seen: Seen) -> str:
    """Umlauts, Chinese, Cyrillic, emoji and a combining accent, each byte in a packet of its own on the other side."""
    _whole(client, seen, UNICODE * 2, 10)
    return "exact"


JUDGES: Final[Mapping[str, Callable[[Client, Seen], str]]] = {
    "full stream": full_stream,
    "error before": error_before,
    "error after": error_after,
    "cut": cut,
    "ended early": ended_early,
    "heartbeats": heartbeats,
    "non-ASCII": non_ascii,
}
"""All behaviours but ``cancel``, which the upstream has a word in."""


def left_texts(seen: Seen) -> list[str]:
    """What a client had of an endless answer when it left, for each of its ways to leave."""
    ways = [seen] if "text" in seen else list(seen.values())
    texts = [way["text"] for way in ways]
    assert all(text and ENDLESS_TEXT.startswith(text) for text in texts)
    return texts
