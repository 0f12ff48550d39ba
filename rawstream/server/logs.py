"""Log lines: one per stream, as text or as JSON.

Rule 1: a stream's end is one line, with its outcome and its figures; nothing a client sent is in it.
Rule 2: in JSON every line is one object on one line.
"""

from __future__ import annotations

import datetime
import logging
import sys
from typing import IO, Any

import msgspec

from rawstream.model import Outcome, StreamRecord

log = logging.getLogger("rawstream.streams")

_WARN = frozenset({Outcome.SOURCE_FAILED, Outcome.UPSTREAM_FAILED, Outcome.UPSTREAM_IDLE})


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value


class TextFormatter(logging.Formatter):
    """``2026-01-31 12:00:00.123 INFO stream ended outcome=completed tokens=200 …``"""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created).isoformat(" ", "milliseconds")
        line = f"{moment} {record.levelname} {record.getMessage()}"
        fields = getattr(record, "fields", None)
        if fields:
            line += "".join(f" {name}={_text(value)}" for name, value in fields.items() if value is not None)
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _text(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return msgspec.json.encode(text).decode() if any(mark in text for mark in ' "=\n\r\t') else text


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        line.update({name: _rounded(value) for name, value in getattr(record, "fields", {}).items()})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


def set_up(log_format: str, level: str, stream: IO[str] | None = None) -> None:
    """Send rawstream's log to ``stream`` (stderr) in ``text`` or ``json``. Replaces what was set up before."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger("rawstream")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(level.upper())


class StreamLog:
    """The observer that writes the line."""

    def stream_started(self, stream_id: str, path: str, dialect: str) -> None:
        if log.isEnabledFor(logging.DEBUG):
            log.debug("stream started", extra={"fields": {"stream": stream_id, "path": path, "dialect": dialect}})

    def stream_ended(self, record: StreamRecord) -> None:
        level = logging.WARNING if record.outcome in _WARN else logging.INFO
        if log.isEnabledFor(level):
            log.log(level, "stream ended", extra={"fields": fields_of(record)})


def fields_of(record: StreamRecord) -> dict[str, Any]:
    """The figures of a stream, by name. Seconds, bytes, tokens, tokens per second."""
    return {
        "stream": record.id,
        "request_id": record.request_id,
        "path": record.path,
        "dialect": record.dialect,
        "outcome": record.outcome.value,
        "ended_by": record.ended_by,
        "status": record.status,
        "tokens": record.tokens,
        "delivered": record.delivered,
        "bytes": record.bytes,
        "writes": record.writes,
        "seconds": record.seconds,
        "tokens_per_second": record.tokens / record.seconds if record.seconds > 0 else None,
        "first_token_seconds": record.first_token_seconds,
        "seconds_source": record.seconds_source,
        "seconds_client": record.seconds_client,
        "seconds_network": record.seconds_network,
        "user": record.user,
        "detail": record.detail,
    }
