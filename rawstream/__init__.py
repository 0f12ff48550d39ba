"""rawstream streams LLM tokens over HTTP, and never takes a token from its source that nobody has room for."""

from rawstream.api import Server
from rawstream.model import Request, Token
from rawstream.settings import Settings

__version__ = "0.1.0"

__all__ = ["Request", "Server", "Settings", "Token", "__version__"]
