"""https, as clients see it: real handshakes, real ends, and what must not look like one."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import raw
from tests.support.certificates import Certificate, make_certificate
from tests.support.raw import Client, chat, get
from tests.support.server import ServerProcess
from tests.support.tools import require_tool
from tests.support.waiting import eventually


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def shared_server(request: pytest.FixtureRequest, certificate: Certificate) -> Iterator[ServerProcess]:
    with ServerProcess(
        "--loop", request.param, "--head-timeout", "0.5", *certificate.flags, tls=certificate.trusting()
    ) as made:
        yield made


def test_the_server_says_https_where_it_listens(server: ServerProcess) -> None:
    assert server.url == f"https://127.0.0.1:{server.port}"


def test_an_answer_streams_and_the_connection_is_kept(server: ServerProcess) -> None:
    with server.connect() as client:
        for _ in range(2):
            reply = client.ask(chat(tokens=5, tokens_per_second=None))
            assert (reply.status, len(reply.tokens), reply.done, reply.whole) == (200, 5, True, True)
        assert isinstance(client.sock, ssl.SSLSocket)
        assert client.sock.version() == "TLSv1.3"
        assert client.sock.selected_alpn_protocol() is None


@pytest.mark.parametrize(
    ("offered", "agreed"),
    [(["h2", "http/1.1"], "h2"), (["http/1.1", "h2"], "h2"), (["http/1.1"], "http/1.1")],
)
def test_alpn_agrees_on_the_best_that_both_speak(
    server: ServerProcess, certificate: Certificate, offered: list[str], agreed: str
) -> None:
    """HTTP/2 where the client speaks it, whatever it names first (RFC 7301)."""
    context = certificate.trusting()
    context.set_alpn_protocols(offered)
    with Client(server.port, tls=context) as client:
        assert isinstance(client.sock, ssl.SSLSocket)
        assert client.sock.selected_alpn_protocol() == agreed
        if agreed == "http/1.1":
            assert client.ask(get("/healthz")).status == 200


def test_without_http2_alpn_agrees_on_http_1_1(certificate: Certificate) -> None:
    context = certificate.trusting()
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        ServerProcess("--no-http2", *certificate.flags, tls=certificate.trusting()) as server,
        Client(server.port, tls=context) as client,
    ):
        assert isinstance(client.sock, ssl.SSLSocket)
        assert client.sock.selected_alpn_protocol() == "http/1.1"
        assert client.ask(get("/healthz")).status == 200


def test_tls_1_2_is_spoken_and_1_1_is_not(server: ServerProcess, certificate: Certificate) -> None:
    context = certificate.trusting()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with Client(server.port, tls=context) as client:
        assert client.ask(get("/healthz")).status == 200
    old = ["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]
    openssl = subprocess.run(
        [require_tool("openssl"), "s_client", "-connect", f"127.0.0.1:{server.port}", *old],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    assert openssl.returncode != 0
    assert "alert protocol version" in openssl.stderr


def test_curl_reads_a_whole_stream(server: ServerProcess, certificate: Certificate) -> None:
    body = '{"prompt":"hello","mock":{"tokens":20,"tokens_per_second":null}}'
    trusting = ["-sSN", "--cacert", str(certificate.cert)]
    done = subprocess.run(
        [require_tool("curl"), *trusting, "-H", "content-type: application/json", "-d", body, f"{server.url}/chat"],
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count('"token"') == 20
    assert done.stdout.rstrip().endswith("data: [DONE]")


def test_a_plain_request_is_told_to_use_https(server: ServerProcess) -> None:
    reply = raw.ask(server.port, get("/healthz"))
    assert (reply.status, reply.whole) == (400, True)
    assert reply.json()["code"] == "tls_expected"
    assert "https://" in reply.json()["error"]


@pytest.mark.parametrize("first", [b"SSH-2.0-OpenSSH_9.2\r\n", b"\x00\x01\x02", b"\x16garbage that is no handshake"])
def test_what_is_no_tls_is_closed(server: ServerProcess, first: bytes) -> None:
    with Client(server.port) as client:
        client.try_send(first)
        assert len(client.rest(within=3)) <= 16, "an alert at most"


@pytest.mark.parametrize("first", [b"", b"\x16\x03\x01\x02\x00"])
def test_a_handshake_that_does_not_go_on_has_a_deadline(server: ServerProcess, first: bytes) -> None:
    """A connection that says nothing, or half of its hello, is closed after ``head_timeout``."""
    with Client(server.port) as client:
        client.try_send(first)
        assert client.rest(within=5) == b""


def test_a_client_that_leaves_ends_its_stream(server: ServerProcess) -> None:
    with server.connect() as client:
        client.send(chat(request_id="leaves-tls", tokens=None, tokens_per_second=100))
        client.head()
        client.until(b"token")
    assert server.ended("leaves-tls")["outcome"] == "client_left"


def test_close_notify_alone_is_a_leaving_too(server: ServerProcess) -> None:
    """The client says that it will say no more, and keeps the socket: what a FIN is without TLS."""
    with server.connect() as client:
        client.send(chat(request_id="says-goodbye", tokens=None, tokens_per_second=100))
        client.head()
        assert isinstance(client.sock, ssl.SSLSocket)
        client.sock.settimeout(5)
        with pytest.raises((ssl.SSLError, OSError)):
            client.sock.unwrap()
    assert server.ended("says-goodbye")["outcome"] == "client_left"


def test_a_failing_stream_ends_without_close_notify(server: ServerProcess) -> None:
    """The in-stream error arrives, and after it the connection is cut, which TLS itself shows (RFC 8446 §6.1)."""
    with server.connect() as client:
        reply = client.ask(chat(request_id="fails-tls", tokens=10, tokens_per_second=None, fail_after=3))
        assert reply.error is not None
        assert not reply.whole
        assert client.was_reset
    assert server.ended("fails-tls")["outcome"] == "source_failed"


def test_an_answer_delimited_by_its_close_ends_with_close_notify(server: ServerProcess) -> None:
    """HTTP/1.0 has no other end: without ``close_notify`` it could not be told from a cut."""
    body = b'{"prompt":"x","mock":{"tokens":5,"tokens_per_second":null}}'
    asking = raw.request("POST", "/chat", {"content-type": "application/json"}, body, version="1.0")
    with server.connect() as client:
        reply = client.ask(asking)
        assert (reply.whole, client.was_reset, len(reply.tokens)) == (True, False, 5)


def test_an_error_closes_with_close_notify(server: ServerProcess) -> None:
    with server.connect() as client:
        reply = client.ask(b"BAD\r\n\r\n")
        assert reply.status == 400
        assert client.rest() == b""
        assert not client.was_reset


def test_a_request_in_one_byte_records_is_a_request(server: ServerProcess) -> None:
    with server.connect() as client:
        for byte in chat(tokens=2, tokens_per_second=None):
            client.send(bytes([byte]))
        reply = client.reply()
        assert (reply.status, len(reply.tokens)) == (200, 2)


def test_a_large_body_arrives(server: ServerProcess) -> None:
    with server.connect() as client:
        reply = client.ask(raw.post("/chat", {"prompt": "x" * 3_000_000, "mock": {"tokens": 1}}))
        assert (reply.status, reply.done) == (200, True)


def test_a_client_that_breaks_a_record_is_cut_and_said_to_misbehave(server: ServerProcess) -> None:
    with server.connect() as client:
        client.send(chat(request_id="breaks-a-record", tokens=None, tokens_per_second=100))
        client.head()
        assert isinstance(client.sock, ssl.SSLSocket)
        broken = socket.socket(fileno=client.sock.detach())
        broken.sendall(b"\x17\x03\x03\x00\x20" + b"x" * 32)
        broken.close()
    assert server.ended("breaks-a-record")["outcome"] == "client_misbehaved"


def test_a_renewed_certificate_is_taken_up_and_no_stream_notices(tmp_path: Path) -> None:
    """SIGHUP: who comes now sees the new certificate; who streams goes on. A broken one changes nothing."""
    first, second = make_certificate(tmp_path, "first"), make_certificate(tmp_path, "second")
    used = Certificate(tmp_path / "cert.pem", tmp_path / "key.pem")

    def install(made: Certificate) -> None:
        shutil.copy(made.cert, used.cert)
        shutil.copy(made.key, used.key)

    install(first)
    with ServerProcess(*used.flags, tls=first.trusting()) as server:
        with server.connect() as client:
            client.send(chat(request_id="goes-on", tokens=200, tokens_per_second=100))
            client.head()
            used.cert.write_text("broken")
            server.process.send_signal(1)
            server.wait_line(lambda line: "the certificate stays as it was" in line)
            server.ask(get("/healthz"))
            install(second)
            server.process.send_signal(1)
            server.wait_line(lambda line: "new connections get the certificate" in line)
            with pytest.raises(ssl.SSLCertVerificationError):
                server.connect()
            server.tls = second.trusting()
            assert server.ask(get("/healthz")).status == 200
            assert b"[DONE]" in b"".join(client.parts())
        assert server.ended("goes-on")["outcome"] == "completed"
        server.assert_steady()


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("missing", "ssl_certfile: cannot read"),
        ("junk", "hold no certificate with its key"),
        ("mismatch", "hold no certificate with its key: key values mismatch"),
        ("locked", "ssl_keyfile: the key in"),
        ("key alone", "ssl_keyfile needs ssl_certfile"),
    ],
)
def test_a_certificate_that_cannot_be_used_is_said_at_start(tmp_path: Path, made: str, said: str) -> None:
    """One line that names the setting and the file, and exit code 2."""
    good = make_certificate(tmp_path)
    flags: tuple[str, ...] = good.flags
    if made == "missing":
        flags = ("--ssl-certfile", str(tmp_path / "none.pem"))
    elif made == "junk":
        good.cert.write_text("junk")
    elif made == "mismatch":
        flags = Certificate(good.cert, make_certificate(tmp_path, "other").key).flags
    elif made == "locked":
        flags = make_certificate(tmp_path, "locked", password="secret").flags
    else:
        flags = ("--ssl-keyfile", str(good.key))
    with ServerProcess(*flags, wait=False) as server:
        assert server.wait() == 2
        lines = [line for line in server.stderr.splitlines() if said in line]
        assert len(lines) == 1, server.stderr


def test_handshakes_count_as_connections(certificate: Certificate) -> None:
    """Peers that connect and say nothing cannot take more than ``max_connections``, and do not outlive the server."""
    with ServerProcess(
        "--max-connections", "3", "--head-timeout", "30", *certificate.flags, tls=certificate.trusting()
    ) as server:
        silent = [Client(server.port) for _ in range(3)]
        fourth = Client(server.port, deadline=10)
        fourth.sock.settimeout(0.3)
        context = certificate.trusting()
        with pytest.raises(TimeoutError):
            context.wrap_socket(fourth.sock, server_hostname="localhost")
        for client in silent:
            client.close()
        eventually(lambda: server.ask(get("/healthz")).status == 200, why="room again")
        keeps_silent = Client(server.port)
        assert server.stop() == 0
        assert keeps_silent.rest() == b""
        keeps_silent.close()
