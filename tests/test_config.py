"""The settings: where they come from, how values are written, and what is said when something is wrong."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Final

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from rawstream import config
from rawstream.cli import COMMANDS, rawstream_command
from rawstream.cli.options import default_text, seconds_text, size_text
from rawstream.cli.serve import held_warning, kernel_takes
from rawstream.config_file import lines_of
from rawstream.errors import SettingsError
from rawstream.limits.users import key_id, new_key
from rawstream.settings import FIELDS, Settings, UpstreamSettings, UserSettings


def written(folder: Path, text: str) -> str:
    path = folder / "rawstream.toml"
    path.write_text(text)
    return str(path)


# --- precedence ---------------------------------------------------------------------------------------------


def test_a_flag_wins_over_a_variable_and_a_variable_over_the_file(tmp_path: Path) -> None:
    """Flag, environment, file, default: the first that names a setting decides it."""
    file = written(tmp_path, "stall_timeout = 1\nheartbeat = 2\nport = 3\n")
    environ = {"RAWSTREAM_STALL_TIMEOUT": "10", "RAWSTREAM_HEARTBEAT": "20"}
    loaded = config.load({"stall_timeout": "100"}, environ, file)
    settings = loaded.settings
    assert (settings.stall_timeout, settings.heartbeat, settings.port) == (100, 20, 3)
    assert settings.host == Settings().host
    assert loaded.origins == {
        "stall_timeout": "--stall-timeout",
        "heartbeat": "RAWSTREAM_HEARTBEAT",
        "port": f"{file}:3",
    }


@given(st.fixed_dictionaries({}, optional={place: st.integers(1, 60_000) for place in ("flag", "env", "file")}))
def test_precedence_holds_for_any_combination(given_in: dict[str, int]) -> None:
    """Whichever of the three places are used, the strongest one's value is taken."""
    flags = {"port": str(given_in["flag"])} if "flag" in given_in else {}
    environ = {"RAWSTREAM_PORT": str(given_in["env"])} if "env" in given_in else {}
    file = None
    if "file" in given_in:
        import tempfile

        with tempfile.NamedTemporaryFile("w", suffix=".toml", delete=False) as out:
            out.write(f"port = {given_in['file']}\n")
        file = out.name
    try:
        got = config.load(flags, environ, file).settings.port
    finally:
        if file is not None:
            Path(file).unlink()
    expected = next((given_in[place] for place in ("flag", "env", "file") if place in given_in), Settings().port)
    assert got == expected


def test_the_file_may_be_named_by_the_environment(tmp_path: Path) -> None:
    """RAWSTREAM_CONFIG names the file, unless --config does."""
    named = written(tmp_path, "port = 1234\n")
    assert config.load({}, {"RAWSTREAM_CONFIG": named}).settings.port == 1234


def test_an_empty_variable_is_not_set() -> None:
    """``RAWSTREAM_UDS=`` in a compose file means: no socket."""
    assert config.load({}, {"RAWSTREAM_UDS": "", "RAWSTREAM_PORT": ""}).settings == Settings()


SAMPLES: Final = {
    "user_header": "x-user",
    "trusted_proxies": "10.0.0.0/8",
    "allowed_hosts": "a.example",
    "cors_origins": "https://a.example",
}


def test_every_setting_can_be_given_in_each_place(tmp_path: Path) -> None:
    """Each field of the table is a flag, a variable and a key; its default, written out, reads back as itself."""
    for name, field in FIELDS.items():
        text = "true" if field.metadata["unit"] == "flag" else default_text(field)
        if text is None:
            text = SAMPLES.get(name) or {"path": "/a", "url": "http://a"}.get(field.metadata["unit"], "a:1")
        expected = config.parse(name, text, "a test")
        if field.default is not None:
            assert expected == pytest.approx(field.default)
        in_file = written(tmp_path, f'{name} = "{text}"\n')
        with_it = {} if name != "user_header" else {"RAWSTREAM_TRUSTED_PROXIES": "::1"}
        for loaded in (
            config.load({name: text}, with_it),
            config.load({}, {config.variable(name): text, **with_it}),
            config.load({}, with_it, in_file),
        ):
            assert getattr(loaded.settings, name) == expected
            assert {*loaded.origins} - {"trusted_proxies"} == {name} - {"trusted_proxies"}


