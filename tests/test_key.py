"""``rawstream key`` from outside: a key is shown once, and what the file holds is its hash."""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
from pathlib import Path

import pytest

from rawstream import config
from rawstream.limits.users import Users, hashed
from rawstream.settings import UserSettings
from tests.support.program import ROOT, command


def key(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command(), "key", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def test_the_key_alone_is_on_stdout_and_the_lines_for_the_file_are_not() -> None:
    """``rawstream key new > key`` holds the key and nothing else."""
    made = key("new")
    assert made.returncode == 0
    (secret,) = made.stdout.splitlines()
    assert secret not in made.stderr
    (digest,) = tomllib.loads(made.stderr.partition(":\n\n")[2])["keys"]
    assert digest == hashed(secret)


def test_the_lines_for_a_user_are_a_file_that_lets_the_key_in(tmp_path: Path) -> None:
    made = key("new", "--user", "ada@example.org")
    file = tmp_path / "rawstream.toml"
    file.write_text(made.stderr.partition(":\n\n")[2])
    users = Users(config.load({}, {}, str(file)).settings.users)
    found = users.by_key(made.stdout.strip())
    assert found is not None
    assert found.name == "ada@example.org"


def test_it_can_be_said_as_json() -> None:
    told = json.loads(key("new", "--user", "ada", "--json").stdout)
    assert told == {"key": told["key"], "hash": hashed(told["key"]), "user": "ada"}
    assert set(json.loads(key("new", "--json").stdout)) == {"key", "hash"}


def test_a_name_that_no_user_can_have_is_refused() -> None:
    made = key("new", "--user", "a b")
    assert (made.returncode, made.stdout) == (2, "")
    assert "--user" in made.stderr


def test_the_hash_of_a_key_on_stdin() -> None:
    secret = key("new").stdout
    assert key("hash", stdin=secret).stdout.strip() == hashed(secret.strip())
    assert UserSettings(name="a", keys=(hashed(secret.strip()),))


@pytest.mark.parametrize("text", ["", "sk-something-secret", "rs-nothing", "\n"])
def test_what_is_no_key_is_refused_and_not_repeated(text: str) -> None:
    said = key("hash", stdin=text)
    assert (said.returncode, said.stdout) == (2, "")
    assert "rawstream key new" in said.stderr
    assert "secret" not in said.stderr
    assert "Traceback" not in said.stderr


def test_the_help_says_what_is_kept_and_what_is_lost() -> None:
    said = " ".join(key("new", "--help").stdout.split())
    assert "SHA-256" in said
    assert "cannot be found again" in said
