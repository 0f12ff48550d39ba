"""Trace Context: what is passed on is exactly what the specification allows, and nothing a client invents."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawstream.wire.trace_context import trace_fields, traceparent, tracestate

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
VALID = f"00-{TRACE}-{PARENT}-01"


def test_a_valid_parent_goes_on_as_it_came() -> None:
    assert traceparent(VALID) == VALID
    assert traceparent(f"00-{TRACE}-{PARENT}-00") == f"00-{TRACE}-{PARENT}-00"


@pytest.mark.parametrize(
    "value",
    [
        "",
        VALID.upper(),
        VALID + "-",
        VALID + "-more",
        VALID + " ",
        VALID + ", " + VALID,
        VALID[:-1],
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{PARENT}-0g",
        f"cc-{TRACE}-{PARENT}-01.what-the-future-will-be-like",
        f"01-{TRACE}-{PARENT}-01-" + "x" * 512,
        VALID + "\r\nx-evil: 1",
        VALID + "\n",
    ],
)
def test_what_is_no_parent_is_dropped(value: str) -> None:
    assert traceparent(value) is None
    assert trace_fields(value, "a=1") == ()


def test_a_later_versions_parent_is_told_in_ours() -> None:
    """Of its flags only the one that version 00 knows (section 3.2.4)."""
    assert traceparent(f"cc-{TRACE}-{PARENT}-ff") == f"00-{TRACE}-{PARENT}-01"
    assert traceparent(f"cc-{TRACE}-{PARENT}-fe-what-the-future-will-be-like") == f"00-{TRACE}-{PARENT}-00"


@pytest.mark.parametrize(
    ("value", "passed"),
    [
        ("congo=t61rcWkgMzE", "congo=t61rcWkgMzE"),
        ("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
        ("a=1 ,\tb=2,,  ", "a=1,b=2"),
        ("fw529a3039@dt=FfAAAA==", None),
        ("tenant@system=a b", "tenant@system=a b"),
        ("", None),
        ("a=1,a=2", None),
        ("A=1", None),
        ("a", None),
        ("a=", None),
        ("a=1\r\nx-evil: 1", None),
        ("a=é", None),
        (",".join(f"k{number}=1" for number in range(32)), ",".join(f"k{number}=1" for number in range(32))),
        (",".join(f"k{number}=1" for number in range(33)), None),
        ("a=" + "x" * 256 + ",b=" + "x" * 256, None),
    ],
)
def test_a_state_goes_on_whole_or_not_at_all(value: str, passed: str | None) -> None:
    assert tracestate(value) == passed


def test_a_state_needs_a_parent() -> None:
    assert trace_fields(None, "a=1") == ()
    assert trace_fields(VALID, None) == (("traceparent", VALID),)
    assert trace_fields(VALID, "a=1") == (("traceparent", VALID), ("tracestate", "a=1"))
    assert trace_fields(VALID, "not one") == (("traceparent", VALID),)


@given(st.text(max_size=80), st.text(max_size=80))
def test_whatever_comes_nothing_but_two_harmless_fields_goes_on(parent: str, state: str) -> None:
    for name, value in trace_fields(VALID if len(parent) % 2 else parent, state):
        assert name in ("traceparent", "tracestate")
        assert re.fullmatch(r"[ -~]+", value)