def test_toml_numbers_are_taken_as_they_are(tmp_path: Path) -> None:
    """A file may write numbers and booleans without quotes."""
    file = written(tmp_path, "write_high = 8192\nstall_timeout = 1.5\nheartbeat = 3\nlab = false\nsndbuf = '64k'\n")
    settings = config.load({}, {}, file).settings
    assert (settings.write_high, settings.stall_timeout, settings.heartbeat) == (8192, 1.5, 3.0)
    assert (settings.lab, settings.sndbuf) == (False, 65536)


# --- values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), ("4096", 4096), ("1MiB", 1 << 20), ("64KiB", 65536), ("16k", 16384), ("16K", 16384), ("2m", 1 << 21),
        ("1GiB", 1 << 30), ("1 MiB", 1 << 20), ("1.5KiB", 1536), ("10kB", 10_000), ("3MB", 3_000_000), ("7b", 7),
    ],
)  # fmt: skip
def test_sizes_are_written_as_people_write_them(text: str, size: int) -> None:
    """KiB, MiB, GiB and bare k, m, g are powers of 1024; kB, MB, GB powers of 1000 (as GNU coreutils has it)."""
    assert config.parse_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"), [("30", 30), ("1.5", 1.5), ("30s", 30), ("5m", 300), ("500ms", 0.5), ("1h", 3600), (".5", 0.5)]
)
def test_times_are_written_as_people_write_them(text: str, seconds: float) -> None:
    """A bare number is seconds."""
    assert config.parse_seconds(text) == pytest.approx(seconds)


@given(st.integers(0, 2**50))
def test_sizes_read_back(size: int) -> None:
    """What the help page shows is what the parser takes; a plain number of bytes is that number."""
    assert config.parse_bytes(size_text(size)) == size
    assert config.parse_bytes(str(size)) == size


@given(st.integers(0, 2**30), st.sampled_from([("k", 10), ("KiB", 10), ("m", 20), ("MiB", 20), ("g", 30), ("GiB", 30)]))
def test_a_suffix_multiplies(number: int, unit: tuple[str, int]) -> None:
    """Any whole number with a suffix is that many of the unit, exactly."""
    assert config.parse_bytes(f"{number}{unit[0]}") == number << unit[1]


@given(st.integers(1, 10**7))
def test_times_read_back(milliseconds: int) -> None:
    """What the help page shows is what the parser takes."""
    seconds = milliseconds / 1000
    assert config.parse_seconds(seconds_text(seconds)) == pytest.approx(seconds, rel=1e-5)


@given(st.text(max_size=40))
def test_no_text_breaks_a_parser(text: str) -> None:
    """Whatever is written: a value, or a ValueError that says what was expected."""
    for parser in (config.parse_bytes, config.parse_seconds, config.parse_count, config.parse_flag):
        said = ""
        try:
            assert parser(text) >= 0
        except ValueError as error:
            said = str(error)
        assert re.match("is not a|is neither|$", said)


@pytest.mark.parametrize("text", ["", "-1", "1e3", "0x10", "1_000", "1KiBs", "0.3b", "١٢", "nan", "inf", "1" * 65])
def test_what_is_no_size_is_refused(text: str) -> None:
    """Signs, exponents, other scripts' digits, parts of a byte: none of them is guessed at."""
    with pytest.raises(ValueError, match="is not a size"):
        config.parse_bytes(text)


# --- errors -------------------------------------------------------------------------------------------------


def failure(flags: dict[str, object], environ: dict[str, str], file: str | None = None) -> str:
    with pytest.raises(SettingsError) as caught:
        config.load(flags, environ, file)
    return str(caught.value)


