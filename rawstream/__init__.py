"""rawstream streams LLM tokens over HTTP, and never takes a token from its source that nobody has room for."""

from rawstream.answers import StreamError, StreamEvent, StreamRefused
from rawstream.api import Server
from rawstream.client import EventStream, stream
from rawstream.errors import RawstreamError
from rawstream.model import DataPart, Request, Token
from rawstream.settings import Settings

__version__ = "0.1.0"

__all__ = [
    "DataPart",
    "EventStream",
    "RawstreamError",
    "Request",
    "Server",
    "Settings",
    "StreamError",
    "StreamEvent",
    "StreamRefused",
    "Token",
    "__version__",
    "stream",
]
