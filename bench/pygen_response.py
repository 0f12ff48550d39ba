"""What comes back from a server, judged in Python: the twin of ``gen/response.h`` and ``gen/histogram.h``. Sans I/O."""

from __future__ import annotations

import json
from collections.abc import Iterator

DONE = b"[DONE]"


class Histogram:
    """Microseconds; kept whole, sorted when asked."""

    def __init__(self) -> None:
        self.values: list[int] = []

    def summary(self) -> dict[str, float]:
        ordered = sorted(self.values)
        if not ordered:
            return {"count": 0}
        quantiles = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
        found: dict[str, float] = {
            name: ordered[min(len(ordered) - 1, int(q * len(ordered)))] for name, q in quantiles.items()
        }
        return {"count": len(ordered), "mean": round(sum(ordered) / len(ordered), 2), **found, "max": ordered[-1]}


class Response:
    """One answer: head, un-chunking, events, and whether each token is the expected one."""

    def __init__(self, expected: list[str], dialect: str, limit: int) -> None:
        self.expected, self.dialect, self.limit = expected, dialect, limit
        self.status = 0
        self.tokens = 0
        self.close = self.done = self.ended = False
        self.wrong = ""
        self.held = b""
        self.until_close = False
        self._body = b""
        self._text = ""
        self._steps = self._parse()
        next(self._steps)

    def feed(self, data: bytes) -> None:
        self.held += data
        if not self.ended:
            try:
                next(self._steps)
            except StopIteration:
                self.ended = True

    def _parse(self) -> Iterator[None]:
        """A generator that takes what it can of ``held`` each time it is stepped."""
        yield
        while b"\r\n\r\n" not in self.held:
            yield
        head, _, self.held = self.held.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        self.status = int(lines[0][9:12])
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        self.close = head[7:8] == b"0" or fields.get("connection", "").lower() == "close"
        if fields.get("transfer-encoding", "").lower() == "chunked":
            while True:
                while b"\r\n" not in self.held:
                    yield
                size, _, self.held = self.held.partition(b"\r\n")
                left = int(size.split(b";")[0], 16)
                if not left:
                    break
                while left:
                    while not self.held:
                        yield
                    piece, self.held = self.held[:left], self.held[left:]
                    left -= len(piece)
                    self._take(piece)
                while len(self.held) < 2:
                    yield
                self.held = self.held[2:]
            while b"\r\n" not in self.held:
                yield
            self.held = self.held.partition(b"\r\n")[2]
        elif "content-length" in fields:
            left = int(fields["content-length"])
            while left:
                while not self.held:
                    yield
                piece, self.held = self.held[:left], self.held[left:]
                left -= len(piece)
                self._take(piece)
        else:
            self.until_close = self.close = True
            while True:
                self._take(self.held)
                self.held = b""
                yield

    def _take(self, data: bytes) -> None:
        if self.wrong:
            return
        if self.dialect == "plain":
            self._text += data.decode(errors="replace")
            while self._text and not self.wrong:
                token = self.expected[self.tokens % len(self.expected)]
                if self._text.startswith(token):
                    self._text = self._text[len(token) :]
                    self.tokens += 1
                elif token.startswith(self._text):
                    return
                else:
                    self.wrong = f"token {self.tokens}: is not the expected text, but '{self._text[:60]}'"
            return
        self._body += data
        self._body = self._body.replace(b"\r\n", b"\n")
        while b"\n\n" in self._body and not self.wrong:
            event, _, self._body = self._body.partition(b"\n\n")
            self._event(event)

    def _event(self, event: bytes) -> None:
        lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
        if not lines:
            return
        data = b"\n".join(lines)
        if data == DONE:
            self.done = True
            return
        decoded = json.loads(data)
        if self.dialect == "openai":
            text = next((choice.get("delta", {}).get("content") for choice in decoded.get("choices", ())), None)
        else:
            text = decoded.get("token")
        if text is None or (self.dialect == "openai" and not text):
            if "error" in decoded or self.dialect != "openai":
                self.wrong = f"token {self.tokens}: an event that is no token: '{data[:60].decode(errors='replace')}'"
            return
        if self.done:
            self.wrong = f"token {self.tokens}: an event after [DONE]"
        elif self.limit and self.tokens >= self.limit:
            self.wrong = f"token {self.tokens}: more tokens than asked for"
        elif self.expected and text != self.expected[self.tokens % len(self.expected)]:
            self.wrong = f"token {self.tokens}: is not the expected one, but '{text[:60]}'"
        self.tokens += 1
