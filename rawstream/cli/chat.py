"""``rawstream chat``: an answer, streamed into the terminal.

Rule 1: a token is shown when it arrives, and no token is read that the terminal has no room for.
Rule 2: Ctrl-C closes the connection at once; the server stops generating. What is shown stays.
Rule 3: what a model says cannot drive the terminal: control characters are left out when one is written to.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
from typing import Any, Final
from urllib.parse import urlsplit

import click

from rawstream.client import stream
from rawstream.errors import MisuseError, RawstreamError
from rawstream.sources.http_client import split_url

_STOPPED: Final = 130
"""The exit code after Ctrl-C: 128 + SIGINT, as shells have it."""
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_OWN: Final = ("/chat", "/text", "/stream")
_VERSION: Final = re.compile(r".*/v[0-9]+[a-z0-9]*")


def endpoint(url: str) -> str:
    """Where to ask: ``http://host`` and ``http://host/v1`` mean OpenAI's wire there; a whole URL means itself.

    Raises MisuseError.
    """
    split = split_url(url if "://" in url else f"http://{url}")
    path = split.path.rstrip("/")
    if not path.endswith(("/chat/completions", *_OWN)):
        path += "/chat/completions" if _VERSION.fullmatch(path) else "/v1/chat/completions"
    return split._replace(path=path).geturl()


@click.command(short_help="Stream an answer into the terminal.")
@click.argument("words", nargs=-1, metavar="[PROMPT]...")
@click.option(
    "--url",
    default="http://127.0.0.1:8000/v1",
    show_default=True,
    metavar="URL",
    help="Any OpenAI-compatible server, with or without /v1; or a rawstream server's /chat.",
)
@click.option("--model", metavar="NAME", help="The model to ask for.")
@click.option("--system", metavar="TEXT", help="A system message that goes first.")
@click.option("--max-tokens", type=click.IntRange(1), metavar="N", help="Longest answer, in tokens.")
@click.option(
    "--api-key", metavar="KEY", help="Sent as 'Authorization: Bearer …'; also RAWSTREAM_API_KEY, OPENAI_API_KEY."
)
@click.option("--raw", is_flag=True, help="Print each event's data as it came, one a line, instead of the text.")
def chat(
    words: tuple[str, ...],
    url: str,
    model: str | None,
    system: str | None,
    max_tokens: int | None,
    api_key: str | None,
    raw: bool,
) -> None:
    """Stream an answer into the terminal. Ctrl-C stops the generation.

    \b
    Examples:
      rawstream chat "Why is the sky blue?"
      rawstream chat --url https://api.example.com/v1 --model some-model "Hello"
      git diff | rawstream chat --system "Review this." -
      rawstream chat                     a conversation, line by line

    PROMPT is read from stdin when it is '-', or missing while stdin is not a terminal.
    """
    key = api_key or os.environ.get("RAWSTREAM_API_KEY") or os.environ.get("OPENAI_API_KEY")
    try:
        where = endpoint(url)
    except MisuseError as error:
        raise click.UsageError(f"--url: {error}") from None
    talk = Conversation(where, system, raw=raw, model=model, max_tokens=max_tokens, api_key=key)
    if not words and sys.stdin.isatty():
        sys.exit(_converse(talk))
    if not words or words == ("-",):
        prompt = sys.stdin.buffer.read().decode("utf-8", "replace").strip()
    else:
        prompt = " ".join(words)
    if not prompt:
        raise click.UsageError("there is no prompt: name one, or pipe one in")
    sys.exit(_ask(talk, prompt))


class Conversation:
    """The messages so far, and where they are sent."""

    def __init__(self, url: str, system: str | None, *, raw: bool, **request: Any) -> None:
        self.url = url
        self.messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
        self._raw = raw
        self._request = request
        self._plain = not sys.stdout.isatty()
        self._at_line_start = True

    async def ask(self, prompt: str) -> None:
        """Stream the answer to stdout. Raises RawstreamError. Cancel-safe: what was shown stays in the conversation."""
        # Arguments that are not UTF-8 come as lone surrogates, which JSON cannot hold.
        prompt = prompt.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        self.messages.append({"role": "user", "content": prompt})
        answer: list[str] = []
        try:
            async with stream(self.url, **self._question(prompt), **self._request) as events:
                async for event in events:
                    answer.append(event.text)
                    self._show(event.raw.decode("utf-8", "replace") + "\n" if self._raw else event.text)
        finally:
            if answer:
                self.messages.append({"role": "assistant", "content": "".join(answer)})
            else:
                self.messages.pop()
            if not self._at_line_start:
                with contextlib.suppress(OSError):
                    self._show("\n")

    def _question(self, prompt: str) -> dict[str, Any]:
        # An EventSource URL takes one prompt; everything else takes the conversation.
        return {"prompt": prompt} if urlsplit(self.url).path.endswith("/stream") else {"messages": self.messages}

    def _show(self, text: str) -> None:
        if not self._plain:
            text = _CONTROL.sub("", text)
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()
            self._at_line_start = text.endswith("\n")


def _ask(talk: Conversation, prompt: str) -> int:
    """Ask once; the exit code."""
    try:
        with asyncio.Runner() as runner:
            runner.run(talk.ask(prompt))
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
        return _STOPPED
    except RawstreamError as error:
        click.echo(f"rawstream: {_explained(error, talk.url)}", err=True)
        return 1
    return 0


def _converse(talk: Conversation) -> int:
    """Prompt after prompt until the input ends; the exit code."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # input() then edits lines and keeps a history
    click.echo("Ctrl-C stops an answer, Ctrl-D ends the conversation.", err=True)
    while True:
        try:
            prompt = input("> ").strip()
        except EOFError:
            click.echo(err=True)
            return 0
        except KeyboardInterrupt:
            click.echo(err=True)
            continue
        if prompt:
            _ask(talk, prompt)


def _explained(error: RawstreamError, url: str) -> str:
    """One line: what went wrong, where, and when to try again."""
    if error.code == "unreachable":
        line = f"{error} ({url}); is a server running there? 'rawstream serve' starts one"
    else:
        line = f"{error} [{error.code}]"
    if error.retry_after is not None:
        line += f"; try again in {error.retry_after:g} s"
    return _CONTROL.sub(" ", line)
