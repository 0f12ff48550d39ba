"""``rawstream check`` from outside: what it says of the settings and of each upstream, and its exit code."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rawstream.limits.users import new_key
from tests.sources.fake_upstream import FakeUpstream, Script, answering, answering_and_waiting
from tests.support.program import ROOT, command
from tests.support.tools import require_tool

KEY = "sk-check-0123456789"


def whole(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        status,
        len(body),
        body,
    )


def listing(*names: str) -> bytes:
    return whole(200, json.dumps({"object": "list", "data": [{"id": name} for name in names]}).encode())


class Said:
    """What the command said, and its exit code."""

    def __init__(self, code: int, stdout: str, stderr: str) -> None:
        self.code = code
        self.lines = stdout.splitlines()
        self.stdout = stdout
        self.all = stdout + stderr
        assert "Traceback" not in self.all
        assert KEY not in self.all

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


async def check(*arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Said:
    """Run ``rawstream check`` to its end."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAWSTREAM_")}
    process = await asyncio.create_subprocess_exec(
        *command(),
        "check",
        *arguments,
        env={**clean, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **(env or {})},
        cwd=cwd,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        stdout, stderr = await process.communicate()
    assert process.returncode is not None
    return Said(process.returncode, stdout.decode(), stderr.decode())


def written(folder: Path, *tables: str) -> str:
    """A file with these upstreams; each has its keys in lines."""
    path = folder / "rawstream.toml"
    path.write_text("port = 8080\n" + "".join(f"\n[[upstreams]]\n{table}\n" for table in tables))
    return str(path)


async def test_a_wrong_file_is_told_line_by_line_and_nobody_is_asked(tmp_path: Path) -> None:
    """Exit code 2; one line for each thing that is wrong."""
    async with FakeUpstream(answering(listing("m"))) as fake:
        file = written(tmp_path, f'name = "a"\nurl = "{fake.url}"\nwieght = 2', f'name = "b"\napi_key = "{KEY} "')
        said = await check("--config", file)
        assert fake.connections == 0
    assert said.code == 2
    assert said.lines == [
        f"{file}:6: upstreams[0].wieght: there is no such key; did you mean weight?",
        f"{file}:8: upstreams[1]: url is missing",
        f"{file}:10: upstreams[1].api_key: must be visible ASCII characters without spaces",
    ]
    assert (await check("--config", file, "--json")).json["problems"] == said.lines


async def test_all_is_well(tmp_path: Path) -> None:
    """Each upstream by name, URL, time, TLS, status and key; exit code 0. Nothing is generated."""
    async with FakeUpstream(answering(listing("m", "n"))) as fake:
        file = written(
            tmp_path,
            f'name = "a"\nurl = "{fake.url}"\nmodels = ["m", "x*"]\napi_key_env = "A_KEY"',
            f'name = "b"\nurl = "{fake.url}"\nmodels = ["other"]\nmodel = "n"',
        )
        said = await check("--config", file, env={"A_KEY": KEY})
        assert {asked.line for asked in fake.requests} == {"GET /v1/models HTTP/1.1"}
        assert {asked.headers.get("authorization") for asked in fake.requests} == {f"bearer {KEY}", None}
        told = (await check("--config", file, "--json", env={"A_KEY": KEY})).json
    assert said.code == 0
    assert said.lines[:2] == [f"{file}: nothing is wrong", f"a  {fake.url}  ok"]
    assert said.lines[2].startswith("  reachable in ")
    assert said.lines[2].endswith(" ms, without TLS")
    assert "  GET /models: 200; key: accepted" in said.lines
    assert "  GET /models: 200; key: not sent" in said.lines
    assert (told["ok"], told["file"], [seen["name"] for seen in told["upstreams"]]) == (True, file, ["a", "b"])
    assert all(seen["reachable"] and seen["connect_ms"] > 0 and seen["ok"] for seen in told["upstreams"])


@pytest.mark.parametrize(
    ("script", "keys", "problem"),
    [
        (answering(whole(401, b"{}")), 'api_key_env = "A_KEY"', "status 401: it does not accept the configured key"),
        (answering(whole(403, KEY.encode())), 'api_key_env = "A_KEY"', "status 403: it does not accept"),
        (answering(whole(401, b"{}")), "", "status 401: it wants a key, and none is configured"),
        (answering(whole(500, b"{}")), "", "GET /models: status 500"),
        (answering(listing("m")), 'models = ["m", "gone"]', "does not list gone"),
        (answering(listing("m")), 'model = "gone"', "does not list gone"),
        (answering(b"garbage\r\n\r\n"), "", "GET /models: "),
        (answering_and_waiting(), "first_token_timeout = 0.2", "GET /models: the upstream sent no answer within 0.2 s"),
    ],
)
async def test_what_does_not_answer_as_it_should_is_told(
    script: Script, keys: str, problem: str, tmp_path: Path
) -> None:
    """Exit code 1; the other upstreams are asked all the same."""
    async with FakeUpstream(script) as fake, FakeUpstream(answering(listing("m"))) as well:
        file = written(tmp_path, f'name = "a"\nurl = "{fake.url}"\n{keys}', f'name = "b"\nurl = "{well.url}"')
        said = await check("--config", file, env={"A_KEY": KEY})
    assert said.code == 1
    assert f"a  {fake.url}  NOT OK" in said.lines
    assert any(line.startswith("  problem: ") and problem in line for line in said.lines)
    assert f"b  {well.url}  ok" in said.lines


async def test_one_that_lists_no_models_is_well() -> None:
    """Not every server has ``GET /models``."""
    async with FakeUpstream(answering(whole(404, b"{}"))) as fake:
        said = await check("--upstream", fake.url)
    assert said.code == 0
    assert "  note: GET /models: status 404: it does not list its models" in said.lines


async def test_an_upstream_can_be_checked_without_a_file() -> None:
    """``--upstream``, or the variables that ``serve`` would take."""
    async with FakeUpstream(answering(listing("m"))) as fake:
        said = await check("--upstream", fake.url, "--upstream-api-key", KEY)
        assert (said.code, said.lines[1]) == (0, f"upstream  {fake.url}  ok")
        assert (await check(env={"RAWSTREAM_UPSTREAM": fake.url})).lines[1] == f"upstream  {fake.url}  ok"
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        said = await check("--upstream", f"http://127.0.0.1:{bound.getsockname()[1]}/v1")
    assert said.code == 1
    assert "could not be reached: Connection refused" in said.all


async def test_nobody_is_asked_where_there_is_no_network(tmp_path: Path) -> None:
    async with FakeUpstream(answering(listing("m"))) as fake:
        said = await check("--no-network", "--config", written(tmp_path, f'name = "a"\nurl = "{fake.url}"'))
        assert fake.connections == 0
    assert (said.code, said.lines[1]) == (0, f"a  {fake.url}  not asked")


async def test_without_an_upstream_it_says_where_tokens_come_from() -> None:
    assert (await check()).lines == [
        "the settings: nothing is wrong",
        "no upstream: tokens come from the built-in mock",
    ]


async def test_users_are_listed_without_their_keys(tmp_path: Path) -> None:
    """Names, limits and how many keys each has; nothing of the keys, their hashes neither."""
    digest = new_key()[1]
    path = tmp_path / "rawstream.toml"
    path.write_text(
        'user_header = "X-User"\ntrusted_proxies = "127.0.0.1"\n'
        f'[[users]]\nname = "ada"\nkeys = ["{digest}"]\nmodels = ["small-*"]\ntokens_per_day = 1000\nmax_streams = 2\n'
        '[[users]]\nname = "*"\nrequests_per_minute = 3\n'
    )
    said = await check("--config", str(path))
    assert said.code == 0
    assert said.lines[-3:] == [
        "users are named by 127.0.0.1, in X-User",
        "user ada: 1 key; models small-*; 2 streams at once; 1000 tokens a day",
        "user *: 0 keys; models *; 3 requests a minute",
    ]
    told = await check("--config", str(path), "--json")
    assert told.json["users"][0] == {
        "name": "ada",
        "keys": 1,
        "models": ["small-*"],
        "max_streams": 2,
        "requests_per_minute": None,
        "tokens_per_minute": None,
        "tokens_per_day": 1000,
    }
    for one in (said, told):
        assert digest not in one.all
        assert digest.split(":")[2] not in one.all
    alone = await check(env={"RAWSTREAM_USER_HEADER": "x-user", "RAWSTREAM_TRUSTED_PROXIES": "unix"})
    assert alone.lines[-1] == "no [[users]]: whomever it names may ask, without limits"


async def test_a_wrong_url_is_a_wrong_setting() -> None:
    said = await check("--upstream", "ftp://x")
    assert said.code == 2
    assert "upstream: the URL must begin with http:// or https:// and name a host" in said.all


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for localhost with its key."""
    openssl = require_tool("openssl")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    key, cert = path.with_suffix(".key"), path.with_suffix(".crt")
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(cert),
         "-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_bytes(key.read_bytes() + cert.read_bytes())
    return path


async def test_tls_is_told_and_a_certificate_that_is_not_trusted_too(certificate: Path, tmp_path: Path) -> None:
    """With an authority of one's own per upstream, relative to the file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    (tmp_path / "own.pem").write_bytes(certificate.with_suffix(".crt").read_bytes())
    async with FakeUpstream(answering(listing("m")), context) as fake:
        file = written(tmp_path, f'name = "a"\nurl = "{fake.url}"\nca = "own.pem"', f'name = "b"\nurl = "{fake.url}"')
        told = (await check("--config", file, "--json")).json
    trusted, other = told["upstreams"]
    assert (trusted["ok"], trusted["tls"]) == (True, "TLSv1.3")
    assert (other["ok"], other["reachable"]) == (False, False)
    assert "certificate is not trusted" in other["problems"][0]


def test_it_is_the_same_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rawstream", "check", "--help"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert "Exit code 0: all is well; 1:" in done.stdout
