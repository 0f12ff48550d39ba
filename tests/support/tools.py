"""Outside programs that some tests need. Where one is missing the test says so loudly, or fails when it must not."""

from __future__ import annotations

import importlib
import os
import shutil
from types import ModuleType
from typing import NoReturn

import pytest

REQUIRED = "RAWSTREAM_REQUIRE_TOOLS"
"""Set to 1 (as continuous integration does) a missing tool is a failure and not a skip."""


def missing(what: str) -> NoReturn:
    """Skip this test because ``what`` is not there; fail it when tools are required."""
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(f"{what} is missing, and {REQUIRED}=1 requires it")
    pytest.skip(
        f"{what} is missing here: THIS IS NOT TESTED ({REQUIRED}=1 makes it a failure)", allow_module_level=True
    )


def require_tool(name: str) -> str:
    """The path of a program."""
    path = shutil.which(name)
    if path is None:
        missing(f"the program {name}")
    return path


def require_module(name: str) -> ModuleType:
    """An importable Python package."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        missing(f"the Python package {name}")
