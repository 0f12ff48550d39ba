"""Sources made of users' own functions: what may be one, where its code runs, how it ends."""

from __future__ import annotations

import asyncio
import functools
import sqlite3
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rawstream.errors import BudgetSpent, MisuseError, SettingsError, SourceFailed
from rawstream.model import Request, Source, SourceItem, Token
from rawstream.sources import as_source, load_source
from rawstream.sources.mock import MockSource

REQUEST = Request(messages=[{"role": "user", "content": "hi"}])


async def collect(obj: object) -> list[SourceItem]:
    async with asyncio.timeout(5):
        return [item async for item in as_source(obj).tokens(REQUEST)]


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("rawstream-source")}


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what a thread does, which no event of the loop's tells."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


# --- what may be a source


async def agen(request: Request) -> AsyncGenerator[str, None]:
    yield "a"
    yield request.prompt


async def agen_without_request() -> AsyncGenerator[str, None]:
    yield "a"
    yield "hi"


def returns_agen(request: Request) -> AsyncIterator[str]:
    return agen(request)


async def resolves_to_agen(request: Request) -> AsyncIterator[str]:
    return agen(request)


def generator(request: Request) -> Iterator[str]:
    yield "a"
    yield request.prompt


def returns_list() -> list[str]:
    return ["a", "hi"]


async def resolves_to_list(request: Request) -> list[str]:
    return ["a", request.prompt]


class Callable_:
    def __call__(self, request: Request) -> Iterator[str]:
        return generator(request)


class AsyncCallable:
    async def __call__(self, request: Request) -> list[str]:
        return ["a", request.prompt]


@pytest.mark.parametrize(
    "obj",
    [
        agen,
        agen_without_request,
        returns_agen,
        resolves_to_agen,
        generator,
        returns_list,
        resolves_to_list,
        Callable_(),
        AsyncCallable(),
        functools.partial(generator, REQUEST),
        lambda request: iter(["a", request.prompt]),
        lambda: resolves_to_list(REQUEST),
    ],
    ids=lambda obj: getattr(obj, "__name__", type(obj).__name__),
)
async def test_functions_of_every_kind_give_the_same_tokens(obj: object, loop_kind: str) -> None:
    assert await collect(obj) == ["a", "hi"]
    await until(lambda: not threads())


async def test_a_string_is_one_token_and_not_its_characters() -> None:
    assert await collect(lambda: "hello") == ["hello"]


def test_a_source_is_passed_through() -> None:
    source = MockSource()
    assert as_source(source) is source


def test_a_source_has_the_name_of_its_function_or_the_one_given() -> None:
    assert as_source(generator).name == "generator"
    assert as_source(generator, "mine").name == "mine"
    assert isinstance(as_source(generator), Source)


@pytest.mark.parametrize("obj", [None, 3, ["a"], lambda one, two: [], lambda *, needed: []])
def test_what_cannot_be_a_source_is_refused_at_once(obj: object) -> None:
    with pytest.raises(MisuseError):
        as_source(obj)


# --- items


async def test_tokens_and_batches_pass_as_they_are() -> None:
    token = Token("x", index=1)

    async def tokens() -> AsyncGenerator[SourceItem, None]:
        yield token
        yield ["a", token]
        yield ("b", "c")

    assert await collect(tokens) == [token, ["a", token], ["b", "c"]]


async def test_bytes_are_utf8_and_a_character_may_be_cut_anywhere() -> None:
    raw = "naïve ☕".encode()
    items = await collect(lambda: [raw[at : at + 1] for at in range(len(raw))])
    assert "".join(str(item) for item in items) == "naïve ☕"
    assert await collect(lambda: [b"ok\xe2\x98"]) == ["ok", "�"]


async def test_a_file_is_a_source_line_by_line_and_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "answer.txt"
    path.write_text("one\ntwo\n")
    opened: list[Any] = []

    def lines() -> Any:
        opened.append(path.open())
        return opened[0]

    assert await collect(lines) == ["one\n", "two\n"]
    assert opened[0].closed


