"""Users: keys that are found by their hash alone, limits that hold, and memory that does not grow with names."""

from __future__ import annotations

import hashlib
import hmac
from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawstream.errors import TooManyStreams
from rawstream.limits import users as module
from rawstream.limits.users import User, Users, hashed, key_id, new_key
from rawstream.settings import UserSettings
from rawstream.settings.tables import is_hashed_key, is_user_name


def user(name: str = "ada", **limits: Any) -> User:
    return User(name, UserSettings(name=name, **limits))


# --- keys ---------------------------------------------------------------------------------------------------


def test_a_new_key_is_found_by_what_the_configuration_holds_of_it() -> None:
    key, digest = new_key()
    users = Users([UserSettings(name="ada", keys=(digest,))])
    found = users.by_key(key)
    assert found is not None
    assert found.name == "ada"
    assert hashed(key) == digest


def test_what_the_configuration_holds_is_no_key_and_does_not_tell_one() -> None:
    key, digest = new_key()
    users = Users([UserSettings(name="ada", keys=(digest,))])
    assert key not in digest
    assert key.rpartition("-")[2] not in digest
    assert users.by_key(digest) is None


def test_two_keys_are_never_the_same() -> None:
    keys = {new_key()[0] for _ in range(1000)}
    assert len(keys) == 1000
    assert min(len(key.split("-", 2)[2]) for key in keys) == 43, "256 bits, in base64"


def test_several_keys_of_one_user_are_valid_side_by_side() -> None:
    """So a key can be replaced without a moment in which none is valid."""
    (old, old_digest), (new, new_digest) = new_key(), new_key()
    users = Users([UserSettings(name="ada", keys=(old_digest, new_digest))])
    assert users.by_key(old) is users.by_key(new) is not None


@given(st.text(max_size=80))
def test_what_is_no_key_is_nobodys(text: str) -> None:
    """Whatever a stranger sends: no user, and no error."""
    _, digest = new_key()
    assert Users([UserSettings(name="ada", keys=(digest,))]).by_key(text) is None


def test_a_key_that_is_known_but_for_one_character_is_nobodys() -> None:
    key, digest = new_key()
    users = Users([UserSettings(name="ada", keys=(digest,))])
    for at in range(len(key)):
        other = key[:at] + ("x" if key[at] != "x" else "y") + key[at + 1 :]
        assert users.by_key(other) is None


