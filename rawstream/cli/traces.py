"""Whether traces are wanted, and where they go: the setting ``otel`` and the standard ``OTEL_…`` variables.

Rule 1: OpenTelemetry is imported where it is wanted, and nowhere else.
Rule 2: what was asked for by name (``--otel``) and cannot be had is an error. What variables alone ask for, which
        may be meant for others on this machine, is a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from rawstream.errors import SettingsError
from rawstream.settings import Settings

if TYPE_CHECKING:
    from rawstream.tracing import OpenTelemetry

log = logging.getLogger("rawstream")

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def wanted(settings: Settings, environ: Mapping[str, str]) -> bool:
    """Are traces to be sent? ``otel`` decides; where it is not said, a collector's address does."""
    if settings.otel is not None:
        return settings.otel
    off = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    exporters = [name.strip() for name in environ.get("OTEL_TRACES_EXPORTER", "otlp").split(",")]
    return not off and "otlp" in exporters and any(environ.get(name) for name in _ENDPOINTS)


def open_traces(settings: Settings, environ: Mapping[str, str]) -> OpenTelemetry | None:
    """Where traces go; None: nowhere. Raises SettingsError."""
    if not wanted(settings, environ):
        return None
    try:
        from rawstream import tracing
    except ImportError as error:
        message = f"traces need OpenTelemetry, and {error.name} is missing (pip install 'rawstream[otel]')"
        if settings.otel:
            raise SettingsError(f"otel: {message}") from None
        log.warning("%s; none are sent, whatever the OTEL_ variables say", message)
        return None
    return tracing.from_environment(settings.host, settings.port)
