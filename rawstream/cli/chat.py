"""``rawstream chat``: an answer, streamed into the terminal."""

from __future__ import annotations

import click


@click.command()
def chat() -> None:
    """Stream an answer into the terminal."""
