"""Frames pass through as they are; only this reader's own error is said anew."""

from __future__ import annotations

from rawstream.model import Token
from rawstream.wire.chat_tokens import ChatTokens
from rawstream.wire.frames import Frames


def test_frames_are_what_they_were() -> None:
    frames = Frames(ChatTokens())
    assert (frames.name, frames.heartbeat) == ("chat", ChatTokens().heartbeat)
    assert frames.headers == ChatTokens().headers
    assert frames.head() == b""
    assert frames.encode([Token(raw=b"one"), Token(raw=b"two"), Token()]) == b"onetwo"
    assert (frames.terminal(), frames.terminal("stop"), frames.stopped("")) == (b"", b"", b"")


def test_an_error_is_said_in_the_frames_dialect() -> None:
    assert Frames(ChatTokens()).error("gone", "replay_gone") == ChatTokens().error("gone", "replay_gone")
