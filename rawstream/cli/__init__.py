"""The command line, ``rawstream COMMAND``: each command is one module of this room, named like it.

Rule 1: what a user can get wrong is one line on stderr and exit code 2 (how it was asked) or 1 (what came of it);
        never a traceback.
Rule 2: what is not there yet is not listed.
Rule 3: a command is imported when it is asked for: a server starts without what the doctor needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import Final, cast

import click

import rawstream

COMMANDS: Final = ("chaos", "chat", "check", "doctor", "key", "lab", "serve")


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return cast(click.Command, getattr(import_module(f"rawstream.cli.{cmd_name}"), cmd_name))


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="'rawstream COMMAND --help' explains a command.",
)
@click.version_option(rawstream.__version__, message="rawstream %(version)s")
def rawstream_command() -> None:
    """Streams LLM tokens over HTTP, and never takes a token from its source that nobody has room for."""


def main() -> None:
    """The entry point of the ``rawstream`` program."""
    rawstream_command(prog_name="rawstream")