def test_a_bad_value_is_said_with_its_setting_and_its_origin(tmp_path: Path) -> None:
    """The setting, the value, and whether it was a flag, a variable or which file."""
    assert failure({"write_high": "lots"}, {}) == (
        "write_high: 'lots' (from --write-high) is not a size: write bytes as 4096, 64KiB, 1MiB or 16k"
    )
    assert failure({}, {"RAWSTREAM_STALL_TIMEOUT": "soon"}).startswith(
        "stall_timeout: 'soon' (from RAWSTREAM_STALL_TIMEOUT) is not a time"
    )
    file = written(tmp_path, "port = 8.5\n")
    assert failure({}, {}, file) == f"{file}:1: port: 8.5 is not a whole number"
    assert failure({}, {"RAWSTREAM_LAB": "maybe"}) == "lab: 'maybe' (from RAWSTREAM_LAB) is neither true nor false"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("host = 1", "{file}:1: host: 1 is not text: put it in quotes"),
        ("port = true", "{file}:1: port: True is not a number"),
        ("port = []", "{file}:1: port: [] is not a number"),
        ("lab = 1", "{file}:1: lab: 1 must be true or false"),
        ("host = ''", "{file}:1: host: '' is empty"),
        ("uds = \"a\\u0000b\"", "{file}:1: uds: 'a\\x00b' contains NUL"),
        ("heartbeat = inf", "{file}:1: heartbeat must be a finite number, not inf"),
        ("port = -1", "{file}:1: port must be more than 0, not -1"),
    ],
)  # fmt: skip
def test_a_file_s_types_are_checked(tmp_path: Path, line: str, says: str) -> None:
    """TOML has types; a value of the wrong one is said as such."""
    file = written(tmp_path, line + "\n")
    assert failure({}, {}, file) == says.format(file=file)


def test_a_contradiction_names_where_both_sides_came_from() -> None:
    """Two settings that exclude each other may come from different places."""
    said = failure({"write_high": "1k"}, {"RAWSTREAM_WRITE_LOW": "2k"})
    assert "write_low (2048) must not exceed write_high (1024)" in said
    assert "write_high is from --write-high" in said
    assert "write_low is from RAWSTREAM_WRITE_LOW" in said


def test_an_unknown_key_of_a_file_is_an_error_that_suggests(tmp_path: Path) -> None:
    """A typing mistake in a file does not go unnoticed."""
    file = written(tmp_path, "stall-timeuot = 3\n")
    assert failure({}, {}, file) == f"{file}:1: there is no setting 'stall-timeuot'; did you mean stall_timeout?"
    assert failure({}, {}, written(tmp_path, "[x]\n")) == f"{file}:1: there is no setting 'x'"


def test_an_unknown_variable_is_a_warning_that_suggests() -> None:
    """The environment is shared, so a stranger there is told and passed over; others' variables are not looked at."""
    loaded = config.load({}, {"RAWSTREAM_STALL_TIMOUT": "3", "RAWSTREAM_API_KEY": "k", "PORT": "1", "RAWSTREAM_Q": "1"})
    assert loaded.settings == Settings()
    assert loaded.warnings == [
        "the environment has RAWSTREAM_Q, which is no setting",
        "the environment has RAWSTREAM_STALL_TIMOUT, which is no setting; did you mean RAWSTREAM_STALL_TIMEOUT?",
    ]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Not there, or not TOML: one line says which."""
    missing = str(tmp_path / "none.toml")
    assert failure({}, {}, missing) == f"cannot read {missing}: No such file or directory"
    assert "is not TOML" in failure({}, {}, written(tmp_path, "port: 3\n"))


def test_a_secret_is_never_said() -> None:
    """Not in an error, not in the settings' own text."""
    said = failure({"upstream_api_key": "sk-hidden\0"}, {})
    assert said == "upstream_api_key: the value (from --upstream-api-key) contains NUL"
    said = failure({}, {"RAWSTREAM_UPSTREAM_API_KEY": "sk-hidden\n"})
    assert said == (
        "upstream_api_key must be visible ASCII characters without spaces "
        "(upstream_api_key is from RAWSTREAM_UPSTREAM_API_KEY)"
    )
    settings = config.load({"upstream_api_key": "sk-hidden"}, {}).settings
    assert settings.upstream_api_key == "sk-hidden"
    assert "sk-hidden" not in repr(settings)