async def test_a_database_cursor_is_made_stepped_and_closed_in_one_thread(tmp_path: Path) -> None:
    path = tmp_path / "words.db"
    with closing(sqlite3.connect(path)) as made:
        made.execute("create table words (word text)")
        made.executemany("insert into words values (?)", [("one",), ("two",), ("three",)])
        made.commit()
    closed: list[bool] = []

    def rows(request: Request) -> Iterator[Any]:
        connection = sqlite3.connect(path)
        try:
            yield from connection.execute("select word from words order by rowid")
        finally:
            connection.close()
            closed.append(True)

    assert await collect(rows) == ["one", "two", "three"]
    assert closed == [True]

    connections: list[sqlite3.Connection] = []

    def cursor() -> sqlite3.Cursor:
        connection = sqlite3.connect(path, check_same_thread=False)
        connections.append(connection)
        connection.row_factory = sqlite3.Row
        return connection.execute("select word from words order by rowid")

    stream = as_source(cursor).tokens(REQUEST)
    assert await anext(stream.__aiter__()) == "one"
    await stream.aclose()
    connections[0].close()


@pytest.mark.parametrize(
    ("item", "told"),
    [(3, "int"), (None, "NoneType"), ({"a": 1}, "dict"), (("a", "b"), "2 columns"), ((1,), "int"), (["a", 2], "int")],
)
async def test_what_is_not_text_is_refused_by_name(item: object, told: str) -> None:
    with pytest.raises(SourceFailed, match=told):
        await collect(lambda: iter([item]))


async def test_a_function_that_returns_no_iterable_is_refused_by_name() -> None:
    with pytest.raises(SourceFailed, match="int"):
        await collect(lambda: 3)


# --- failures


@pytest.mark.parametrize("kind", ["agen", "generator", "coroutine", "function"])
async def test_a_source_that_raises_is_source_failed_with_the_traceback_for_the_log(kind: str) -> None:
    async def broken_agen() -> AsyncGenerator[str, None]:
        yield "a"
        raise KeyError("secret")

    def broken_generator() -> Iterator[str]:
        yield "a"
        raise KeyError("secret")

    async def broken_coroutine() -> list[str]:
        raise KeyError("secret")

    def broken_function() -> list[str]:
        raise KeyError("secret")

    broken = {
        "agen": broken_agen,
        "generator": broken_generator,
        "coroutine": broken_coroutine,
        "function": broken_function,
    }[kind]
    with pytest.raises(SourceFailed) as caught:
        await collect(broken)
    assert str(caught.value) == "the source failed: KeyError"
    assert caught.value.detail is not None
    assert "secret" in caught.value.detail
    assert f"broken_{kind}" in caught.value.detail


async def test_errors_of_rawstream_itself_pass_through_a_source() -> None:
    async def spent() -> AsyncGenerator[str, None]:
        yield "a"
        raise BudgetSpent("no more")

    with pytest.raises(BudgetSpent):
        await collect(spent)


async def test_a_source_that_raises_stop_iteration_fails_instead_of_hanging() -> None:
    def stops() -> list[str]:
        raise StopIteration

    with pytest.raises(SourceFailed):
        await collect(stops)


# --- demand, and ends


async def test_one_demand_takes_one_item_and_never_one_ahead(loop_kind: str) -> None:
    taken: list[int] = []

    def counted() -> Iterator[str]:
        for number in range(100):
            taken.append(number)
            yield str(number)

    stream = as_source(counted).tokens(REQUEST)
    assert not threads(), "the thread starts with the first demand"
    for demand in range(1, 6):
        await anext(stream.__aiter__())
        await asyncio.sleep(0.01)
        assert len(taken) == demand
    await stream.aclose()
    await until(lambda: not threads())


