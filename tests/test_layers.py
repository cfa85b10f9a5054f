"""A package imports only packages above it, and no module takes part in a circle of imports."""

import ast
from pathlib import Path

import trilithon

ROOT = Path(trilithon.__file__).parent
# From the top: each may import what stands before it. Those in one row never import each other.
FLOORS = [
    {"errors", "units", "settings"},
    {"board"},
    {"models"},
    {"engines"},
    {"children"},
    {"measure"},
    {"runtime"},
    {"results"},
    {"bench", "serve"},
    {"web"},
    {"cli"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def _module(path: Path) -> str:
    parts = ("trilithon", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


def _imports(path: Path) -> set[str]:
    """Every module of Trilithon that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("trilithon.")}


FILES = {_module(path): path for path in sorted(ROOT.rglob("*.py"))}


def test_every_package_has_a_floor() -> None:
    packages = {name.split(".")[1] for name in FILES if name != "trilithon"}
    assert packages <= set(FLOOR)


def test_imports_run_downward() -> None:
    upward = []
    for name, path in FILES.items():
        if name == "trilithon":
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


def test_nothing_outside_its_own_module_names_an_engine() -> None:
    """No `if engine == …`: the table, the engines' own modules and texts for people are the only places."""
    from trilithon.engines.table import ENGINES

    offenders = []
    for name, path in FILES.items():
        if name.startswith(("trilithon.engines.", "trilithon.children.")):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                constants = {leaf.value for leaf in ast.walk(node) if isinstance(leaf, ast.Constant)}
                if constants & set(ENGINES):
                    offenders.append(f"{name}:{node.lineno}")
    assert offenders == []
