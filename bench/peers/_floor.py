"""What both floors share: tokens framed beforehand, and the little they read of a request.

The frames are HTTP chunks that hold one SSE event each: no JSON and no header is touched while streaming.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from bench.peers._source import DONE, TOKENS, frame, stats


def _chunk(data: str) -> bytes:
    encoded = data.encode()
    return b"%x\r\n%b\r\n" % (len(encoded), encoded)


FRAMES: Final = [_chunk(frame(token)) for token in TOKENS] * 2
END: Final = _chunk(DONE) + b"0\r\n\r\n"
HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_PROMPT: Final = re.compile(rb'"prompt": *"([^"]*)"')
_JOINED: Final = re.compile(rb'"joined": *true')
_NUMBER: Final = re.compile(
    rb'"(tokens|tokens_per_second|batch|suspend|first_token_seconds)": *([0-9.]+|null|true|false)'
)


def content_length(head: bytes) -> int:
    found = _LENGTH.search(head)
    return int(found[1]) if found else 0


def numbers(body: bytes) -> tuple[str, dict[str, Any]]:
    """Prompt and mock fields of a request, by two patterns."""
    prompt = _PROMPT.search(body)
    mock = {key.decode(): json.loads(value) for key, value in _NUMBER.findall(body)}
    if mock.get("tokens") is not None:
        mock["tokens"] = int(mock["tokens"])
    return prompt[1].decode() if prompt else "", mock


def is_joined(body: bytes) -> bool:
    """Whether the tokens of a pull are to be one write."""
    return _JOINED.search(body) is not None


def stats_answer() -> bytes:
    body = json.dumps(stats).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )
