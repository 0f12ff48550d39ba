"""The ``rawstream`` program from outside: how it starts, what it says, how it ends, and ``rawstream chat``."""

from __future__ import annotations

import errno
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from rawstream.cli.chat import endpoint
from tests.support import raw
from tests.support.program import ROOT, command
from tests.support.server import ServerProcess
from tests.support.waiting import eventually


def environ(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """An environment without settings of its own."""
    clean = {n: v for n, v in os.environ.items() if not n.startswith(("RAWSTREAM_", "OPENAI_"))}
    return {**clean, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **(extra or {})}


def rawstream(
    *arguments: str, env: Mapping[str, str] | None = None, stdin: str | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    return subprocess.run(
        [*command(), *arguments],
        env=environ(env),
        cwd=cwd,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=20,
    )


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """One server, with the mock source, for all tests that only ask it something."""
    with ServerProcess() as process:
        yield process


class Terminal:
    """What a program shows on a terminal, read piece by piece."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._shown = b""

    def until(self, marker: str | None, *, within: float = 20) -> str:
        """What it shows up to and with ``marker`` (None: until it is closed). AssertionError at the deadline."""
        deadline = time.monotonic() + within
        while marker is None or marker.encode() not in self._shown:
            ready, _, _ = select.select([self.descriptor], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no {marker!r} in {self._shown!r}"
            try:
                data = os.read(self.descriptor, 65536)
            except OSError:  # the other side is closed
                data = b""
            if not data:
                assert marker is None, f"no {marker!r} in {self._shown!r}"
                break
            self._shown += data
        end = len(self._shown) if marker is None else self._shown.index(marker.encode()) + len(marker.encode())
        shown, self._shown = self._shown[:end], self._shown[end:]
        return shown.decode("utf-8", "replace")


# --- what can be got wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "env", "says"),
    [
        (["--stall-timeuot", "3"], {}, "No such option '--stall-timeuot'."),
        (["--stall-timeout", "soon"], {}, "rawstream: stall_timeout: 'soon' (from --stall-timeout) is not a time"),
        ([], {"RAWSTREAM_PORT": "x"}, "rawstream: port: 'x' (from RAWSTREAM_PORT) is not a whole number"),
        (["--config", "none.toml"], {}, "rawstream: cannot read none.toml: No such file or directory"),
        (["--loop", "uvlop"], {}, "rawstream: loop must be one of auto, uvloop, asyncio, not 'uvlop'"),
        (["--source", "nowhere_at_all:x"], {}, "there is no module 'nowhere_at_all'"),
        (["--upstream", "ftp://x"], {}, "rawstream: upstream: the URL must begin with http:// or https://"),
        (["--source", "a:b", "--upstream", "http://x"], {}, "upstream and source exclude each other"),
        (["--workers", "0"], {}, "rawstream: workers must be more than 0, not 0"),
    ],
)
def test_a_wrong_setting_is_one_clear_line_and_exit_code_2(
    arguments: list[str], env: dict[str, str], says: str, tmp_path: Path
) -> None:
    """The setting, the value, where it came from; no traceback, and nothing on stdout."""
    done = rawstream("serve", *arguments, env=env, cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_flag_that_is_mistyped_is_suggested() -> None:
    """The nearest ones are named."""
    assert "--stall-timeout" in rawstream("serve", "--stall-timeuot", "3").stderr


def test_a_port_in_use_is_one_clear_line_and_exit_code_1() -> None:
    """The address is named, and nothing else is said."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = rawstream("serve", "--port", str(port))
    assert done.returncode == 1
    assert done.stderr == f"rawstream: cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_version_and_help_answer() -> None:
    """``--version`` is one line; ``python -m rawstream`` is the same program."""
    assert rawstream("--version").stdout.startswith("rawstream 0.")
    module = subprocess.run(
        [sys.executable, "-m", "rawstream", "--version"], env=environ(), capture_output=True, text=True, timeout=20
    )
    assert module.stdout == rawstream("--version").stdout


def test_a_source_that_fails_to_import_shows_its_own_traceback(tmp_path: Path) -> None:
    """The user's mistake is shown where it is; the last line is ours, and says which setting it was."""
    (tmp_path / "broken.py").write_text("raise ZeroDivisionError('here')\n")
    done = rawstream("serve", "--source", "broken:tokens", cwd=tmp_path)
    assert done.returncode == 2
    assert "broken.py" in done.stderr
    assert done.stderr.rstrip().splitlines()[-1].startswith("rawstream: source 'broken:tokens'")


# --- starting -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "auto"])
def test_it_says_where_it_listens_once_it_accepts(loop: str) -> None:
    """The first line, exactly; a connection made upon it is answered. Nothing else when not on a terminal."""
    with ServerProcess("--loop", loop) as process:
        assert process.lines[0] == f"rawstream listening on http://127.0.0.1:{process.port}"
        assert raw.ask(process.port, raw.get("/readyz")).status == 200
        assert len(process.lines) == 1


def test_settings_come_from_flag_variable_and_file(tmp_path: Path) -> None:
    """The whole way: a file names a source, a variable replaces it, and ``--log-format`` is a flag."""
    (tmp_path / "mine.py").write_text("async def tokens(request):\n    yield 'mine: '\n    yield request.prompt\n")
    config = tmp_path / "rawstream.toml"
    config.write_text('source = "not.there:x"\nmax_body = "1k"\n')
    env = {"RAWSTREAM_SOURCE": "mine:tokens", "RAWSTREAM_NOTHING": "1"}
    env["PYTHONPATH"] = f"{ROOT}{os.pathsep}{tmp_path}"
    with ServerProcess("--config", str(config), env=env) as process:
        reply = raw.ask(process.port, raw.post("/chat", {"prompt": "hi"}))
        assert reply.tokens == ["mine: ", "hi"]
        assert raw.ask(process.port, raw.post("/chat", {"prompt": "x" * 2000})).status == 413
        assert "RAWSTREAM_NOTHING" in str(process.logs()[0]["message"])


def test_a_raised_bound_is_told_once_at_the_start() -> None:
    """What a stalled client may now cost, in one warning before the first connection."""
    with ServerProcess("--write-high", "1MiB") as process:
        told = [line for line in process.logs() if "stalled client" in line["message"]]
        assert len(told) == 1
        assert told[0]["level"] == "warning"
        assert "1.0 MiB in the transport (write_high=1MiB)" in told[0]["message"]


def test_a_unix_socket_serves_and_is_removed_at_the_end(tmp_path: Path) -> None:
    """``--uds``: the line names it, it answers, and no file is left."""
    path = str(tmp_path / "s")
    with ServerProcess("--uds", path) as process:
        assert process.url == f"unix:{path}"
        assert raw.ask(path, raw.get("/healthz")).status == 200
    assert not os.path.exists(path)


def test_the_hint_is_for_people() -> None:
    """On a terminal a second line says what to try; ``--log-level warning`` leaves it out."""
    for level, lines in (("info", 2), ("warning", 1)):
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [*command(), "serve", "--port", "0", "--log-level", level],
            env=environ(),
            stderr=theirs,
            stdin=subprocess.DEVNULL,
        )
        os.close(theirs)
        try:
            terminal = Terminal(ours)
            terminal.until("listening on")
            process.send_signal(signal.SIGTERM)
            said = terminal.until(None)
        finally:
            process.kill()
            process.wait(5)
            os.close(ours)
        if lines == 2:
            assert 'try: curl -N --json \'{"prompt":"hello"}\' http://127.0.0.1:' in said
        else:
            assert "curl" not in said


# --- ending -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_streams_end_and_exits_with_0(number: signal.Signals) -> None:
    """The stream that runs gets its end; nobody new is let in meanwhile; the exit code is 0."""
    with ServerProcess() as process:
        with raw.Client(process.port) as client:
            client.send(raw.chat(tokens=20, tokens_per_second=20))
            client.head()
            client.until(b"data:")
            process.signal(number)
            process.wait_line(lambda line: number.name in line)
            eventually(lambda: refused(process.port), why="nobody new is let in")
            client.until(b"[DONE]")
        assert process.wait() == 0
        assert [line["outcome"] for line in process.logs() if "outcome" in line] == ["completed"]


def test_a_second_signal_ends_it_at_once() -> None:
    """An endless stream and a drain of an hour: the second signal does not wait, and the exit code is 0."""
    with ServerProcess("--drain-timeout", "1h") as process, raw.Client(process.port) as client:
        client.send(raw.chat(tokens=None, tokens_per_second=50))
        client.head()
        client.until(b"data:")
        process.signal(signal.SIGTERM)
        process.wait_line(lambda line: "SIGTERM" in line)
        client.until(b"data:")
        started = time.monotonic()
        process.signal(signal.SIGINT)
        assert process.wait() == 0
        assert time.monotonic() - started < 2
        with pytest.raises(EOFError):
            client.until(b"[DONE]")


def test_sighup_and_sigpipe_do_no_harm() -> None:
    """The first is told and ignored, the second is nothing."""
    with ServerProcess() as process:
        process.signal(signal.SIGPIPE)
        process.signal(signal.SIGHUP)
        process.wait_line(lambda line: "SIGHUP: ignored" in line)
        assert raw.ask(process.port, raw.get("/healthz")).status == 200


def test_a_closed_stderr_does_not_end_it(tmp_path: Path) -> None:
    """Whoever read the log has gone: it serves on, and its end is clean."""
    path = str(tmp_path / "s")
    process = subprocess.Popen([*command(), "serve", "--uds", path], env=environ(), stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        process.stderr.close()
        eventually(lambda: os.path.exists(path), within=20, why="it listens")
        eventually(lambda: answers(path), why="it answers")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait(5)


def refused(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


def answers(path: str) -> bool:
    try:
        return raw.ask(path, raw.get("/healthz")).status == 200
    except OSError:
        return False


# --- chat ---------------------------------------------------------------------------------------------------


def test_chat_streams_an_answer_from_an_openai_compatible_server(server: ServerProcess) -> None:
    """The same text whatever form the URL has; it ends with a line end, and nothing is on stderr."""
    said = set()
    for url in (server.url, f"{server.url}/v1", f"{server.url}/v1/chat/completions", f"{server.url}/chat"):
        done = rawstream("chat", "--url", url, "--max-tokens", "5", "good", "morning")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith("\n")
        said.add(done.stdout)
    assert len(said) == 1
    assert len(said.pop().split()) == 5


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_chat_takes_its_prompt_from_a_pipe(server: ServerProcess, arguments: list[str]) -> None:
    """``-``, or no prompt at all when stdin is not a terminal."""
    asked = rawstream("chat", "--url", server.url, "--max-tokens", "5", "good morning").stdout
    assert (
        rawstream("chat", "--url", server.url, "--max-tokens", "5", *arguments, stdin="good morning\n").stdout == asked
    )


def test_chat_without_a_prompt_says_so(server: ServerProcess) -> None:
    """Nothing named and nothing piped: exit code 2."""
    done = rawstream("chat", "--url", server.url)
    assert done.returncode == 2
    assert "there is no prompt" in done.stderr


def test_chat_shows_what_came_when_asked_to(server: ServerProcess) -> None:
    """``--raw``: each event's data, one a line."""
    done = rawstream("chat", "--url", f"{server.url}/chat", "--max-tokens", "2", "--raw", "hi")
    assert [line.startswith('{"token": "') for line in done.stdout.splitlines()] == [True, True]


def test_chat_sends_system_model_and_key() -> None:
    """What was asked for is in the request, and the key is found in the environment."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(10)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        process = subprocess.Popen(
            [*command(), "chat", "--url", url, "--model", "m1", "--system", "be kind", "hi"],
            env=environ({"OPENAI_API_KEY": "sk-1"}),
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        connection, _ = listening.accept()
        with connection:
            connection.settimeout(10)
            request = b""
            while not request.endswith(b"}"):
                request += connection.recv(65536)
            refusal = b'{"error": {"message": "no \\u001b[31mentry", "code": "invalid_api_key"}}'
            head = b"HTTP/1.1 401 X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(refusal)
            connection.sendall(head + refusal)
        _, said = process.communicate(timeout=10)
    assert request.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert b"authorization: Bearer sk-1\r\n" in request
    assert b'"model":"m1"' in request
    assert b'{"role":"system","content":"be kind"},{"role":"user","content":"hi"}' in request
    assert process.returncode == 1
    assert said == "rawstream: no  [31mentry [invalid_api_key]\n", "one line, and it cannot drive the terminal"


def test_chat_says_in_one_line_what_went_wrong(server: ServerProcess) -> None:
    """Nobody there, or nothing there: exit code 1."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    for asked, says in ((url, "could not be reached"), (f"{server.url}/no/chat", "not_found"), ("ftp://x", "http://")):
        done = rawstream("chat", "--url", asked, "hi")
        assert done.returncode == 1
        assert says in done.stderr
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""


def test_what_is_no_url_is_said_in_one_line() -> None:
    done = rawstream("chat", "--url", "http://[::1", "hi")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Error: --url: this is no URL" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_stops_the_generation(server: ServerProcess) -> None:
    """The connection closes at once, the source stops, what was shown stays; "stopped", exit code 130."""
    before = server.debug()["totals"]["outcomes"].get("client_left", 0)
    process = subprocess.Popen(
        [*command(), "chat", "--url", f"{server.url}/chat", "hi"],
        env=environ(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    shown = os.read(process.stdout.fileno(), 100)
    assert len(server.debug()["streams"]) == 1
    process.send_signal(signal.SIGINT)
    rest, said = process.communicate(timeout=10)
    assert process.returncode == 130
    assert said == b"stopped\n"
    assert (shown + rest).endswith(b"\n")
    eventually(lambda: not server.debug()["streams"], within=1, why="the source was stopped")
    assert server.debug()["totals"]["outcomes"]["client_left"] == before + 1


def test_a_closed_pipe_stops_the_generation(server: ServerProcess) -> None:
    """``rawstream chat … | head``: no traceback, and the source stops."""
    process = subprocess.Popen(
        [*command(), "chat", "--url", f"{server.url}/chat", "hi"],
        env=environ(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    os.read(process.stdout.fileno(), 1)
    process.stdout.close()
    assert process.wait(10) == 1
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    eventually(lambda: not server.debug()["streams"], within=1, why="the source was stopped")


def test_a_conversation_goes_on_after_ctrl_c(server: ServerProcess) -> None:
    """On a terminal without a prompt: ask, stop the answer, be asked again, and leave with Ctrl-D."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*command(), "chat", "--url", server.url],
        env=environ({"TERM": "dumb"}),
        preexec_fn=lambda: os.login_tty(theirs),  # the terminal is then the one that Ctrl-C is typed on
    )
    os.close(theirs)
    terminal = Terminal(ours)
    try:
        terminal.until("> ")
        os.write(ours, b"hello there\n")
        eventually(lambda: server.debug()["streams"], why="the answer has begun")
        os.write(ours, b"\x03")
        terminal.until("stopped")
        eventually(lambda: not server.debug()["streams"], within=1, why="the source was stopped")
        terminal.until("> ")
        os.write(ours, b"\x04")
        terminal.until(None)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait(5)
        os.close(ours)


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("http://a", "http://a/v1/chat/completions"),
        ("a:1", "http://a:1/v1/chat/completions"),
        ("http://a/v1/", "http://a/v1/chat/completions"),
        ("https://a/openai/v1", "https://a/openai/v1/chat/completions"),
        ("https://a/v1beta", "https://a/v1beta/chat/completions"),
        ("https://a/prefix", "https://a/prefix/v1/chat/completions"),
        ("https://a/v1/chat/completions?x=1", "https://a/v1/chat/completions?x=1"),
        ("http://a/chat", "http://a/chat"),
        ("http://a/stream", "http://a/stream"),
    ],
)
def test_a_url_may_be_given_in_any_form(url: str, asked: str) -> None:
    """With or without scheme and ``/v1``; a whole one is taken as it is."""
    assert endpoint(url) == asked
