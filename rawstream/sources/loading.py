"""Finding a user's source by its name, ``package.module:function``."""

from __future__ import annotations

import importlib
import os
import sys
import traceback

from rawstream.errors import MisuseError, SettingsError
from rawstream.model import Source
from rawstream.sources.iterables import as_source


def load_source(name: str) -> Source:
    """The source that ``module:function`` names. Modules in the current directory are found too.

    Raises ``SettingsError``, which says what is missing; why a module fails is in ``detail``.
    """
    module_name, separator, path = name.partition(":")
    if not (separator and module_name and path):
        raise SettingsError(f"source must be given as module:function, not {name!r}")
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        found: object = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            raise SettingsError(f"source {name!r}: there is no module {error.name!r}") from None
        raise SettingsError(f"source {name!r}: importing it failed: {error}") from error
    except Exception as error:
        raise SettingsError(
            f"source {name!r}: importing it failed: {type(error).__name__}: {error}",
            detail=traceback.format_exc(),
        ) from error
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise SettingsError(f"source {name!r}: module {module_name!r} has no {path!r}") from None
    try:
        return as_source(found, path)
    except MisuseError as error:
        raise SettingsError(f"source {name!r}: {error}") from None
