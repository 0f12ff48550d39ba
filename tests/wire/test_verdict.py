"""h11's word on a shape of exchange, remembered."""

from __future__ import annotations

from typing import Any

import h11
import pytest

from rawstream.wire.verdict import CONTINUE, Shape, verdict


def shape(**changes: Any) -> Shape:
    plain = Shape("GET", "1.1", True, True, 200, False)
    return plain._replace(**changes)


def test_continue_is_what_h11_writes() -> None:
    """The interim answer is h11's, byte for byte."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"POST / HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\n")
    connection.next_event()
    assert connection.send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")) == CONTINUE


def test_a_shape_is_judged_once() -> None:
    """The second question is answered from memory."""
    assert verdict(shape()) is verdict(shape())


@pytest.mark.parametrize(
    ("asked", "framing", "end", "reusable"),
    [
        (shape(), "chunked", b"0\r\n\r\n", True),
        (shape(has_length=True), "length", b"", True),
        (shape(version="1.0", keep_alive=False), "close", b"", False),
        (shape(method="HEAD"), "none", b"", True),
        (shape(status=204), "none", b"", True),
        (shape(status=304), "none", b"", True),
        (shape(keep_alive=False), "chunked", b"0\r\n\r\n", False),
        (shape(body_read=False, keep_alive=False, has_length=True), "length", b"", False),
        (shape(method="", keep_alive=False, body_read=False, has_length=True, status=400), "length", b"", False),
    ],
)
def test_framing_end_and_reuse(asked: Shape, framing: str, end: bytes, reusable: bool) -> None:
    """Each kind of exchange gets the framing, the end and the life that RFC 9112 gives it."""
    said = verdict(asked)
    assert (said.framing, said.end, said.reusable) == (framing, end, reusable)


def test_close_is_never_said_on_a_body_that_a_cut_could_end() -> None:
    """Only an answer whose end is visible without it announces that the connection closes."""
    assert b"close" not in verdict(shape(keep_alive=False)).head.lower()
    assert b"close" not in verdict(shape(version="1.0", keep_alive=False)).head.lower()
    assert b"connection: close" in verdict(shape(keep_alive=False, has_length=True)).head.lower()


def test_a_status_without_a_name_has_none() -> None:
    """An unknown status is sent without a reason phrase; an impossible one is refused."""
    assert verdict(shape(status=299)).head.startswith(b"HTTP/1.1 299 \r\n")
    with pytest.raises(ValueError, match="1000"):
        verdict(shape(status=1000))