@pytest.mark.parametrize("what", ["known", "same id, other secret", "unknown id", "no key at all", ""])
def test_every_key_costs_one_hash_and_one_comparison_in_constant_time(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How long a refusal takes tells neither whether the id is known nor how much of the secret was right."""
    key, digest = new_key()
    users = Users([UserSettings(name="ada", keys=(digest,))])
    tried = {
        "known": key,
        "same id, other secret": f"rs-{key_id(key)}-{'x' * 43}",
        "unknown id": f"rs-00000000-{'x' * 43}",
    }.get(what, what)
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return hmac.compare_digest(one, other)

    class Spy:
        compare_digest = staticmethod(compare)

    monkeypatch.setattr(module, "hmac", Spy)
    assert (users.by_key(tried) is not None) == (what == "known")
    ((computed, held),) = compared
    assert computed == hashlib.sha256(tried.encode()).digest()
    assert len(held) == len(computed)


@pytest.mark.parametrize("text", ["", "rs", "rs-", "rs-a", "rs-a-", "rs--b", "sk-a-b", "Bearer rs-a-b"])
def test_what_is_no_key_of_ours_has_no_hash(text: str) -> None:
    with pytest.raises(ValueError, match="rawstream key new"):
        hashed(text)


@given(st.text(max_size=100))
def test_a_hashed_key_has_three_parts(text: str) -> None:
    assert is_hashed_key(new_key()[1])
    assert not is_hashed_key(text)
    assert not is_hashed_key(f"sha256:ab:{text}") or len(text) == 64


# --- names --------------------------------------------------------------------------------------------------


def test_a_name_that_is_not_configured_is_nobody() -> None:
    users = Users([UserSettings(name="ada")])
    assert users.by_name("bob") is None
    assert users.by_name("ada") is not None


def test_anybody_has_the_limits_of_the_star_each_for_himself() -> None:
    users = Users([UserSettings(name="ada", max_streams=9), UserSettings(name="*", max_streams=1)])
    ada, bob, eve = users.by_name("ada"), users.by_name("bob"), users.by_name("eve")
    assert ada is not None
    assert bob is not None
    assert eve is not None
    assert (ada.max_streams, bob.max_streams, bob.name) == (9, 1, "bob")
    bob.enter()
    eve.enter()
    assert users.by_name("bob") is bob, "what runs is counted in one place"
    with pytest.raises(TooManyStreams):
        bob.enter()


def test_names_without_end_do_not_take_memory_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has a stream is remembered; of the others only so many."""
    monkeypatch.setattr(module, "_MOST_UNNAMED", 100)
    users = Users([UserSettings(name="*", max_streams=1)])
    busy = users.by_name("busy")
    assert busy is not None
    busy.enter()
    for number in range(1000):
        users.by_name(f"user{number}")
    assert len(users._unnamed) <= 100
    assert users.by_name("busy") is busy


@pytest.mark.parametrize("name", ["requests:ada", "a b", "a\nb", "{x}", "", "x" * 129, "é", "a,b"])
def test_a_name_is_nothing_that_logs_metrics_or_the_ledger_would_stumble_over(name: str) -> None:
    assert not is_user_name(name)
    with pytest.raises(ValueError, match="name"):
        UserSettings(name=name)


# --- what a user may ----------------------------------------------------------------------------------------


def test_streams_are_entered_and_left() -> None:
    ada = user(max_streams=2)
    ada.enter()
    ada.enter()
    with pytest.raises(TooManyStreams) as refused:
        ada.enter()
    assert refused.value.status == 429
    assert ada.streams == 2, "what was refused was not entered"
    ada.leave()
    ada.enter()


def test_who_leaves_must_have_entered() -> None:
    with pytest.raises(RuntimeError):
        user().leave()


def test_models_may_be_named_by_a_pattern() -> None:
    ada = user(models=("small-*", "one"))
    assert [ada.may_use(model) for model in ("small-1", "one", "One", "large-1", "ones")] == [
        True, True, False, False, False,
    ]  # fmt: skip
    assert user().may_use("whatever")
    assert user(models=("small-*", "*")).may_use("large-1")


def test_in_a_pattern_a_star_alone_is_special() -> None:
    """A bracket or a question mark in a model's name is what it is, and opens no other model."""
    ada = user(models=("llama[70b]", "g?t", "a.c"))
    assert [ada.may_use(model) for model in ("llama[70b]", "llama7", "g?t", "gpt", "a.c", "abc")] == [
        True, False, True, False, True, False,
    ]  # fmt: skip


def test_a_long_name_is_no_work_for_a_pattern_of_several_stars() -> None:
    """Looking at a megabyte of a client's choice again for each place in it would hold up all streams for an hour."""
    assert not user(models=("*gpt*mini*x",)).may_use("gpt-mini-" * 100_000)


@given(st.lists(st.sampled_from("ab*"), max_size=6), st.text("ab", max_size=8))
def test_a_pattern_is_what_a_shell_makes_of_it(pattern: list[str], name: str) -> None:
    written = "".join(pattern) or "a"
    assert user(models=(written,)).may_use(name) == fnmatchcase(name, written)


def test_without_limits_there_are_no_caps() -> None:
    assert (user().caps, user().request_caps) == ((), ())
    ada = user(tokens_per_minute=5, tokens_per_day=50, requests_per_minute=3)
    assert [(cap.tokens, cap.seconds) for cap in ada.caps] == [(5, 60), (50, 86_400)]
    assert [(cap.tokens, cap.seconds, cap.what) for cap in ada.request_caps] == [(3, 60, "requests")]
