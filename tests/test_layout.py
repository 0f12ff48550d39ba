"""The layout is kept by reading the source: floors, cycles, sizes, and what may not be in which room."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "rawstream"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

NOUNS = {"model", "errors", "settings"}
FLOORS = {"wire": 1, "flow": 2, "sources": 3, "replay": 3, "limits": 3, "server": 4, "lab": 5, "doctor": 5}
TOP = 6
"""``cli.py``, ``__init__.py`` and the rest of the public API."""
ALL_BELOW = {*FLOORS}
MAY_KNOW = {
    "wire": set[str](),
    "flow": set[str](),
    "sources": {"wire", "flow"},
    "replay": set[str](),
    "limits": set[str](),
    "server": ALL_BELOW - {"lab", "doctor"},
    "lab": ALL_BELOW - {"doctor"},
    "doctor": {"wire", "flow", "sources", "limits"},
}
"""Rooms that a room may import from, besides itself and the nouns."""


def room_of(module: str) -> str:
    """``"wire"`` for ``rawstream.wire.sse``, ``"model"`` for ``rawstream.model``, ``"top"`` for the public API."""
    parts = module.split(".")
    if len(parts) > 1 and (parts[1] in FLOORS or parts[1] in NOUNS):
        return parts[1]
    return "top"


def floor_of(module: str) -> int:
    room = room_of(module)
    return 0 if room in NOUNS else FLOORS.get(room, TOP)


def imports(module: str, path: Path) -> set[str]:
    """Full names of all modules imported anywhere in ``path``, under ``TYPE_CHECKING`` and in functions too."""
    found: set[str] = set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            for alias in node.names:
                name = f"{base}.{alias.name}"
                found.add(name if name in MODULES else base)
    return found


IMPORTS = {module: imports(module, path) for module, path in MODULES.items()}
OURS = {module: {name for name in names if name in MODULES} for module, names in IMPORTS.items()}


def test_every_module_has_a_floor() -> None:
    """A new room is named in the design before anything lives in it."""
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert rooms <= FLOORS.keys() | NOUNS | {"cli"}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_strictly_downwards(module: str) -> None:
    room = room_of(module)
    for imported in OURS[module]:
        other = room_of(imported)
        if other == room:
            continue
        assert floor_of(imported) < floor_of(module), f"{module} imports {imported}, which is not below it"
        if room != "top":
            assert other in NOUNS | MAY_KNOW.get(room, set()), f"{module} may know nothing of {other}"


def test_no_two_modules_import_each_other() -> None:
    """Not in a circle of any length, and not under ``TYPE_CHECKING`` either."""
    finished: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        assert module not in path, " → ".join([*path[path.index(module) :], module])
        if module not in finished:
            for imported in sorted(OURS[module] - {module}):
                visit(imported, [*path, module])
            finished.add(module)

    for module in MODULES:
        visit(module, [])


@pytest.mark.parametrize("module", MODULES)
def test_no_module_is_over_400_lines(module: str) -> None:
    assert len(MODULES[module].read_text().splitlines()) <= 400


@pytest.mark.parametrize("module", [name for name in MODULES if room_of(name) == "wire"])
def test_the_wire_does_no_io_and_has_no_clock(module: str) -> None:
    forbidden = {"asyncio", "time", "socket", "logging", "select", "ssl", "threading", "datetime", "uvloop"}
    if module == "rawstream.wire.tls":
        forbidden.remove("ssl")  # for its memory buffers
    assert not {name.split(".")[0] for name in IMPORTS[module]} & forbidden


@pytest.mark.parametrize("module", [name for name in MODULES if room_of(name) in ("flow", "wire", "limits")])
def test_nothing_is_left_out_of_coverage_where_it_matters(module: str) -> None:
    assert "pragma" + ": no cover" not in MODULES[module].read_text()


@pytest.mark.parametrize("module", MODULES)
def test_nothing_sleeps_on_the_event_loops_thread(module: str) -> None:
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "sleep":
            assert ast.unparse(node.func) == "asyncio.sleep", f"{module}:{node.lineno}"


def test_the_bench_knows_the_public_api_alone() -> None:
    """A benchmark that reaches inside would measure something that no user has."""
    public = ast.literal_eval(
        next(
            node.value
            for node in ast.parse(MODULES["rawstream"].read_text()).body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        )
    )
    for path in sorted((ROOT / "bench").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names if alias.name.split(".")[0] == "rawstream"}
                assert names <= {"rawstream"}, f"{path.name}:{node.lineno}"
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rawstream":
                assert node.module == "rawstream", f"{path.name}:{node.lineno}"
                assert {alias.name for alias in node.names} <= set(public), f"{path.name}:{node.lineno}"


def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.decode().split("\0") if name]


def test_no_file_names_the_machine_it_was_written_on() -> None:
    somebodys = re.compile(rb"(?<![\w.])/(?:work|root|home/[a-z]\w*|Users/[A-Za-z]\w*)/")
    for path in tracked_files():
        if path.is_file():
            found = somebodys.search(path.read_bytes())
            assert found is None, f"{path.relative_to(ROOT)}: {found.group().decode() if found else ''}"
