"""The command line, ``rawstream COMMAND``: each command is one module of this room, registered below.

Rule 1: what a user can get wrong is one line on stderr and exit code 2 (how it was asked) or 1 (what came of it);
        never a traceback.
Rule 2: what is not there yet is not listed.
"""

from __future__ import annotations

import click

import rawstream
from rawstream.cli.chaos import chaos
from rawstream.cli.chat import chat
from rawstream.cli.check import check
from rawstream.cli.doctor import doctor
from rawstream.cli.key import key
from rawstream.cli.lab import lab
from rawstream.cli.serve import serve


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="'rawstream COMMAND --help' explains a command.",
)
@click.version_option(rawstream.__version__, message="rawstream %(version)s")
def rawstream_command() -> None:
    """Streams LLM tokens over HTTP, and never takes a token from its source that nobody has room for."""


rawstream_command.add_command(serve)
rawstream_command.add_command(chat)
rawstream_command.add_command(lab)
rawstream_command.add_command(check)
rawstream_command.add_command(chaos)
rawstream_command.add_command(doctor)
rawstream_command.add_command(key)


def main() -> None:
    """The entry point of the ``rawstream`` program."""
    rawstream_command(prog_name="rawstream")
