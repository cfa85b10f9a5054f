"""A package imports only packages above it, and no module takes part in a circle of imports."""

import ast
import gc
from pathlib import Path

import pytest
from parsed_source import parsed

import trilithon

ROOT = Path(trilithon.__file__).parent
# From the top: each may import what stands before it. Those in one row never import each other.
FLOORS = [
    {"errors", "units", "settings", "files", "packages", "tables", "terminal", "language", "suggestions"},
    {"board"},
    {"models"},
    {"engines"},
    {"measure"},
    {"runtime"},
    {"results"},
    {"estimate"},
    {"bench", "serve"},
    {"fleet", "tune"},
    {"web"},
    {"cli"},
]
TOP = {"trilithon", "trilithon.__main__"}
# With `__init__.py`.
MOST_MODULES = 16
# Classes that carry one name in two modules on purpose, each with the reason.
PAIRS: set[str] = set()
# Packages with folders of families that depend on each other in one direction alone.
FAMILY_PACKAGES = {"bench", "board", "cli", "engines", "models", "results", "runtime", "web"}
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def _module(path: Path) -> str:
    parts = ("trilithon", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


def _imports(path: Path) -> set[str]:
    """Every module of Trilithon that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("trilithon.")}


def _family(name: str) -> str:
    """The folder of a module within its package; a module that lies in none stands for itself."""
    return ".".join(name.split(".")[:3])


FILES = {_module(path): path for path in sorted(ROOT.rglob("*.py"))}


def test_every_package_has_a_floor() -> None:
    packages = {name.split(".")[1] for name in FILES if name not in TOP}
    assert packages <= set(FLOOR)


def test_imports_run_downward() -> None:
    upward = []
    for name, path in FILES.items():
        if name in TOP:
            continue
        own = name.split(".")[1]
        for imported in _imports(path):
            other = imported.split(".")[1]
            if other == own or other == "__version__":
                continue
            if FLOOR[other] >= FLOOR[own] and not FLOOR[other] == FLOOR[own] == 0:
                upward.append(f"{name} imports {imported}")
    assert upward == []


def test_no_circle_of_imports() -> None:
    graph = {name: {each for each in _imports(path) if each in FILES} - {name} for name, path in FILES.items()}
    while graph:
        leaves = {name for name, needs in graph.items() if not needs & graph.keys()}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {name: needs for name, needs in graph.items() if name not in leaves}


@pytest.mark.parametrize("package", sorted(FAMILY_PACKAGES))
def test_no_circle_among_the_folders_of_a_package(package: str) -> None:
    """A family is a folder, and what one folder imports from another counts for the whole folder."""
    graph: dict[str, set[str]] = {}
    for name, path in FILES.items():
        if name.startswith(f"trilithon.{package}."):
            own = _family(name)
            others = {_family(imported) for imported in _imports(path) if imported in FILES}
            graph.setdefault(own, set()).update(other for other in others if other.split(".")[1] == package)
            graph[own].discard(own)
    while graph:
        leaves = {family for family, needs in graph.items() if not needs & graph.keys()}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {family: needs for family, needs in graph.items() if family not in leaves}


def test_an_engine_never_imports_its_child() -> None:
    """The child process loads native libraries and servers; the engine's own modules run in the parent."""
    offenders = [
        f"{name} imports {imported}"
        for name, path in FILES.items()
        if ".child" not in name
        for imported in _imports(path)
        if ".child" in imported
    ]
    assert offenders == []


def test_no_folder_is_flat_and_large() -> None:
    sizes = {folder: len(list(folder.glob("*.py"))) for folder in {path.parent for path in FILES.values()}}
    assert {str(folder): size for folder, size in sizes.items() if size > MOST_MODULES} == {}


def test_a_class_name_means_one_thing() -> None:
    modules: dict[str, list[str]] = {}
    for name, path in FILES.items():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                modules.setdefault(node.name, []).append(name)
    assert {name: places for name, places in modules.items() if len(places) > 1 and name not in PAIRS} == {}


def test_nothing_outside_its_own_module_names_an_engine() -> None:
    """No `if engine == …`: the table, the engines' own modules and texts for people are the only places."""
    from trilithon.engines.table import ENGINES

    offenders = []
    for name, path in FILES.items():
        if name.startswith("trilithon.engines."):
            continue
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Compare):
                constants = {leaf.value for leaf in ast.walk(node) if isinstance(leaf, ast.Constant)}
                if constants & set(ENGINES):
                    offenders.append(f"{name}:{node.lineno}")
    assert offenders == []


def test_a_finalizer_that_parses_spoils_no_source() -> None:
    class Cycle:
        def __init__(self) -> None:
            self.cycle = self

        def __del__(self) -> None:
            _parse_below(30)

    before = gc.get_threshold()
    gc.set_threshold(50)
    try:
        for _ in range(3):
            Cycle()
            assert parsed(Path(__file__)).body
    finally:
        gc.set_threshold(*before)
        gc.collect()  # the last one's finalizer must not run while pytest parses a file


def _parse_below(frames: int) -> None:
    if frames:
        _parse_below(frames - 1)
    else:
        ast.parse("1")
