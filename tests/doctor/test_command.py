"""``rawstream doctor`` from outside: what it says before, what it says after, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.fronts import free_port
from tests.support.program import ROOT, command
from tests.support.server import ServerProcess


def environ(**extra: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAWSTREAM_", "OPENAI_"))}
    return {**clean, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200", **extra}


def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command(), "doctor", *arguments],
        env=environ(),
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=50,
        check=False,
    )


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess() as running:
        yield running


def test_it_says_first_what_it_will_do_and_then_what_it_found(server: ServerProcess) -> None:
    done = doctor("--quick", f"{server.url}/chat")
    assert done.returncode == 0, done.stderr
    first, *progress = done.stderr.splitlines()
    assert first.startswith(f"examining {server.url}/chat: 4 requests")
    assert len(progress) == 5
    assert "✓ buffering" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("9 well · 5 requests")


def test_json_is_all_that_stdout_holds(server: ServerProcess) -> None:
    done = doctor("--quick", "--json", f"{server.url}/text")
    report = json.loads(done.stdout)
    assert (report["exit_code"], done.returncode) == (0, 0)
    assert report["requests"] == 5


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("http://127.0.0.1",),
        ("--header", "nonsense", "http://127.0.0.1/chat"),
        ("--upstream", "http://127.0.0.1/chat"),
        ("ftp://127.0.0.1/chat",),
    ],
)
def test_what_was_asked_wrongly_is_told_in_a_line_and_2(arguments: tuple[str, ...]) -> None:
    done = doctor(*arguments)
    assert done.returncode == 2
    assert "Error:" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("flags", [(), ("--upstream",)])
def test_where_nothing_listens_there_is_nothing_to_examine(flags: tuple[str, ...]) -> None:
    done = doctor("--quick", *flags, f"http://127.0.0.1:{free_port()}/v1")
    assert done.returncode == 2
    assert "could not be reached" in done.stderr.splitlines()[-1]


def test_a_refusal_is_quoted(server: ServerProcess) -> None:
    done = doctor("--quick", "--no-mock", "--body", os.devnull, f"{server.url}/chat")
    assert done.returncode == 2
    assert "not JSON" in done.stderr
    done = doctor("--quick", f"{server.url}/no/such/path")
    assert done.returncode == 2
    assert "answered 404" in done.stderr


def test_ctrl_c_ends_it_and_leaves_no_stream_behind(server: ServerProcess) -> None:
    process = subprocess.Popen(
        [*command(), "doctor", f"{server.url}/chat"],
        env=environ(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            if "an answer, as it comes" in line:
                break
        process.send_signal(signal.SIGINT)
        said, rest = process.communicate(timeout=10)
    assert process.returncode == 130
    assert said == ""
    assert "Traceback" not in rest
    server.assert_steady()
