"""How much is taken from an upstream by a stream that is not pulled, and what TLS adds to its faults."""

from __future__ import annotations

import array
import asyncio
import fcntl
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rawstream.errors import SettingsError, UpstreamFailed
from rawstream.model import Request, Token
from rawstream.settings import KiB, Settings
from rawstream.sources.upstream import UpstreamSource, UpstreamStream
from tests.sources.fake_upstream import (
    ANSWER,
    HEAD,
    LAST_CHUNK,
    FakeUpstream,
    Peer,
    Script,
    answering,
    answering_once,
    chunk,
    delta,
)
from tests.support.tools import require_tool

REQUEST = Request(messages=[{"role": "user", "content": "hi"}])
ONE = chunk(delta(" a token of ordinary length", None))
SIOCOUTQ = 0x5411


class Flood:
    """A script that sends events as fast as they are taken, and knows what has left its own kernel."""

    def __init__(self) -> None:
        self.written = 0
        self.stuck = asyncio.Event()
        """Set when nothing has been taken for a while, cleared when something is."""
        self._peer: Peer | None = None

    async def __call__(self, peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD)
        peer.writer.transport.set_write_buffer_limits(high=0)
        self._peer = peer
        while True:
            peer.writer.write(ONE * 20)
            self.written += len(ONE) * 20
            drained = asyncio.ensure_future(peer.writer.drain())
            done, _ = await asyncio.wait([drained], timeout=0.3)
            if not done:
                self.stuck.set()
            await drained
            self.stuck.clear()

    @property
    def taken(self) -> int:
        """Bytes of events that are in the reading side's kernel or process, or went through it."""
        assert self._peer is not None
        transport = self._peer.writer.transport
        unsent = array.array("i", [0])
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), SIOCOUTQ, unsent)
        return self.written - transport.get_write_buffer_size() - unsent[0]


@asynccontextmanager
async def flooded(**settings: Any) -> AsyncIterator[tuple[Flood, UpstreamStream]]:
    flood = Flood()
    async with asyncio.timeout(20), FakeUpstream(flood) as fake:
        source = UpstreamSource(Settings(upstream=fake.url, **settings))
        stream = source.tokens(REQUEST)
        try:
            yield flood, stream
        finally:
            await stream.aclose()
            await source.aclose()


@pytest.mark.skipif(sys.platform != "linux", reason="SIOCOUTQ is Linux's")
@pytest.mark.parametrize("pulls", [1, 3, 100])
async def test_a_stream_that_is_not_pulled_takes_no_more_than_its_bound(pulls: int, loop_kind: str) -> None:
    """Row 45: kernel receive buffer, reader and parser together; and all of it stops."""
    async with flooded() as (flood, stream):
        tokens: list[Token] = []
        for _ in range(pulls):
            tokens += await anext(stream)
        await flood.stuck.wait()
        held = flood.taken - len(tokens) * len(ONE)
        assert held <= 48 * KiB, f"{held} bytes are held"
        statistics = stream.statistics()
        assert 0 < statistics.buffered <= 17 * KiB
        assert statistics.peak_buffered <= 17 * KiB


@pytest.mark.skipif(sys.platform != "linux", reason="SIOCOUTQ is Linux's")
async def test_the_bounds_are_settings_and_are_obeyed(loop_kind: str) -> None:
    async with flooded(upstream_rcvbuf=65536, upstream_read_limit=65536) as (flood, stream):
        tokens = await anext(stream)
        await flood.stuck.wait()
        assert flood.taken - len(tokens) * len(ONE) > 64 * KiB
        assert stream.statistics().buffered > 32 * KiB


async def test_a_stream_that_is_pulled_again_goes_on_where_it_was(loop_kind: str) -> None:
    async with flooded() as (flood, stream):
        await anext(stream)
        await flood.stuck.wait()
        for _ in range(50):
            tokens = await anext(stream)
            assert {token.text for token in tokens} == {" a token of ordinary length"}