# --- the lines of a file ------------------------------------------------------------------------------------


def problems(folder: Path, text: str, environ: dict[str, str] | None = None) -> list[str]:
    """What is wrong with a file, each without the folder's name."""
    file = written(folder, text)
    examined = config.examine({}, environ or {}, file)
    assert (examined.loaded is None) == bool(examined.problems)
    return [problem.replace(str(folder) + "/", "") for problem in examined.problems]


GOOD: Final = """\
port = 8080

[[upstreams]]
name = "local"
url = "http://127.0.0.1:9301/v1"

[[upstreams]]
name = "cloud.2"
url = "https://api.example.com/v1"
models = [
    "gpt-*",  # whatever begins so
    "o3",
]
model = "gpt-x"
api_key_env = "CLOUD_KEY"
weight = 0.5
connect_timeout = "2s"
first_token_timeout = 30
idle_timeout = "500ms"
"""


def test_upstreams_are_read_from_the_file(tmp_path: Path) -> None:
    """Every key of a table, each written as settings are; what is not given is the global setting's."""
    loaded = config.load({}, {"CLOUD_KEY": "sk-cloud"}, written(tmp_path, GOOD))
    assert loaded.settings.upstreams == (
        UpstreamSettings(name="local", url="http://127.0.0.1:9301/v1"),
        UpstreamSettings(
            name="cloud.2",
            url="https://api.example.com/v1",
            models=("gpt-*", "o3"),
            model="gpt-x",
            api_key="sk-cloud",
            weight=0.5,
            connect_timeout=2.0,
            first_token_timeout=30.0,
            idle_timeout=0.5,
        ),
    )
    assert "sk-cloud" not in repr(loaded)


def readme_file() -> str:
    """The README's example of a file."""
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```toml\n(# rawstream\.toml\n.*?)^```", readme, re.DOTALL | re.MULTILINE)
    return str(block)


