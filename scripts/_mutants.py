"""The mutants of a source file: each is the file with one small fault in it, of a kind that people make."""

import ast
import difflib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Mutant", "mutants_of"]

# An operator and what takes its place: a boundary for an order, the opposite for the rest.
_OPERATORS = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "/"),
    ast.Mod: ("%", "*"),
    ast.Pow: ("**", "*"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
    ast.BitOr: ("|", "&"),
    ast.BitAnd: ("&", "|"),
}
_FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any"}
_SYMMETRIC = ("min", "max", "suppress")  # the order of their arguments does not matter
_CONDITIONS = (ast.If, ast.While, ast.IfExp)
_Edit = tuple[int, int, str]  # from this byte to that one, and what stands there instead


@dataclass(frozen=True, slots=True)
class Mutant:
    """`first` to `last` are the lines of the statement that it changes, and `line` the one with the change.
    `at_import` says that the statement runs when the module is imported."""

    path: str
    line: int
    first: int
    last: int
    at_import: bool
    text: str
    diff: str


def mutants_of(path: str, text: str) -> list[Mutant]:
    """All of them in the order of the file, each once. None in annotations, decorators, assertions and f-strings."""
    source, tree = text.encode(), ast.parse(text)
    finder = _Finder(source)
    finder.visit(tree)
    mutants = {}
    for statement, at_import, (start, end, new) in finder.edits:
        changed = (source[:start] + new.encode() + source[end:]).decode()
        if changed not in mutants and _is_other_program(changed, tree):
            line = source.count(b"\n", 0, start) + 1
            first, last = _lines(statement)
            mutants[changed] = Mutant(path, line, first, last, at_import, changed, _diff(text, changed))
    return list(mutants.values())


def _is_other_program(changed: str, tree: ast.Module) -> bool:
    try:
        return ast.dump(ast.parse(changed)) != ast.dump(tree)
    except SyntaxError:
        return False


def _lines(statement: ast.stmt) -> tuple[int, int]:
    """Of a compound statement, those before its body."""
    body = getattr(statement, "body", None)
    last = body[0].lineno - 1 if body else statement.end_lineno or statement.lineno
    return statement.lineno, max(last, statement.lineno)


def _diff(before: str, after: str) -> str:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    return "\n".join(line for line in lines if line[0] in "+-" and not line.startswith(("---", "+++")))


class _Finder(ast.NodeVisitor):
    def __init__(self, source: bytes):
        self.edits: list[tuple[ast.stmt, bool, _Edit]] = []
        self._source = source
        self._starts = list(itertools.accumulate(map(len, source.splitlines(keepends=True)), initial=0))
        self._statement: ast.stmt = ast.Pass()
        self._functions: list[str] = []

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.JoinedStr | ast.Assert | ast.Import | ast.ImportFrom) or _is_all(node):
            return
        before = self._statement
        if isinstance(node, ast.stmt):
            self._statement = node
        for edit in self._changes(node):
            self.edits.append((self._statement, not self._functions, edit))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            self._visit_function(node)
        else:
            for child in _code_below(node):
                self.visit(child)
        self._statement = before

    def _visit_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for default in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
            self.visit(default)
        self._functions.append(node.name)
        for statement in node.body:
            self.visit(statement)
        self._functions.pop()

    def _changes(self, node: ast.AST) -> Iterator[_Edit]:
        match node:
            case ast.Compare(left=left, ops=ops, comparators=others):
                yield from self._operators([left, *others], ops)
            case ast.BoolOp(op=op, values=values):
                yield from self._operators(values, [op] * (len(values) - 1))
            case ast.BinOp(left=left, op=op, right=right):
                yield from self._operators([left, right], [op])
            case ast.AugAssign(target=target, op=op, value=value):
                yield from self._operators([target, value], [op])
            case ast.UnaryOp(op=ast.Not()):
                start, _ = self._span(node)
                yield start, start + len("not "), ""
            case ast.Constant(value=bool() | int() | float() as value):
                yield *self._span(node), repr(_other_constant(value))
            case ast.Call():
                yield from self._calls(node)
            case _:
                yield from self._statements(node)
        yield from self._conditions(node)

    def _operators(self, operands: Sequence[ast.expr], operators: Sequence[ast.AST]) -> Iterator[_Edit]:
        for left, right, operator in zip(operands, operands[1:], operators, strict=False):
            if type(operator) in _OPERATORS:
                old, new = _OPERATORS[type(operator)]
                (_, start), (end, _) = self._span(left), self._span(right)
                token = re.search(re.escape(old).replace(r"\ ", r"\s+").encode(), self._source[start:end])
                if token:
                    yield start + token.start(), start + token.end(), new

    def _calls(self, node: ast.Call) -> Iterator[_Edit]:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name in _FUNCTIONS:
            yield *self._span(node.func), _FUNCTIONS[name]
        if name == "sorted":
            yield *self._span(node), f"list({self._text(node.args[0])})"
        symmetric = name in _SYMMETRIC or any(isinstance(argument, ast.Starred) for argument in node.args[:2])
        if len(node.args) > 1 and not symmetric:
            first, second = node.args[:2]
            (start, middle), (resume, end) = self._span(first), self._span(second)
            yield start, end, self._text(second) + self._source[middle:resume].decode() + self._text(first)

    def _statements(self, node: ast.AST) -> Iterator[_Edit]:
        match node:
            case ast.Return(value=ast.Constant(value=bool())):
                pass  # its opposite is tried; None is as false as False, and refused by the type checker
            case ast.Return(value=ast.expr() as value):
                yield *self._span(value), "None"
            case ast.Expr(value=ast.Call() | ast.Await()):
                yield *self._span(node), "pass"
            case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
                if self._functions and self._functions[-1] != "__init__":
                    yield *self._span(node), "pass"
            case ast.Break():
                yield *self._span(node), "continue"
            case ast.Continue():
                yield *self._span(node), "break"

    def _conditions(self, node: ast.AST) -> Iterator[_Edit]:
        """What decides by being true or false, where no operator in it is changed anyway."""
        tests = [node.test] if isinstance(node, _CONDITIONS) else []
        if isinstance(node, ast.comprehension):
            tests = node.ifs
        for test in tests:
            if not isinstance(test, ast.Compare | ast.BoolOp | ast.UnaryOp):
                yield *self._span(test), f"not ({self._text(test)})"

    def _span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None and node.end_col_offset is not None
        start = self._starts[node.lineno - 1] + node.col_offset
        return start, self._starts[node.end_lineno - 1] + node.end_col_offset

    def _text(self, node: ast.expr) -> str:
        start, end = self._span(node)
        return self._source[start:end].decode()


def _code_below(node: ast.AST) -> Iterator[ast.AST]:
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "decorator_list", "bases", "keywords" if isinstance(node, ast.ClassDef) else ""):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield child


def _is_all(node: ast.AST) -> bool:
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"


def _other_constant(value: float) -> float:
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) or not value else value * 10
