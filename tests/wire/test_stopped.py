"""How each dialect tells that its answer was stopped on purpose: a whole answer, never an error."""

from __future__ import annotations

import pytest

from rawstream.model import Dialect
from rawstream.wire.chat_tokens import ChatTokens
from rawstream.wire.event_source import EventSource
from rawstream.wire.openai import OpenAIChat
from rawstream.wire.plain_text import PlainText
from rawstream.wire.ui_messages import UIMessages

DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("dialect", "ending"),
    [
        (ChatTokens(), DONE),
        (PlainText(), b""),
        (EventSource("s"), b"id: s.end\n" + DONE),
        (OpenAIChat(id="c", created=1, model="m"), b'"finish_reason":"stop"}]}\n\n' + DONE),
        (UIMessages("m"), b'data: {"type":"abort","reason":"enough"}\n\n' + DONE),
    ],
    ids=lambda value: value.name if not isinstance(value, bytes) else "",
)
def test_a_stopped_answer_ends_as_its_clients_expect_it(dialect: Dialect, ending: bytes) -> None:
    said = dialect.head() + dialect.encode(["one"])
    stopped = dialect.stopped("enough")
    assert stopped.endswith(ending)
    assert b"enough" not in said
    assert b"error" not in stopped