async def test_a_blocking_source_holds_up_nobody(loop_kind: str) -> None:
    release = threading.Event()

    def blocked() -> Iterator[str]:
        release.wait(10)
        yield "late"

    waiting = asyncio.ensure_future(collect(blocked))
    assert await collect(returns_list) == ["a", "hi"]
    assert not waiting.done()
    release.set()
    assert await waiting == ["late"]


async def test_a_stream_cancelled_while_its_thread_is_blocked_ends_at_once_and_closes_later(loop_kind: str) -> None:
    release, closed = threading.Event(), threading.Event()
    entered = threading.Event()

    class Blocking:
        def __iter__(self) -> Blocking:
            return self

        def __next__(self) -> str:
            entered.set()
            release.wait(10)
            return "late"

        def close(self) -> None:
            closed.set()

    stream = as_source(lambda: Blocking()).tokens(REQUEST)

    async def pull() -> None:
        async for _ in stream:
            pass

    pulling = asyncio.ensure_future(pull())
    await until(entered.is_set)
    loop = asyncio.get_running_loop()
    began = loop.time()
    pulling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pulling
    await stream.aclose()
    assert loop.time() - began < 0.5
    assert not closed.is_set()
    release.set()
    await until(closed.is_set)
    await until(lambda: not threads())


async def test_closing_a_stream_between_two_items_runs_the_generators_finally_in_its_thread() -> None:
    seen: list[int] = []

    def tokens() -> Iterator[str]:
        seen.append(threading.get_ident())
        try:
            yield "a"
            yield "b"
        finally:
            seen.append(threading.get_ident())

    stream = as_source(tokens).tokens(REQUEST)
    await anext(stream.__aiter__())
    await stream.aclose()
    assert len(seen) == 2
    assert seen[0] == seen[1] != threading.get_ident()


async def test_closing_an_async_generator_runs_its_finally_on_the_loop() -> None:
    closed = False

    async def tokens() -> AsyncGenerator[str, None]:
        nonlocal closed
        try:
            while True:
                yield "a"
        finally:
            await asyncio.sleep(0)
            closed = True

    stream = as_source(tokens).tokens(REQUEST)
    await anext(stream.__aiter__())
    await stream.aclose()
    assert closed


async def test_threads_are_daemons_so_that_one_that_never_returns_cannot_hold_up_the_end() -> None:
    release, daemons = threading.Event(), []

    def blocked() -> Iterator[str]:
        daemons.append(threading.current_thread().daemon)
        yield "a"
        release.wait(10)

    stream = as_source(blocked).tokens(REQUEST)
    await anext(stream.__aiter__())
    assert daemons == [True]
    await stream.aclose()


# --- finding one by name


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in __import__("sys").path if entry])
    return tmp_path


async def test_a_module_in_the_current_directory_is_found(module: Path) -> None:
    (module / "my_source_here.py").write_text("def tokens(request):\n    yield 'found'\n")
    source = load_source("my_source_here:tokens")
    assert source.name == "tokens"
    assert [item async for item in source.tokens(REQUEST)] == ["found"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("tokens", "module:function"),
        (":tokens", "module:function"),
        ("json:", "module:function"),
        ("no_such_module_anywhere:tokens", "no module 'no_such_module_anywhere'"),
        ("json.no_such_part:tokens", "no module 'json.no_such_part'"),
        ("json:no_such_function", "has no 'no_such_function'"),
        ("sys:maxsize", "not int"),
    ],
)
def test_a_name_that_leads_nowhere_says_what_is_missing(module: Path, name: str, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        load_source(name)


def test_a_module_that_fails_says_why(module: Path) -> None:
    (module / "broken_source_a.py").write_text("1 / 0\n")
    (module / "broken_source_b.py").write_text("import no_such_module_at_all\n")
    with pytest.raises(SettingsError, match="ZeroDivisionError") as caught:
        load_source("broken_source_a:tokens")
    assert caught.value.detail is not None
    assert "broken_source_a.py" in caught.value.detail
    with pytest.raises(SettingsError, match="no_such_module_at_all"):
        load_source("broken_source_b:tokens")
