"""``curl``, as the README shows it."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.recording import Record
from tests.support.server import ServerProcess
from tests.support.tools import missing, require_tool

pytestmark = pytest.mark.real

BODY = '{"prompt":"hello","mock":{"tokens":10,"tokens_per_second":50}}'


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess() as made:
        yield made


@pytest.fixture(scope="module")
def curl() -> str:
    """A curl that knows ``--json`` (7.82, March 2022)."""
    path = require_tool("curl")
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    if tuple(int(part) for part in version.split(".")[:2]) < (7, 82):
        missing(f"a curl that knows --json (this one is {version})")
    return path


def run(*arguments: str, timeout: float = 10) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*arguments], capture_output=True, text=True, timeout=timeout, check=False)


def test_the_first_command_of_the_readme(server: ServerProcess, curl: str) -> None:
    """Tokens, ``[DONE]``, exit code 0."""
    done = run(curl, "-sN", "--json", BODY, f"{server.url}/chat")
    assert done.returncode == 0
    assert done.stdout.count('"token"') == 10
    assert done.stdout.endswith("data: [DONE]\n\n")


def test_tokens_come_one_by_one(server: ServerProcess, curl: str) -> None:
    """Not all at the end: the first line is there long before the last."""
    with subprocess.Popen(
        [curl, "-sN", "--json", BODY.replace("50", "10"), f"{server.url}/chat"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        times = [time.monotonic() for line in process.stdout if line.startswith("data: {")]
    assert len(times) == 10
    assert times[-1] - times[0] > 0.8


def test_text_on_the_query(server: ServerProcess, curl: str) -> None:
    """``curl 'http://…/text?prompt=hello'`` is all it takes."""
    done = run(curl, "-sN", "-G", "--data-urlencode", 'mock={"tokens":5}', f"{server.url}/text?prompt=hello")
    assert done.returncode == 0
    assert len(done.stdout.split()) >= 3


def test_a_cut_stream_is_an_error_for_curl(server: ServerProcess, curl: str) -> None:
    """Exit code 18 (or 56 on HTTP/1.0's reset): a failure never looks like a whole answer."""
    failing = BODY.replace('"tokens":10', '"tokens":10,"fail_after":3')
    done = run(curl, "-sN", "--json", failing, f"{server.url}/chat")
    assert done.returncode == 18
    assert '"error"' in done.stdout
    assert "[DONE]" not in done.stdout
    assert run(curl, "-sN", "--http1.0", "--json", failing, f"{server.url}/chat").returncode == 56


def test_expect_100_continue(server: ServerProcess, curl: str) -> None:
    """A megabyte of prompt goes with ``Expect``, and without a second's wait for a go-ahead that does not come."""
    body = json.dumps({"prompt": "a" * 2**20, "mock": {"tokens": 1}})
    began = time.monotonic()
    done = subprocess.run(
        [curl, "-sN", "--expect100-timeout", "5", "-H", "Expect: 100-continue", "--json", "@-", f"{server.url}/chat"],
        input=body, capture_output=True, text=True, timeout=10, check=True,
    )  # fmt: skip
    assert "[DONE]" in done.stdout
    assert time.monotonic() - began < 3


def test_ctrl_c_closes_the_source(curl: str, tmp_path: Path) -> None:
    """SIGINT in curl's terminal: the generator is closed within 0.3 s."""
    record = Record(tmp_path / "events.jsonl")
    with ServerProcess("--source", "tests.support.recording:tokens", env=record.env) as server:
        body = '{"prompt":"interrupted","pause":0.02}'
        with subprocess.Popen(
            [curl, "-sN", "--json", body, f"{server.url}/chat"], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.send_signal(signal.SIGINT)
            process.wait(5)
            record.closed("interrupted", within=0.3)
        server.assert_steady()


def test_a_unix_socket(curl: str, tmp_path: Path) -> None:
    """``curl --unix-socket``."""
    path = tmp_path / "s"
    with ServerProcess("--uds", str(path)):
        done = run(curl, "-sN", "--unix-socket", str(path), "--json", BODY, "http://localhost/chat")
        assert done.stdout.endswith("data: [DONE]\n\n")
