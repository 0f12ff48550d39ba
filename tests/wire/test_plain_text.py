"""The /text dialect: the text and nothing else."""

from __future__ import annotations

from rawstream.model import Dialect, Token
from rawstream.wire.plain_text import PlainText


def test_the_text_goes_out_as_it_is() -> None:
    """Tokens are joined; line ends, NULs and lone surrogates harm nobody."""
    dialect: Dialect = PlainText()
    assert dialect.encode(["a\r\n", "é", ""]) == "a\r\né".encode()
    assert dialect.encode(["a", Token("b"), Token("c", index=1)]) == b"ab"
    assert dialect.encode(["\ud800"]) == "\ufffd".encode()
    assert dialect.encode([]) == b""


def test_there_is_no_room_for_anything_but_text() -> None:
    """No head, heartbeat, error or terminal: the framing says how it ended."""
    dialect = PlainText()
    assert dialect.head() == dialect.heartbeat == dialect.error("m", "c") == dialect.terminal("length", "code") == b""


def test_the_headers_of_a_text_stream() -> None:
    """Text in UTF-8, which nobody may hold back, keep or guess about."""
    assert dict(PlainText().headers) == {
        "content-type": "text/plain; charset=utf-8",
        "cache-control": "no-cache, no-transform",
        "x-accel-buffering": "no",
        "x-content-type-options": "nosniff",
    }


def test_a_stopped_answer_ends_with_its_last_character() -> None:
    """There is no byte left to say more."""
    assert PlainText().stopped("by hand") == b""
