"""`bench --preset depth`, and the curves of reports and articles."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trilithon.models.synthetic.tiny import write_tiny_model

Program = Callable[..., Any]
WORDS = ("--preset", "depth", "-r", "1", "--no-quality", "--placement", "scripted/cpu:prefill=50000,decode=5000")


@pytest.mark.slow
def test_depths_that_do_not_fit_are_left_out_and_said(trilithon: Program, home: Path) -> None:
    model = write_tiny_model(home / "small.gguf", context=4096)
    done = trilithon("bench", model, *WORDS, "--report", home / "report")
    assert done.code == 0, done.stderr
    assert "tg64 @ d2048" in done.stdout
    assert "pp512 @ d4096 not measured: it takes 4610 tokens, and the context has 4096" in done.stderr
    assert "tg64 @ d16384 not measured: it takes 16450 tokens" in done.stderr
    assert (home / "report" / "decode-by-depth-tg64.png").is_file()
    article = trilithon("results", "report", "1", "--svg", "--report", home / "article")
    assert article.code == 0, article.stderr
    names = {path.name for path in (home / "article").iterdir()}
    assert {"tg64-depth.svg", "pp512-depth.png", "tg64.png"} <= names
    assert not any("d1024" in name for name in names)


def test_a_preset_is_not_mixed_with_what_it_says(trilithon: Program, tiny: Path) -> None:
    done = trilithon("bench", tiny, *WORDS, "-d", "0")
    assert (done.code, done.stderr) == (2, "error: --preset depth says what to measure; leave -d out\n")
