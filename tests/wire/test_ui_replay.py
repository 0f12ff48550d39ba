"""A replay of a UI message stream is shorter and comes to the same."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from rawstream.model import DataPart, Token, TokenItem
from rawstream.wire.ui_messages import UIMessages
from rawstream.wire.ui_replay import MOST, compact


def chunks(frames: bytes) -> list[dict[str, Any]]:
    lines = frames.decode().split("\n\n")[:-1]
    return [json.loads(line.removeprefix("data: ")) for line in lines if line != "data: [DONE]"]


def told(frames: bytes) -> list[Any]:
    """What a client comes to: parts with their whole text, in order; everything else as it is."""
    parts: list[Any] = []
    for chunk in chunks(frames):
        if chunk["type"].endswith("-delta"):
            part = (chunk["type"], chunk["id"])
            if parts and isinstance(parts[-1], list) and parts[-1][0] == part:
                parts[-1][1] += chunk["delta"]
            else:
                parts.append([part, chunk["delta"]])
        elif not chunk.get("transient"):
            parts.append(chunk)
    return parts


def thought(text: str) -> Token:
    return Token(raw=json.dumps({"choices": [{"index": 0, "delta": {"reasoning_content": text}}]}).encode())


items = st.one_of(
    st.text(min_size=1, max_size=30),
    st.text(min_size=1, max_size=10).map(thought),
    st.booleans().map(lambda transient: Token(data=DataPart("step", 1, transient))),
)


@given(st.lists(items, max_size=60), st.booleans())
def test_a_replay_comes_to_the_same(answer: list[TokenItem], whole: bool) -> None:
    """However far the answer has come."""
    dialect = UIMessages("m1")
    frames = dialect.head() + b"".join(dialect.encode([item]) for item in answer)
    if whole:
        frames += dialect.terminal()
    shorter = compact(frames)
    assert told(shorter) == told(frames)
    assert len(shorter) <= len(frames)
    assert shorter.endswith(b"data: [DONE]\n\n") == whole
    assert compact(shorter) == shorter


def test_a_plain_answer_is_one_delta() -> None:
    dialect = UIMessages("m1")
    frames = dialect.head() + b"".join(dialect.encode([word]) for word in ["Hel", "lo ", "world"])
    deltas = [chunk for chunk in chunks(compact(frames)) if chunk["type"] == "text-delta"]
    assert deltas == [{"type": "text-delta", "id": "t1", "delta": "Hello world"}]


def test_a_long_answer_is_several_deltas_of_bounded_length() -> None:
    dialect = UIMessages("m1")
    frames = dialect.head() + b"".join(dialect.encode(["word "]) for _ in range(10_000))
    lengths = [len(chunk["delta"]) for chunk in chunks(compact(frames)) if chunk["type"] == "text-delta"]
    assert sum(lengths) == 50_000
    assert max(lengths) <= MOST
    assert len(lengths) <= 50_000 // MOST + 1


def test_nothing_is_nothing() -> None:
    assert compact(b"") == b""
