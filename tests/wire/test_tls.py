"""TLS without sockets: two memory ends shake hands, speak, end and fail."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from rawstream.wire.tls import Hello, ServerTls, TlsFailed, look_at
from tests.support.certificates import Certificate, make_certificate


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


class Pair:
    """A server's end, and OpenSSL's client at the other."""

    def __init__(self, certificate: Certificate, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.cert, certificate.key)
        context.set_alpn_protocols(["http/1.1"])
        self.server = ServerTls(context)
        trusting = certificate.trusting()
        trusting.maximum_version = version
        trusting.set_alpn_protocols(["http/1.1"])
        self.to_client, self.from_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = trusting.wrap_bio(self.to_client, self.from_client, server_hostname="localhost")

    def shake_hands(self, *, at_a_time: int = 1 << 20) -> None:
        """``at_a_time``: bytes given to the server in one go."""
        for _ in range(10):
            try:
                self.client.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                done = False
            said = self.from_client.read()
            for at in range(0, len(said), at_a_time):
                assert self.server.receive(said[at : at + at_a_time]) == []
            self.to_client.write(self.server.to_send())
            if done and self.server.established:
                return
        raise AssertionError("no handshake")

    def say(self, data: bytes) -> list[bytes]:
        """The client says ``data``; what the server makes of it."""
        self.client.write(data)
        return self.server.receive(self.from_client.read())

    def hear(self, records: bytes, size: int = 1 << 20) -> bytes:
        self.to_client.write(records)
        return self.client.read(size)


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def pair(request: pytest.FixtureRequest, certificate: Certificate) -> Pair:
    made = Pair(certificate, request.param)
    made.shake_hands()
    return made


@pytest.mark.parametrize("at_a_time", [1, 7, 1 << 20])
def test_a_handshake_in_pieces_of_any_size(certificate: Certificate, at_a_time: int) -> None:
    made = Pair(certificate)
    assert (made.server.established, made.server.version) == (False, made.server.version)
    made.shake_hands(at_a_time=at_a_time)
    assert (made.server.version, made.server.protocol) == ("TLSv1.3", "http/1.1")


def test_what_the_client_says_comes_out_and_what_we_say_goes_in(pair: Pair) -> None:
    assert pair.say(b"GET / HTTP/1.1\r\n\r\n") == [b"GET / HTTP/1.1\r\n\r\n"]
    assert pair.hear(pair.server.encrypt(b"hello")) == b"hello"
    assert pair.server.encrypt(b"") == b""


def test_long_data_is_several_records_and_nothing_of_it_is_kept(pair: Pair) -> None:
    data = bytes(range(256)) * 400
    records = pair.server.encrypt(data)
    assert len(data) < len(records) < len(data) + 7 * 40
    assert pair.server.to_send() == b""
    pair.to_client.write(records)
    got = b""
    while len(got) < len(data):
        got += pair.client.read(1 << 20)
    assert got == data
    assert b"".join(pair.say(data)) == data


def test_half_a_record_is_nothing_yet(pair: Pair) -> None:
    pair.client.write(b"hello")
    record = pair.from_client.read()
    assert pair.server.receive(record[:-1]) == []
    assert pair.server.receive(record[-1:]) == [b"hello"]


def test_the_peers_close_notify_is_an_end_and_what_follows_is_nothing(pair: Pair) -> None:
    pair.client.write(b"bye")
    with pytest.raises(ssl.SSLWantReadError):
        pair.client.unwrap()
    assert pair.server.receive(pair.from_client.read()) == [b"bye"]
    assert pair.server.ended
    assert pair.server.receive(b"more") == []


def test_what_comes_after_close_notify_is_not_kept(pair: Pair) -> None:
    """Nobody would take it from there: a client that goes on sending while its answer runs would fill the memory."""
    after = b"x" * 1000
    with pytest.raises(ssl.SSLWantReadError):
        pair.client.unwrap()
    pair.server.receive(pair.from_client.read())
    assert pair.server.ended
    for _ in range(100):
        assert pair.server.receive(after) == []
    assert pair.server._incoming.pending == 0


def test_our_close_notify_ends_it_for_the_peer(pair: Pair) -> None:
    pair.to_client.write(pair.server.encrypt(b"last") + pair.server.close())
    assert pair.client.read(100) == b"last"
    assert pair.client.read(100) == b"", "the end, and no error"
    assert pair.server.close() == b"", "said once"


def test_close_notify_crosses_close_notify(pair: Pair) -> None:
    """Whoever says it first: both have said it, and neither is surprised."""
    pair.to_client.write(pair.server.close())
    pair.client.unwrap()
    assert pair.server.receive(pair.from_client.read()) == []
    assert pair.server.ended


def test_we_may_answer_close_notify_with_ours(pair: Pair) -> None:
    with pytest.raises(ssl.SSLWantReadError):
        pair.client.unwrap()
    pair.server.receive(pair.from_client.read())
    assert pair.server.close() != b""


def test_a_broken_record_is_a_failure_with_an_alert(pair: Pair) -> None:
    pair.client.write(b"hello")
    record = bytearray(pair.from_client.read())
    record[-1] ^= 1
    with pytest.raises(TlsFailed) as failure:
        pair.server.receive(bytes(record))
    assert "bad record mac" in str(failure.value)
    assert failure.value.detail
    assert pair.server.to_send(), "the alert"


def test_a_peer_that_speaks_no_version_of_ours_is_refused(certificate: Certificate, tmp_path: Path) -> None:
    made = Pair(certificate)
    hello = bytearray.fromhex("1603010031010000" + "2d0301" + "00" * 32 + "00" + "0004" + "002f0035" + "0100" + "0000")
    with pytest.raises(TlsFailed):
        made.server.receive(bytes(hello))
    assert made.server.to_send()[:1] == b"\x15", "an alert"
    assert not made.server.established


def test_closing_before_the_handshake_says_nothing(certificate: Certificate) -> None:
    assert Pair(certificate).server.close() == b""


@pytest.mark.parametrize(
    ("first", "what"),
    [
        (b"\x16\x03\x01", Hello.TLS),
        (b"GET / HTTP/1.1", Hello.PLAIN_HTTP),
        (b"P", Hello.PLAIN_HTTP),
        (b"POST /chat", Hello.PLAIN_HTTP),
        (b"PRI * HTTP/2.0", Hello.PLAIN_HTTP),
        (b"GOT ", Hello.OTHER),
        (b"\x00", Hello.OTHER),
        (b"SSH-2.0", Hello.OTHER),
    ],
)
def test_first_bytes_say_what_a_connection_is(first: bytes, what: Hello) -> None:
    assert look_at(first) is what
