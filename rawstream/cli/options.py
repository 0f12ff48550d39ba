"""The options of ``rawstream serve``, made of the table of settings, and the page that explains them.

Rule 1: no setting is named here. A new field in ``settings.Settings`` is a new option, with its help.
Rule 2: click hands the values on as text; ``config.parse`` alone knows how they are read.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import click

from rawstream import config
from rawstream.settings import FIELDS

_PLACEHOLDERS: Final = {
    "bytes": "BYTES",
    "seconds": "SECONDS",
    "count": "N",
    "tokens": "N",
    "ratio": "NUMBER",
    "url": "URL",
    "path": "PATH",
    "text": "TEXT",
}
_INDENT: Final = 6
_INTRODUCTION: Final = """\
Start the server. With no options it listens on http://127.0.0.1:8000
and streams readable text from a built-in mock.

Examples:
  rawstream serve
      then: curl -N --json '{"prompt":"hello"}' http://127.0.0.1:8000/chat
  rawstream serve --upstream http://127.0.0.1:9301/v1
      in front of an OpenAI-compatible server (llama.cpp, vLLM, Ollama, OpenAI)
  rawstream serve --source mymodule:tokens
      from your own async generator of strings

Each option is also an environment variable (RAWSTREAM_STALL_TIMEOUT) and a key
of the TOML file given with --config (stall_timeout = "30s"). A flag wins over a
variable, a variable over the file.
BYTES are written 4096, 64KiB, 1MiB or 16k; SECONDS 30, 1.5, 30s, 500ms or 5m.
"""


def size_text(size: int) -> str:
    """``4096`` → ``4KiB``, in a form that ``config.parse_bytes`` reads back."""
    for factor, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= factor and size % factor == 0:
            return f"{size // factor}{name}"
    return str(size)


def seconds_text(seconds: float) -> str:
    """``0.0001`` → ``0.1ms``, in a form that ``config.parse_seconds`` reads back."""
    return f"{seconds * 1000:g}ms" if 0 < seconds < 0.1 else f"{seconds:g}s"


def default_text(field: dataclasses.Field[Any]) -> str | None:
    """The default as a user would write it; None where there is none."""
    default: Any = field.default
    if default is None:
        return None
    if field.metadata["unit"] == "bytes":
        return size_text(default)
    if field.metadata["unit"] == "seconds":
        return seconds_text(default)
    return str(default)


class ServeCommand(click.Command):
    """A command whose help page lists the settings group by group, each with its default."""

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(f"Usage: {ctx.command_path} [OPTIONS]\n\n{_INTRODUCTION}")
        groups: dict[str, list[tuple[str, str]]] = {}
        for name, field in FIELDS.items():
            groups.setdefault(field.metadata["group"], []).append(_entry(name, field))
        groups["Other"] = [
            ("--config FILE", "Read settings from this TOML file (also RAWSTREAM_CONFIG)."),
            ("-h, --help", "Show this page."),
        ]
        width = formatter.width - _INDENT
        for group, entries in groups.items():
            formatter.write(f"\n{group}:\n")
            for heading, text in entries:
                formatter.write(f"  {heading}\n")
                wrapped = click.wrap_text(text, width, " " * _INDENT, " " * _INDENT)
                formatter.write(wrapped + "\n")


def _entry(name: str, field: dataclasses.Field[Any]) -> tuple[str, str]:
    unit = field.metadata["unit"]
    text: str = field.metadata["help"]
    if unit == "flag":
        return f"{config.flag(name)} / {config.flag('no_' + name)}", text
    default = default_text(field)
    if default is not None:
        text += f" [default: {default}]"
    return f"{config.flag(name)} {_PLACEHOLDERS[unit]}", text


def setting_options() -> list[click.Parameter]:
    """One click option for each setting; its value is text, or None where it was not given."""
    options: list[click.Parameter] = []
    for name, field in FIELDS.items():
        metadata = field.metadata
        declaration = config.flag(name)
        if metadata["unit"] == "flag":
            declaration += "/" + config.flag("no_" + name)
            options.append(click.Option([declaration, name], default=None, help=metadata["help"]))
        else:
            options.append(click.Option([declaration, name], type=click.STRING, help=metadata["help"]))
    return options
