"""Where tokens come from: the mock, one's own functions and iterables, an OpenAI-compatible upstream."""

from rawstream.sources.iterables import as_source
from rawstream.sources.loading import load_source

__all__ = ["as_source", "load_source"]
