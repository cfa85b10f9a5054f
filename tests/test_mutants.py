"""The mutation script: the faults that it makes, and that its patterns name modules that are there."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


def script(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # its dataclasses look themselves up there
    specification.loader.exec_module(module)
    return module


mutants_of = script("_mutants").mutants_of


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("x = a < b", {"x = a <= b"}),
        ("x = a  not in  b", {"x = a  in  b"}),
        ("x = (a) is None", {"x = (a) is not None"}),
        ("x = a and b or c", {"x = a or b or c", "x = a and b and c"}),
        ("x = not a", {"x = a"}),
        ("x = é + b", {"x = é - b"}),
        ("x = 2 ** b", {"x = 3 ** b", "x = 2 * b"}),
        ("x = 0.02", {"x = 0.2"}),
        ("x = True", {"x = False"}),
        ("x = a if b else c", {"x = a if not (b) else c"}),
        ("x = [a for a in b if a]", {"x = [a for a in b if not (a)]"}),
        ("x += a", {"x -= a"}),
        ("x = min(a, b)", {"x = max(a, b)"}),
        ("x = sorted(a, key=b)", {"x = list(a)"}),
        ("x = f(a, b=c)", set()),
        ("f(a,  b)", {"f(b,  a)", "pass"}),
        ("x.a = b", set()),
        ("def f(): x.a = b", {"def f(): pass"}),
        ("def f(a: x[1] = 2): return a", {"def f(a: x[1] = 3): return a", "def f(a: x[1] = 2): return None"}),
        ("for a in b: break", {"for a in b: continue"}),
        ('x = f"{a + b:>3}"', set()),
        ("assert a < b", set()),
        ("__all__ = [1]", set()),
        ("with suppress(a, b): f()", {"with suppress(a, b): pass"}),
        ("def f(): return False", {"def f(): return True"}),
    ],
)
def test_mutants_of_a_line(line: str, expected: set[str]) -> None:
    found = mutants_of("m.py", f"# é\n{line}\n")
    assert {mutant.text.splitlines()[1] for mutant in found} == expected
    assert all((mutant.line, mutant.first, mutant.last) == (2, 2, 2) for mutant in found)


def test_a_mutant_knows_its_statement() -> None:
    text = "def f(a):\n    if (\n        a < 1\n    ):\n        return a\n"
    boundary = next(mutant for mutant in mutants_of("m.py", text) if "<=" in mutant.text)
    assert (boundary.line, boundary.first, boundary.last, boundary.at_import) == (3, 2, 4, False)
    assert boundary.diff == "-        a < 1\n+        a <= 1"


def test_every_pattern_names_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    mutate = script("mutate")
    assert all(mutate.targets([pattern]) for pattern in mutate.TARGETS)
    assert all((ROOT / folder).is_dir() for folder in mutate.TESTS)