def test_the_readmes_file_is_taken_and_its_table_of_keys_is_whole(tmp_path: Path) -> None:
    settings = config.load({}, {"CLOUD_API_KEY": "sk-cloud"}, written(tmp_path, readme_file())).settings
    assert [(upstream.name, upstream.models, upstream.weight) for upstream in settings.upstreams] == [
        ("local", ("qwen3-8b", "llama-*"), 1.0),
        ("second", ("qwen3-8b",), 0.5),
        ("cloud", ("*",), 1.0),
    ]
    assert settings.upstreams[2].api_key == "sk-cloud"
    section = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    rows = section.partition("### Several upstreams")[2].partition("\n### ")[0].splitlines()
    told = {key for row in rows if row.startswith("| `") for key in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert told == {field.name for field in dataclasses.fields(UpstreamSettings)} | {"api_key_env", "api_key_file"}


def test_a_key_may_stand_in_a_file_beside_the_settings(tmp_path: Path) -> None:
    """``api_key_file`` is relative to the file that names it; the line's end is not a part of the key."""
    (tmp_path / "cloud.key").write_text("sk-filed\n")
    text = '[[upstreams]]\nname = "a"\nurl = "http://h/v1"\napi_key_file = "cloud.key"\n'
    assert config.load({}, {}, written(tmp_path, text)).settings.upstreams[0].api_key == "sk-filed"


NO_ASCII: Final = "the URL must be ASCII without spaces: in a path others are %C3%A9, in a host's name xn--…"


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ('url = "ftp://x"', "5: upstreams[0].url: the URL must begin with http:// or https:// and name a host"),
        ('url = "http://u:pw@x/v1"', "5: upstreams[0].url: the URL must not hold a user name or a password"),
        ('url = "http://x/v 1"', f"5: upstreams[0].url: {NO_ASCII}"),
        ('url = "http://b\u00fccher/v1"', f"5: upstreams[0].url: {NO_ASCII}"),
        ("url = 3", "5: upstreams[0].url: the value is not text: put it in quotes"),
        ('name = "a b"', "5: upstreams[0].name: must be 1 to 64 letters, digits, '.', '_' or '-', not 'a b'"),
        ("models = []", "5: upstreams[0].models: must name at least one model, and no empty one"),
        ('models = ["a", 1]', """5: upstreams[0].models: ['a', 1] must be a list of names: ["one", "other*"]"""),
        ('models = "a"', """5: upstreams[0].models: 'a' must be a list of names: ["one", "other*"]"""),
        ("weight = -1", "5: upstreams[0].weight: must be 0 or more, not -1.0"),
        ("weight = nan", "5: upstreams[0].weight: must be 0 or more, not nan"),
        ("weight = true", "5: upstreams[0].weight: True is not a number"),
        ("idle_timeout = 0", "5: upstreams[0].idle_timeout: must be more than 0, not 0.0"),
        ('idle_timeout = "soon"', "5: upstreams[0].idle_timeout: 'soon' is not a time: write seconds as 30, "
            "1.5 or 30s, or 500ms, 5m, 1h"),
        ("wieght = 1", "5: upstreams[0].wieght: there is no such key; did you mean weight?"),
        ('ca = "none.pem"', "5: upstreams[0].ca: cannot read certificates from '{folder}/none.pem': "
            "No such file or directory"),
        ('api_key = "sk-se cret"', "5: upstreams[0].api_key: must be visible ASCII characters without spaces"),
        ("api_key = 7", "5: upstreams[0].api_key: the value is not text: put it in quotes"),
        ('api_key_env = "NO_SUCH"', "5: upstreams[0].api_key_env: the environment has no variable of the name "
            "'NO_SUCH'"),
        ('api_key_env = "sk-secret"', "5: upstreams[0].api_key_env: the environment has no variable of that name"),
        ('api_key_env = "BAD"', "5: upstreams[0].api_key_env: must be visible ASCII characters without spaces"),
        ('api_key_file = "no.key"', "5: upstreams[0].api_key_file: cannot read no.key: No such file or directory"),
        ('api_key = "a"\napi_key_env = "B"', "6: upstreams[0].api_key_env: excludes api_key: there is one key"),
        ("[upstreams.more]\na = 1", "5: upstreams[0].more: there is no such key; did you mean model?"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_upstream_is_said_with_its_line(tmp_path: Path, keys: str, says: str) -> None:
    """The file, the line, which upstream, which key; never a key's value, nor what may hold one."""
    given = keys.partition(" = ")[0]
    others = {"name": 'name = "a"', "url": 'url = "http://h/v1"'}
    rest = [line for key, line in others.items() if key != given]
    text = "[[upstreams]]\n" + "\n".join(rest) + "\n# more\n" + "\n" * (2 - len(rest)) + keys + "\n"
    found = problems(tmp_path, text, {"BAD": "sk-se\ncret"})
    assert found == ["rawstream.toml:" + says.replace("{folder}/", "")]
    assert "cret" not in says


def test_everything_that_is_wrong_is_said_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = """\
port = 8.5
stall_timuot = 3
remarks = \"\"\"
[[upstreams]]
\"\"\"
heartbeat = [
  1,
  2,
]

[[upstreams]]
name = "one"
url = "http://one/v1"

[[upstreams]]
name = "one"
models = [
  "x",
  "",
]
"""
    assert problems(tmp_path, text) == [
        "rawstream.toml:1: port: 8.5 is not a whole number",
        "rawstream.toml:2: there is no setting 'stall_timuot'; did you mean stall_timeout?",
        "rawstream.toml:3: there is no setting 'remarks'",
        "rawstream.toml:6: heartbeat: [1, 2] is not a number",
        "rawstream.toml:15: upstreams[1]: url is missing",
        "rawstream.toml:17: upstreams[1].models: must name at least one model, and no empty one",
    ]
    with pytest.raises(SettingsError) as caught:
        config.load({}, {}, str(tmp_path / "rawstream.toml"))
    assert len(str(caught.value).splitlines()) == 6


def test_two_upstreams_of_one_name_are_refused(tmp_path: Path) -> None:
    text = '[[upstreams]]\nname = "a"\nurl = "http://h/v1"\n' * 2
    assert problems(tmp_path, text) == ["rawstream.toml:5: upstreams[1].name: 'a' is the name of upstreams[0] already"]
    upstream = UpstreamSettings(name="a", url="http://h/v1")
    with pytest.raises(ValueError, match="two are called 'a'"):
        Settings(upstreams=(upstream, upstream))


@pytest.mark.parametrize("text", ["upstreams = 3", 'upstreams = ["http://x"]', "[upstreams]\nurl = 'x'"])
def test_upstreams_that_are_no_tables_are_refused(tmp_path: Path, text: str) -> None:
    (said,) = problems(tmp_path, text)
    assert said == "rawstream.toml:1: upstreams: must be tables: write [[upstreams]] above the keys of each"


def test_tokens_come_from_one_place(tmp_path: Path) -> None:
    """``--upstream`` or ``source`` beside ``[[upstreams]]`` is refused, and so is a key that would go to nobody."""
    file = written(tmp_path, '\n[[upstreams]]\nname = "a"\nurl = "http://h/v1"\n')
    for name, value in (("upstream", "http://x/v1"), ("source", "a:b")):
        assert failure({name: value}, {}, file) == (
            f"{name} and upstreams exclude each other: tokens come from one place "
            f"(upstreams is from {file}:2, {name} is from --{name})"
        )
    assert "upstream_api_key goes with upstream" in failure({}, {"RAWSTREAM_UPSTREAM_API_KEY": "sk-x"}, file)


def test_a_file_that_is_not_toml_is_said_with_its_line(tmp_path: Path) -> None:
    (said,) = problems(tmp_path, "port = 1\nhost = 'a\nlab = true\n")
    assert said.startswith("rawstream.toml:2: is not TOML: ")
    (tmp_path / "rawstream.toml").write_bytes(b"port = 1\n\nhost = '\xff'\n")
    assert config.examine({}, {}, str(tmp_path / "rawstream.toml")).problems == [
        f"{tmp_path}/rawstream.toml:3: is not TOML: it is not UTF-8"
    ]


_VALUES = st.sampled_from(
    ["1", "'x'", "[\n 1,\n\n 2 ]", '"""\na = 1\n[b]\n"""', "{ a = 1, b = 2 }", "[ [1],\n# no\n [2] ]", "1979-05-27"]
)
_BETWEEN = st.sampled_from(["", "\n", "# a comment = 1\n", "\n\n  # [x]\n"])


@given(st.lists(st.tuples(_BETWEEN, st.sampled_from(["", "[t{}]\n", "[[many]]\n"]), _VALUES), max_size=12))
def test_every_key_knows_the_line_where_it_begins(entries: list[tuple[str, str, str]]) -> None:
    """Whatever stands before it: values of many lines, comments, tables, text that looks like TOML."""
    text = ""
    expected: dict[tuple[str | int, ...], int] = {}
    inside: tuple[str | int, ...] = ()
    many = 0
    for index, (between, header, value) in enumerate(entries):
        text += between
        if header:
            inside = ("many", many) if "many" in header else (f"t{index}",)
            many += "many" in header
            expected[inside] = text.count("\n") + 1
            text += header.format(index)
        expected[(*inside, f"k{index}")] = text.count("\n") + 1
        text += f"k{index} = {value}\n"
    tomllib.loads(text)
    found = lines_of(text.split("\n"))
    assert {path: found[path] for path in expected} == expected


def test_a_long_list_costs_its_length_and_not_its_square(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file may name thousands of keys, one a line."""
    parsed = 0
    loads = tomllib.loads

    def counting(text: str) -> dict[str, object]:
        nonlocal parsed
        parsed += len(text)
        return loads(text)

    monkeypatch.setattr(tomllib, "loads", counting)
    text = "a = [\n" + '  "one of many",\n' * 2000 + '  "the last"  # of them,\n]\nb = 1  # the end,\nc = 2\n'
    assert lines_of(text.split("\n")) == {("a",): 1, ("b",): 2004, ("c",): 2005}
    assert parsed < 4 * len(text)


# --- the page that explains them ----------------------------------------------------------------------------


def test_the_help_page_names_every_setting_with_its_default_and_group() -> None:
    """Made of the same table, so nothing can be missing from it."""
    result = CliRunner().invoke(rawstream_command, ["serve", "--help"])
    assert result.exit_code == 0
    page = result.output
    assert page.index("Examples:") < page.index("--host")
    for name, field in FIELDS.items():
        assert f"\n  {config.flag(name)} " in page
        assert f"\n{field.metadata['group']}:\n" in page
        default = default_text(field)
        assert default is None or f"[default: {default}]" in re.sub(r"\s+", " ", page)
    assert max(map(len, page.splitlines())) <= 80


def test_only_what_exists_is_listed() -> None:
    """The commands that are there, each once, in order."""
    result = CliRunner().invoke(rawstream_command, ["--help"])
    listed = re.findall(r"^  ([a-z]+) ", result.output.partition("Commands:")[2], re.MULTILINE)
    assert listed == sorted(COMMANDS)
    assert {"chat", "check", "lab", "serve"} <= set(listed)


# --- what a stalled client costs ----------------------------------------------------------------------------


def test_raising_a_bound_says_what_it_costs() -> None:
    """By default nothing is said; a bound that was raised is told with what will be held because of it."""
    default = Settings()
    lowat = (default.notsent_lowat, "notsent_lowat=4KiB")
    assert held_warning(default, lowat) is None
    said = held_warning(dataclasses.replace(default, write_high=1 << 20), lowat)
    assert said == (
        "up to 1.0 MiB in the transport (write_high=1MiB) + 4.0 KiB in the kernel (notsent_lowat=4KiB) "
        "will be held for each stalled client"
    )


def test_a_system_without_a_low_water_mark_says_so() -> None:
    """Where the kernel's part has no bound, nothing pretends that it has."""
    said = held_warning(Settings(), (None, "this system has no TCP_NOTSENT_LOWAT; sndbuf bounds it"))
    assert said is not None
    assert "megabytes in the kernel (this system has no TCP_NOTSENT_LOWAT; sndbuf bounds it)" in said


def test_the_kernel_s_part_follows_the_settings() -> None:
    """A low-water mark bounds it, else the send buffer, which the kernel doubles; a Unix socket has only that."""
    assert kernel_takes(Settings(notsent_lowat=8192))[0] == 8192
    assert kernel_takes(Settings(notsent_lowat=0)) == (None, "notsent_lowat=0; sndbuf bounds it")
    assert kernel_takes(Settings(notsent_lowat=0, sndbuf=10_000))[0] == 20_000
    assert kernel_takes(Settings(uds="/a", sndbuf=10_000))[0] == 20_000
    unix = kernel_takes(Settings(uds="/a"))[0]
    assert unix is not None
    assert unix > 65536


# --- [[users]] ----------------------------------------------------------------------------------------------

_KEY, _HASH = new_key()


def test_users_are_read_with_all_their_keys(tmp_path: Path) -> None:
    text = (
        f'[[users]]\nname = "ada"\nkeys = ["{_HASH}"]\nmodels = ["a*"]\nmax_streams = 2\n'
        'requests_per_minute = 3\ntokens_per_minute = 4\ntokens_per_day = "5"\n\n[[users]]\nname = "bob@example.org"\n'
    )
    loaded = config.load({}, {}, written(tmp_path, text))
    assert loaded.settings.users == (
        UserSettings(
            name="ada",
            keys=(_HASH,),
            models=("a*",),
            max_streams=2,
            requests_per_minute=3,
            tokens_per_minute=4,
            tokens_per_day=5,
        ),
        UserSettings(name="bob@example.org"),
    )
    assert loaded.origins["users"].endswith("rawstream.toml:1")


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ("nane = 'a'", "1: users[0]: name is missing"),
        ("name = 'a b'", "2: users[0].name: must be 1 to 128 letters"),
        ("name = 'requests:a'", "2: users[0].name: must be 1 to 128 letters"),
        ("name = 'a'\ntokens_per_dya = 1", "3: users[0].tokens_per_dya: there is no such key; did you mean tokens_"),
        ("name = 'a'\nmax_streams = 0", "3: users[0].max_streams: must be at least 1, not 0"),
        ("name = 'a'\nmax_streams = 1.5", "3: users[0].max_streams: 1.5 is not a whole number"),
        ("name = 'a'\nmodels = 'x'", "3: users[0].models: 'x' must be a list of names"),
        ("name = 'a'\nmodels = []", "3: users[0].models: must name at least one model"),
        (f"name = 'a'\nkeys = ['{_KEY}']", "3: users[0].keys: must be what 'rawstream key new' prints for the file"),
        (f"name = 'a'\nkeys = '{_KEY}'", "3: users[0].keys: the value must be a list"),
        (f"name = 'a'\nkeys = ['{_HASH}', '{_HASH}']", "3: users[0].keys: '{id}' is there twice"),
        ("name = '*'", "1: users: '*' is whom a proxy names, which needs user_header"),
        (f"name = '*'\nkeys = ['{_HASH}']", "3: users[0].keys: '*' is whom a proxy names; it has no keys"),
    ],
    ids=range(13),
)
def test_what_is_wrong_with_a_user_is_said_with_its_line_and_without_its_key(
    tmp_path: Path, keys: str, says: str
) -> None:
    said = problems(tmp_path, f"[[users]]\n{keys}\n")
    assert said[0].startswith("rawstream.toml:" + says.replace("{id}", key_id(_KEY)))
    for one in said:
        assert _KEY not in one
        assert _HASH not in one


def test_a_name_and_a_key_are_one_users(tmp_path: Path) -> None:
    table = '[[users]]\nname = "{}"\nkeys = ["{}"]\n'
    other = new_key()[1]
    assert problems(tmp_path, table.format("a", _HASH) + table.format("a", other)) == [
        "rawstream.toml:5: users[1].name: 'a' is the name of users[0] already"
    ]
    assert problems(tmp_path, table.format("a", _HASH) + table.format("b", _HASH)) == [
        f"rawstream.toml:6: users[1].keys: '{key_id(_KEY)}' is the id of a key of users[0] already"
    ]
    ada = UserSettings(name="a", keys=(_HASH,))
    with pytest.raises(ValueError, match="two are called 'a'"):
        Settings(users=(ada, ada))
    with pytest.raises(ValueError, match="is there twice"):
        Settings(users=(ada, dataclasses.replace(ada, name="b")))


def test_all_that_is_wrong_with_users_and_upstreams_is_said_at_once(tmp_path: Path) -> None:
    text = '[[users]]\nmax_streams = 0\n\n[[upstreams]]\nname = "a"\n\n[[users]]\nkeys = 1\n'
    assert problems(tmp_path, text) == [
        "rawstream.toml:1: users[0]: name is missing",
        "rawstream.toml:2: users[0].max_streams: must be at least 1, not 0",
        "rawstream.toml:4: upstreams[0]: url is missing",
        "rawstream.toml:7: users[1]: name is missing",
        'rawstream.toml:8: users[1].keys: the value must be a list of names: ["one", "other*"]',
    ]


@pytest.mark.parametrize("text", ["users = 3", '[users]\nname = "a"'])
def test_users_that_are_no_tables_are_refused(tmp_path: Path, text: str) -> None:
    (said,) = problems(tmp_path, text)
    assert said == "rawstream.toml:1: users: must be tables: write [[users]] above the keys of each"


def test_a_list_that_makes_no_sense_is_said_with_its_origin(tmp_path: Path) -> None:
    assert problems(tmp_path, 'cors_origins = "app.example.com"\n') == [
        "rawstream.toml:1: cors_origins has 'app.example.com', which is no origin: write scheme://host or "
        "scheme://host:port, without a path"
    ]


def test_the_readmes_users_are_a_file_that_is_right(tmp_path: Path) -> None:
    readme = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```toml\n(# users\.toml\n.*?)^```", readme, re.DOTALL | re.MULTILINE)
    users = config.load({}, {}, written(tmp_path, block)).settings.users
    assert [user.name for user in users] == ["ada", "nightly-job"]
    table = readme.partition("### Users")[2].partition("\n### ")[0]
    told = {name for row in re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert told == {field.name for field in dataclasses.fields(UserSettings)}
