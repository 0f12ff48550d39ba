"""Sources made of what users have: async generators, coroutine functions, plain iterables, files, cursors.

Rule 1: what is asynchronous runs on the event loop; what is not runs in a thread of its own
        (``stepping.py``), from the call of the function to the ``close()`` of what it returned.
Rule 2: one demand takes one item, and nothing is taken ahead.
Rule 3: whatever the user's code raises becomes ``SourceFailed``: the type's name for the client, the
        traceback for the log.
Rule 4: what is not text is refused by name, and not turned into text by guessing.
"""

from __future__ import annotations

import codecs
import inspect
import traceback
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from functools import partial
from typing import Any, Final

from rawstream.errors import MisuseError, RawstreamError, SourceFailed
from rawstream.model import Request, Source, SourceItem, Token
from rawstream.sources.stepping import Stepper

_END: Final = object()


def as_source(obj: object, name: str | None = None) -> Source:
    """A source made of ``obj``: a function of the request or of nothing; or a source, returned as it is.

    The function may be an async generator function, or return (if it is ``async``: resolve to) an async iterable
    or a plain iterable. Items are strings, tokens, lists of these, UTF-8 bytes, or rows of one column.
    A function that is not ``async`` is called in the thread that steps through what it returns.
    Raises ``MisuseError`` when ``obj`` cannot be a source.
    """
    if isinstance(obj, Source) and not inspect.isclass(obj):
        return obj
    if not callable(obj):
        raise MisuseError(f"a source must be a function that returns an iterable, not {type(obj).__name__}")
    return FunctionSource(obj, name or getattr(obj, "__name__", None) or type(obj).__name__)


class FunctionSource:
    """A source that calls a function for each generation."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.name = name
        self._function = function
        self._takes_request = _takes_request(function, name)

    def tokens(self, request: Request) -> AsyncGenerator[SourceItem, None]:
        """A new generation. Nothing of the user's runs before the first demand."""
        if inspect.isasyncgenfunction(self._function):
            return _relay(self._call(request))
        return self._run(request)

    async def aclose(self) -> None:
        """Nothing is shared between generations."""

    def _call(self, request: Request) -> Any:
        return self._function(request) if self._takes_request else self._function()

    async def _run(self, request: Request) -> AsyncGenerator[SourceItem, None]:
        """Call a function that is no async generator function, and go through what it returned."""
        stepper: Stepper | None = None
        with _blaming():
            try:
                if inspect.iscoroutinefunction(self._function):
                    result = await self._call(request)
                else:
                    stepper = Stepper(self.name)
                    result = await stepper.call(partial(_opened, partial(self._call, request), stepper))
                    if not isinstance(result, Iterator):
                        await stepper.aclose()
                        stepper = None
                    if inspect.isawaitable(result):
                        result = await result
                if isinstance(result, str | bytes | Token):
                    items = _relay(_once(result))
                elif isinstance(result, AsyncIterable):
                    items = _relay(result)
                else:
                    if stepper is None:
                        stepper = Stepper(self.name)
                        result = await stepper.call(partial(_opened, partial(_same, result), stepper))
                    items = _step(result, stepper)
                async with aclosing(items):
                    async for item in items:
                        yield item
            finally:
                if stepper is not None:
                    await stepper.aclose()


@contextmanager
def _blaming() -> Iterator[None]:
    """Turn what the user's code raises into ``SourceFailed``; errors of ours and cancellation pass."""
    try:
        yield
    except RawstreamError:
        raise
    except Exception as error:
        told = "".join(traceback.format_exception(error))
        raise SourceFailed(f"the source failed: {type(error).__name__}", detail=told) from error


def _takes_request(function: Callable[..., Any], name: str) -> bool:
    """Whether to call it with the request. Raises ``MisuseError`` when it can be called in neither way."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        # Some built-in callables cannot say what they take.
        return True
    for arguments in ((None,), ()):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return bool(arguments)
    raise MisuseError(f"the source {name} must take one argument, the request, or none; it takes {signature}")


def _opened(call: Callable[[], Any], stepper: Stepper) -> Any:
    """In the thread: what ``call`` returns; of a plain iterable the iterator, to be closed in the thread."""
    result = call()
    if isinstance(result, str | bytes | Token | AsyncIterable) or inspect.isawaitable(result):
        return result
    if not isinstance(result, Iterable):
        raise _refused(result, "returned", "an iterable")
    iterator = iter(result)
    close = getattr(iterator, "close", None)
    if callable(close):
        stepper.on_close(close)
    return iterator


def _same(result: Any) -> Any:
    return result


async def _once(item: Any) -> AsyncGenerator[Any, None]:
    yield item


async def _relay(source: AsyncIterable[Any]) -> AsyncGenerator[SourceItem, None]:
    """The items of an async iterable, which is closed with this generator."""
    with _blaming():
        text = Text()
        iterator = aiter(source)
        try:
            async for item in iterator:
                if type(item) is str:
                    yield item
                elif (converted := text.item(item)) is not None:
                    yield converted
            if rest := text.end():
                yield rest
        finally:
            close = getattr(iterator, "aclose", None)
            if close is not None:
                await close()


async def _step(iterator: Iterator[Any], stepper: Stepper) -> AsyncGenerator[SourceItem, None]:
    """The items of a plain iterator, each taken in the stepper's thread when it is asked for."""
    text = Text()
    take = partial(next, iterator, _END)
    while (item := await stepper.call(take)) is not _END:
        if (converted := text.item(_column(item))) is not None:
            yield converted
    if rest := text.end():
        yield rest


class Text:
    """Makes text of what users yield. Keeps the unfinished character of bytes that were cut within one."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def item(self, item: Any) -> SourceItem | None:
        """What a source may yield, made of ``item``; None: nothing yet. Raises ``SourceFailed``."""
        if isinstance(item, str | Token):
            return item
        if isinstance(item, bytes | bytearray | memoryview):
            return self._decoder.decode(bytes(item)) or None
        if isinstance(item, Sequence):
            ready: list[str | Token] = []
            for one in item:
                if isinstance(one, str | Token):
                    ready.append(one)
                elif isinstance(one, bytes):
                    ready.append(self._decoder.decode(one))
                else:
                    raise _refused(one, "yielded", "str, bytes, Token or a sequence of them")
            return ready or None
        raise _refused(item, "yielded", "str, bytes, Token or a sequence of them")

    def end(self) -> str:
        """The rest: U+FFFD where the bytes ended within a character, else ''."""
        return self._decoder.decode(b"", final=True)


def _column(item: Any) -> Any:
    """A database row's only column; anything that is not a row as it is. Raises ``SourceFailed`` for wider rows."""
    named = hasattr(item, "keys") and not isinstance(item, Mapping)  # sqlite3.Row and its like
    if not isinstance(item, tuple) and not named:
        return item
    if len(item) != 1:
        raise SourceFailed(f"the source yielded a row of {len(item)} columns: select the one that holds the text")
    return item[0]


def _refused(value: Any, did: str, wanted: str) -> SourceFailed:
    return SourceFailed(f"the source {did} {type(value).__name__}; it must be {wanted}")
