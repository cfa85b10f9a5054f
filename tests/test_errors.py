import ast
import re
from pathlib import Path

import pytest
from parsed_source import parsed

from trilithon import errors
from trilithon.errors import EngineError, RunError, TrilithonError, UserError


def drawn_tree() -> dict[str, str | None]:
    """Class → its parent, from the drawing at the top of the module."""
    tree: dict[str, str | None] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    ((?:│   |    )*(?:[├└]── )?)([A-Z]\w+) ", line)
        if found:
            depth = len(found[1]) // 4
            above = [*above[:depth], found[2]]
            tree[found[2]] = above[depth - 1] if depth else None
    return tree


def classes() -> dict[str, type[BaseException]]:
    return {name: error for name, error in vars(errors).items() if getattr(error, "__module__", "") == errors.__name__}


def elsewhere() -> dict[str, str]:
    """Error classes of other modules with their parents: each is in the drawing, with its module."""
    parents = {}
    root = Path(errors.__file__).parent
    for path in set(root.rglob("*.py")) - {Path(errors.__file__)}:
        for node in ast.walk(parsed(path)):
            bases = [base.id for base in getattr(node, "bases", ()) if isinstance(base, ast.Name)]
            if isinstance(node, ast.ClassDef) and set(bases) & classes().keys():
                parents[node.name] = bases[0]
                module = ".".join(path.relative_to(root).with_suffix("").parts)
                assert re.search(rf"{node.name} .*\({re.escape(module)}\)", errors.__doc__ or "")
    return parents


def test_the_tree_that_is_drawn_is_the_tree_there_is():
    real = {
        name: None if name == "TrilithonError" else error.__bases__[0].__name__ for name, error in classes().items()
    }
    assert drawn_tree() == real | elsewhere()
    assert all(len(error.__bases__) == 1 for error in classes().values())


def test_the_exit_codes_that_are_drawn_are_those_there_are():
    drawn = dict(re.findall(r"(\w+Error|Interrupted) +exit code (\d+)", errors.__doc__ or ""))
    assert drawn == {"TrilithonError": "1", "UserError": "2", "Interrupted": "130"}
    assert {name: str(classes()[name].exit_code) for name in drawn} == drawn  # type: ignore[attr-defined]


def test_all_is_every_class_sorted():
    assert errors.__all__ == sorted(classes())


def test_kinds_of_failed_runs_differ():
    kinds = [each.kind for each in classes().values() if issubclass(each, RunError)]
    assert len(set(kinds)) == len(kinds) == 7


def test_a_failed_run_carries_what_is_known_of_it():
    error = RunError("it ended", cause="exit code 3", advice="look", last_words=("one", "two"))
    assert (str(error), error.cause, error.advice, error.last_words) == (
        "it ended",
        "exit code 3",
        "look",
        ("one", "two"),
    )
    refused = EngineError("no", status=503, cause="refused")
    assert (refused.status, refused.kind, refused.last_words) == (503, "refused", ())
    assert not isinstance(refused, UserError)
    with pytest.raises(TrilithonError, match="no"):
        raise refused
