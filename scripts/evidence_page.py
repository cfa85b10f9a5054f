"""Writes docs/evidence.md from the stand-ins in tests/: `make docs`, kept current by tests/test_docs.py.

A stand-in is a file of the tests that plays a program which cannot run there. It states for each behaviour where it is
known from, in a comment of one line: `known(KIND): ADDRESS: BEHAVIOUR`, or `known(guess): BEHAVIOUR`. KINDS has the
forms of addresses; several are separated by a comma.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_GITHUB = "https://github.com/"
_ISSUE = r"[\w.-]+/[\w.-]+#\d+"
_COMMIT = r"[\w.-]+/[\w.-]+@[0-9a-f]{7,40}(?: [\w./-]+\.\w+)?"
_RELEASE = r"[\w.-]+(?: [\w.-]+)*? \d+(?:\.\w+)*(?: [\w./-]+\.\w+)?"

# From the weakest to the strongest: what it means, and the form of its address.
KINDS = {
    "guess": ("no source, or one without an address", ""),
    "report": ("users or maintainers describe it, in this issue", _ISSUE),
    "documentation": ("this document says so", rf"{_RELEASE}|{_COMMIT}|RFC \d+|[\w.-]+/[\w.-]+ README\.md"),
    "log": ("a user's log has the line word for word, in this issue", _ISSUE),
    "source": ("read in this source", rf"{_RELEASE}|{_COMMIT}|[\w.-]+/[\w.-]+"),
    "header": ("declared in this header", r"\w+\.h \d+(?:\.\d+)+(?: to \d+(?:\.\d+)+)?"),
    "ran": ("this program ran here and did so", _RELEASE),
}
_STATEMENT = re.compile(r"^\s*(?:#|//|/?\*)\s*known( *\(.*?)(?:\s*\*/)?$", re.MULTILINE)
_FORM = re.compile(r"\((\w+)\): (.+)")
# What shows that a file of the tests plays a foreign program, besides its name: a vendor's class, a source that is
# compiled or converts, a script in the place of a program of llama.cpp.
_PLAYS = re.compile(
    r"^class (?:RKNNLite|RKLLM):|^int rknn_init|^  add_executable\(|\"convert_hf_to_gguf\.py\"\)\.write_text"
    r"|#!(?:/bin/sh|\{python\}|\{sys\.executable\})(?s:.*)\"llama-(?:server|quantize|bench)\""
    r"|\"llama-(?:server|quantize|bench)\"(?s:.*)#!(?:/bin/sh|\{python\}|\{sys\.executable\})",
    re.MULTILINE,
)
# Written by another version, and kept as it was.
_FROZEN = "tests/compat"
_HEAD = """\
# What the stand-ins may claim

Made by `make docs` from the stand-ins in `tests/`; do not edit.

No Rockchip board was available. Programs that cannot run in the tests have stand-ins. A test with a stand-in shows that
Trilithon works with the stand-in, no more. This page lists the behaviours of the stand-ins and where each is known
from, the weakest evidence first. Tokens, texts and speeds of the stand-ins' models are invented and claim nothing.

A log or a `trilithon board-report` from a board's owner can replace a guess by a fact.

"""


@dataclass(frozen=True, order=True)
class Statement:
    """In the order of the page. `file` is below the repository. `addresses` is empty for a guess."""

    rank: int
    file: str
    line: int
    kind: str
    addresses: tuple[str, ...]
    behaviour: str


def standins() -> list[Path]:
    """The files of the tests that play a foreign program."""
    files = [path for path in sorted((ROOT / "tests").rglob("*")) if path.suffix in (".py", ".c", ".h")]
    files = [path for path in files if not path.is_relative_to(ROOT / _FROZEN)]
    return [path for path in files if _named(path) or _PLAYS.search(path.read_text(encoding="utf-8"))]


def _named(path: Path) -> bool:
    return path.name.startswith("standin") or path.parent.name == "standin"


def statements() -> list[Statement]:
    """All of them, guesses first. Raises ValueError for one that is not well-formed."""
    return sorted(statement for path in standins() for statement in read(path))


def read(path: Path) -> Iterator[Statement]:
    """The statements of a file. Raises ValueError for one that is not well-formed."""
    text = path.read_text(encoding="utf-8")
    name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
    for match in _STATEMENT.finditer(text):
        line = text.count("\n", 0, match.start(1)) + 1
        try:
            yield _statement(match[1], name, line)
        except ValueError as error:
            raise ValueError(f"{name}:{line}: {error}") from None


def _statement(text: str, file: str, line: int) -> Statement:
    form = _FORM.fullmatch(text)
    if form is None or form[1] not in KINDS:
        raise ValueError(f"write known(KIND): ADDRESS: BEHAVIOUR, with one of the kinds {', '.join(KINDS)}")
    kind, rest = form.groups()
    where, _, behaviour = ("", "", rest) if kind == "guess" else rest.partition(": ")
    addresses = tuple(where.split(", ")) if where else ()
    for address in addresses or [""]:
        if re.fullmatch(KINDS[kind][1], address) is None:
            raise ValueError(f"{address!r} is no address for {kind!r}")
    if not behaviour:
        raise ValueError("the behaviour is missing")
    return Statement(list(KINDS).index(kind), file, line, kind, addresses, behaviour)


def page() -> str:
    """The whole page, in Markdown."""
    rows = statements()
    numbers = Counter(row.kind for row in rows)
    kinds = "".join(f"- **{kind}** ({numbers[kind]}): {meaning}.\n" for kind, (meaning, _) in KINDS.items())
    table = "".join(f"| {row.kind} | {_where(row)} | {_file(row)} | {_cell(row.behaviour)} |\n" for row in rows)
    return f"{_HEAD}{kinds}\n| known from | where | stand-in | behaviour |\n|---|---|---|---|\n{table}"


def _where(statement: Statement) -> str:
    return ", ".join(_link(address) for address in statement.addresses)


def _link(address: str) -> str:
    repository, mark, rest = re.fullmatch(r"([\w.-]+/[\w.-]+)?([#@]?)(.*)", address).groups()  # type: ignore[union-attr]
    if not repository:
        return address
    commit, _, path = rest.partition(" ")
    target = {"#": f"issues/{rest}", "@": f"blob/{commit}/{path}" if path else f"tree/{commit}", "": ""}[mark]
    return f"[{address}]({_GITHUB}{repository}/{target})"


def _file(statement: Statement) -> str:
    return f"[{statement.file.removeprefix('tests/')}](../{statement.file})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    print(page(), end="")
