"""A GGUF that is no model, given to the commands that need one: one line, exit code 2, and no engine starts."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from other_ggufs import write_adapter, write_gguf, write_imatrix, write_projector

Program = Callable[..., Any]

SHORT = ("-p", "8", "-n", "4", "-r", "1", "--no-quality")


@pytest.mark.parametrize(
    ("write", "label"),
    [
        (write_adapter, "is a LoRA adapter: no engine runs it alone"),
        (write_projector, "is a vision projector: no engine runs it alone"),
        (write_imatrix, "is an importance matrix (imatrix): no engine runs it alone"),
    ],
)
@pytest.mark.parametrize("words", [("bench", *SHORT), ("run",), ("serve", "--port", "0")], ids=lambda words: words[0])
def test_a_command_that_needs_a_model(
    trilithon: Program,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    write: Callable[[Path], Path],
    label: str,
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    path = write(tmp_path / "some-Q4_K_M.gguf")
    done = trilithon(words[0], path, *words[1:], *(("hello",) if words[0] == "run" else ()))
    assert done.code == 2
    assert done.stderr.count("\n") == 1 and f"{path} {label}" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("values", "label"),
    [
        ({"general.architecture": "bert"}, "m.gguf is an embedding model: it generates no text"),
        ({"general.architecture": "bert", "bert.pooling_type": 4}, "m.gguf is a reranking model: it generates no text"),
    ],
)
def test_what_generates_no_text_is_not_measured(
    trilithon: Program, tmp_path: Path, values: dict[str, Any], label: str
) -> None:
    done = trilithon("bench", write_gguf(tmp_path / "m.gguf", values), *SHORT)
    assert (done.code, done.stderr.count("\n")) == (2, 1)
    assert label in done.stderr