# --- TLS


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEM file with a key and a certificate for 127.0.0.1 that nobody has signed."""
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    named = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run([require_tool("openssl"), *made, *named], check=True, capture_output=True, timeout=30)
    both = folder / "both.pem"
    both.write_bytes(key.read_bytes() + cert.read_bytes())
    return both


@asynccontextmanager
async def over_tls(
    script: Script, certificate: Path, **settings: Any
) -> AsyncIterator[tuple[FakeUpstream, UpstreamSource]]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    async with asyncio.timeout(20), FakeUpstream(script, context) as fake:
        source = UpstreamSource(Settings(upstream=fake.url, upstream_connect_timeout=2.0, **settings))
        try:
            yield fake, source
        finally:
            await source.aclose()


async def collect(source: UpstreamSource) -> str:
    return "".join([token.text async for tokens in source.tokens(REQUEST) for token in tokens])


async def test_https_works_with_a_trusted_certificate_and_reuses_connections(certificate: Path, loop_kind: str) -> None:
    script = answering(HEAD + chunk(ANSWER) + LAST_CHUNK)
    async with over_tls(script, certificate, upstream_ca=str(certificate)) as (fake, source):
        assert await collect(source) == "Hello world"
        assert await collect(source) == "Hello world"
        assert fake.connections == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_certificate_that_nobody_trusts_is_502(certificate: Path, loop_kind: str) -> None:
    """Row 51."""
    async with over_tls(answering(HEAD), certificate) as (_, source):
        with pytest.raises(UpstreamFailed, match="certificate is not trusted"):
            await collect(source)
        assert source.client.open_connections == 0


async def test_a_certificate_of_another_host_is_502(certificate: Path) -> None:
    async with over_tls(answering(HEAD), certificate, upstream_ca=str(certificate)) as (fake, _):
        other = UpstreamSource(Settings(upstream=f"https://localhost:{fake.port}/v1", upstream_ca=str(certificate)))
        with pytest.raises(UpstreamFailed, match="certificate is not trusted"):
            await collect(other)


async def test_plain_http_on_a_tls_port_is_502(loop_kind: str) -> None:
    """Row 51."""
    async with asyncio.timeout(10), FakeUpstream(answering_once(HEAD)) as fake:
        source = UpstreamSource(Settings(upstream=f"https://127.0.0.1:{fake.port}/v1", upstream_connect_timeout=0.3))
        with pytest.raises(UpstreamFailed):
            await collect(source)


async def test_tls_that_is_cut_short_is_a_cut_stream(certificate: Path, loop_kind: str) -> None:
    """Row 51: no close_notify, no last chunk."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunk(delta("Hello")))
        peer.writer.transport.abort()

    async with over_tls(script, certificate, upstream_ca=str(certificate)) as (_, source):
        with pytest.raises(UpstreamFailed):
            await collect(source)


async def test_a_paused_tls_stream_is_bounded_too(certificate: Path, loop_kind: str) -> None:
    flood = Flood()
    async with over_tls(flood, certificate, upstream_ca=str(certificate)) as (_, source):
        stream = source.tokens(REQUEST)
        tokens = await anext(stream)
        await flood.stuck.wait()
        assert len(tokens) < 200
        assert stream.statistics().buffered <= 17 * KiB
        await stream.aclose()


def test_an_authority_file_that_is_none_is_a_matter_of_settings(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.pem", tmp_path):
        with pytest.raises(SettingsError, match="upstream_ca"):
            UpstreamSource(Settings(upstream="https://127.0.0.1/v1", upstream_ca=str(path)))


async def test_all_addresses_of_a_name_are_tried(loop_kind: str) -> None:
    async with asyncio.timeout(10), FakeUpstream(answering(HEAD + chunk(ANSWER) + LAST_CHUNK)) as fake:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo("localhost", fake.port, type=socket.SOCK_STREAM)
        assert found, "localhost has an address"
        source = UpstreamSource(Settings(upstream=f"http://localhost:{fake.port}/v1"))
        assert await collect(source) == "Hello world"
        assert fake.requests[0].headers["host"] == f"localhost:{fake.port}"
        await source.aclose()
