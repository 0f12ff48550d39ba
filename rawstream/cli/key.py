"""``rawstream key``: API keys for users, and what the configuration holds of them.

Rule 1: a key is shown once, on stdout, and written down nowhere; what goes into the file is its hash.
Rule 2: a key is never an argument: the list of processes would show it.
"""

from __future__ import annotations

import sys

import click
import msgspec

from rawstream.limits.users import hashed, new_key
from rawstream.settings.tables import is_user_name


@click.group("key", short_help="Make API keys for users.")
def key() -> None:
    """Make API keys for users, and the hashes that the configuration holds of them."""


@key.command("new", short_help="Make a key, and print it once.")
@click.option("--user", metavar="NAME", help="Whose it will be: print the whole table for the file.")
@click.option("--json", "as_json", is_flag=True, help="Say it as one JSON object, on stdout.")
def new(user: str | None, as_json: bool) -> None:
    """Make a key: 256 random bits. It goes to stdout, once; the lines for the TOML file go to stderr.

    The file holds the key's SHA-256 alone: who reads the file cannot ask with it, and a lost key cannot be found
    again. Several keys of one user are valid side by side: add the new one, change the clients, take the old one out.
    """
    if user is not None and not is_user_name(user):
        click.echo("rawstream: --user: must be 1 to 128 letters, digits, '.', '_', '-', '@' or '+'", err=True)
        sys.exit(2)
    made, digest = new_key()
    if as_json:
        told = {"key": made, "hash": digest} | ({} if user is None else {"user": user})
        click.echo(msgspec.json.encode(told))
        return
    click.echo(made)
    click.echo("\n".join(["", "In the file that --config names:", "", *_lines(user, digest)]), err=True)


def _lines(user: str | None, digest: str) -> list[str]:
    keys = f'keys = ["{digest}"]'
    return [keys] if user is None else ["[[users]]", f'name = "{user}"', keys]


@key.command("hash", short_help="Read a key from stdin, and print its hash.")
def hash_() -> None:
    """Read a key from stdin, and print what the configuration holds of it: sha256:ID:HEX."""
    try:
        click.echo(hashed(sys.stdin.readline(4096).strip()))
    except (ValueError, UnicodeError):
        # Not a word of what was read: it may be a key with a slip in it.
        click.echo("rawstream: this is no key of rawstream's: 'rawstream key new' makes one", err=True)
        sys.exit(2)
