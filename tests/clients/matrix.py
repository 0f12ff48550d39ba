"""The conformance matrix of real clients: which client does what, in words that its test must bring forth.

Rule 1: a cell says what was observed. Its test works the verdict out of what the client did, and fails when it is
        not the one that stands here; so the table cannot promise what no test has seen.
Rule 2: a client that cannot tell a cut answer from a whole one has a cell that says so, and a test that shows it.
Rule 3: the README's table is these rows (``tests/clients/test_matrix.py``).

``RAWSTREAM_CLIENT_MATRIX=FILE pytest tests/clients`` writes the table, with the versions that ran, to that file.
A new client: a ``Row`` here, and tests that are parametrised by ``cells(...)`` and use the ``tell`` fixture.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import pytest

COLUMNS: Final[Mapping[str, str]] = {
    "full stream": "every token, in order; the end is seen as the end; usage where the client has a place for it",
    "cancel": "the client's own way to leave in mid-stream, and the upstream's generation has ended",
    "error before": "a failure before the commit point is a status, and the client's own error with our words and "
    "code; and how often it asked, where we had said that more is of no use",
    "error after": "a failure in mid-stream: the tokens until then, and then the client notices",
    "cut": "the connection is lost in mid-stream without any error event: never taken for the end",
    "ended early": "something on the way turns a cut into a clean end of the body: only the terminal event is missing",
    "heartbeats": "silence before the first token and between tokens, heartbeats meanwhile: nothing is lost or added",
    "non-ASCII": "characters cut at every byte on the upstream's side arrive as they were",
}
"""The behaviours, each with what it means."""


class Row(NamedTuple):
    """One client on one endpoint."""

    client: str
    endpoint: str
    cells: Mapping[str, str]
    """Behaviour → verdict."""


class Told(NamedTuple):
    """A cell whose test ran."""

    client: str
    behaviour: str
    verdict: str
    version: str


def _row(client: str, endpoint: str, *verdicts: str) -> Row:
    return Row(client, endpoint, dict(zip(COLUMNS, verdicts, strict=True)))


_OPENAI: Final = (
    "whole, usage",
    "upstream stops",
    "NotFoundError, InternalServerError; asked once",
    "APIError",
    "APIConnectionError",
    "cannot tell: no finish_reason",
    "exact",
    "exact",
)
_LANGCHAIN: Final = (
    *_OPENAI[:2],
    "OpenAIModelNotFoundError, OpenAIAPIError; asked once",
    _OPENAI[3],
    "OpenAIConnectionError",
    *_OPENAI[5:],
)
_EVENTS: Final = (
    "whole",
    "upstream stops",
    "HTTPStatusError; asked once",
    "error event, RemoteProtocolError",
    "RemoteProtocolError or ReadError",
    "cannot tell: no [DONE]",
    "exact",
    "exact",
)
_OURS: Final = (
    "upstream stops",
    "StreamRefused; asked once",
    "StreamError",
    "StreamError",
    "StreamError",
    "exact",
    "exact",
)

_ALL: Final = (
    _row("openai (PyPI), sync", "/v1/chat/completions", *_OPENAI),
    _row("openai (PyPI), async", "/v1/chat/completions", *_OPENAI),
    _row("langchain-openai, stream", "/v1/chat/completions", *_LANGCHAIN),
    _row("langchain-openai, astream", "/v1/chat/completions", *_LANGCHAIN),
    _row("httpx-sse, sync, POST", "/chat", *_EVENTS),
    _row("httpx-sse, async, POST", "/chat", *_EVENTS),
    _row("httpx-sse, sync, GET", "/stream", *_EVENTS),
    _row("httpx-sse, async, GET", "/stream", *_EVENTS),
    _row(
        "requests",
        "/chat",
        "whole",
        "upstream stops",
        "HTTPError; asked once",
        "error event, ChunkedEncodingError",
        "ChunkedEncodingError",
        "cannot tell: no [DONE]",
        "exact",
        "exact",
    ),
    _row(
        "httpx",
        "/text",
        "whole",
        "upstream stops",
        "HTTPStatusError; asked once",
        "RemoteProtocolError",
        "RemoteProtocolError or ReadError",
        "cannot tell: plain text has no end",
        "exact (plain text has no heartbeats)",
        "exact",
    ),
    _row("rawstream.stream, POST", "/chat", "whole", *_OURS),
    _row("rawstream.stream, GET", "/stream", "whole", *_OURS),
    _row("rawstream.stream, OpenAI's wire", "/v1/chat/completions", "whole, usage", *_OURS),
    _row(
        "openai (npm)",
        "/v1/chat/completions",
        "whole, usage",
        "upstream stops",
        "NotFoundError, InternalServerError; asked once",
        "APIError",
        "TypeError",
        "cannot tell: no finish_reason",
        "exact",
        "exact",
    ),
    _row(
        "ai with @ai-sdk/openai-compatible",
        "/v1/chat/completions",
        "whole, usage",
        "upstream stops",
        "APICallError, RetryError; asks 3 times",
        "StreamProviderError, APICallError",
        "APICallError",
        "InvalidResponseDataError",
        "exact",
        "exact",
    ),
    _row(
        "useChat of @ai-sdk/react",
        "/api/chat",
        "whole, usage",
        "upstream stops",
        "APICallError; asked once",
        "Error",
        "TypeError",
        "cannot tell: no finishReason",
        "exact",
        "exact",
    ),
    _row(
        "eventsource (npm)",
        "/stream",
        "whole; 204 ends it",
        "upstream stops",
        "closed, with the status; asked once",
        "error event, asks again",
        "asks again",
        "asks again",
        "exact",
        "exact",
    ),
    _row(
        "@microsoft/fetch-event-source",
        "/chat",
        "whole",
        "upstream stops",
        "Fatal; asked once",
        "error event, TypeError",
        "TypeError",
        "cannot tell: no [DONE]",
        "exact; heartbeats are empty messages",
        "exact",
    ),
    _row("rawstream's client.js", "/chat", "whole", "upstream stops", "StreamError; asked once", *_OURS[2:]),
    _row(
        "Chromium's EventSource",
        "/stream",
        "whole; 204 ends it",
        "upstream stops",
        "closed; asked once",
        "error event, asks again",
        "asks again",
        "asks again",
        "exact",
        "exact",
    ),
    _row(
        "Chromium's fetch",
        "/chat",
        "whole",
        "upstream stops",
        "status 404, status 503; asked once",
        "error event, TypeError",
        "TypeError",
        "cannot tell: no [DONE]",
        "exact",
        "exact",
    ),
    _row(
        "Chromium's fetch, plain text",
        "/text",
        "whole",
        "upstream stops",
        "status 404, status 503; asked once",
        "TypeError",
        "TypeError",
        "cannot tell: plain text has no end",
        "exact (plain text has no heartbeats)",
        "exact",
    ),
)

ROWS: Final[Mapping[str, Row]] = {row.client: row for row in _ALL}


def cells(clients: Iterable[str], *behaviours: str) -> list[Any]:
    """Parameters ``(client, behaviour)`` for ``pytest.mark.parametrize``, each marked as the test of that cell."""
    return [
        pytest.param(client, behaviour, marks=pytest.mark.cell(client, behaviour), id=f"{client}: {behaviour}")
        for client in clients
        for behaviour in behaviours
    ]


def table(told: Iterable[Told] | None = None) -> str:
    """The matrix as Markdown: what was told, or (None) the rows as they are declared, without versions."""
    verdicts: dict[tuple[str, str], str] = {}
    versions: dict[str, str] = {}
    if told is None:
        verdicts = {(row.client, column): row.cells[column] for row in _ALL for column in COLUMNS}
    else:
        for cell in told:
            verdicts[cell.client, cell.behaviour] = cell.verdict
            versions[cell.client] = cell.version
    lines = [["client", "version", "endpoint", *COLUMNS], ["---"] * (3 + len(COLUMNS))]
    lines += [
        [row.client, versions.get(row.client, ""), f"`{row.endpoint}`"]
        + [verdicts.get((row.client, column), "not run") for column in COLUMNS]
        for row in _ALL
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace("| --- ", "|---").replace("---|\n", "---|\n")
