"""What a bench found best, kept for those who serve it."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.errors import StoreError
from trilithon.results.plans import Plan, keep_plan, plans_path, read_plan

PLAN = Plan(sha256="a" * 64, placement="llama.cpp/cpu", board="Orange Pi 5", campaign=3, sentence="It is best.")


def test_a_plan_is_read_back_for_its_file_and_board_alone(tmp_path: Path) -> None:
    keep_plan(tmp_path, PLAN)
    assert read_plan(tmp_path, PLAN.sha256, PLAN.board) == PLAN
    assert read_plan(tmp_path, "b" * 64, PLAN.board) is None
    assert read_plan(tmp_path, PLAN.sha256, "another board") is None
    assert read_plan(tmp_path, "", PLAN.board) is None


def test_a_later_one_takes_the_place_of_an_older(tmp_path: Path) -> None:
    later = Plan(sha256="a" * 64, placement="rkllm/npu", board="Orange Pi 5", campaign=4, sentence="")
    other = Plan(sha256="c" * 64, placement="llama.cpp/gpu", board="Orange Pi 5", campaign=5, sentence="")
    for plan in (PLAN, other, later):
        keep_plan(tmp_path, plan)
    assert read_plan(tmp_path, "a" * 64, "Orange Pi 5") == later
    assert read_plan(tmp_path, "c" * 64, "Orange Pi 5") == other
    assert {path.name for path in tmp_path.iterdir()} == {"plans.json", "plans.lock"}


@given(st.one_of(st.text(), st.sampled_from(["[{}]", "[1]", '{"a": 1}', '[{"sha256": "x"}]'])))
def test_what_holds_no_plans_is_one_line_with_the_fix(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("plans")
    plans_path(folder).write_text(text, encoding="utf-8")
    try:
        assert read_plan(folder, "a" * 64, "b") is None
    except StoreError as error:
        assert "remove it" in str(error)
        assert "\n" not in str(error)


KEEP_MANY = """
import sys
from pathlib import Path
from trilithon.results.plans import Plan, keep_plan
for number in range(10):
    digest = f"{sys.argv[2]}{number}" * 32
    keep_plan(Path(sys.argv[1]), Plan(sha256=digest, placement="", board="x", campaign=1, sentence=""))
"""


def test_campaigns_that_end_at_once_lose_no_plan(tmp_path: Path) -> None:
    workers = [subprocess.Popen([sys.executable, "-c", KEEP_MANY, str(tmp_path), letter]) for letter in "abc"]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    assert all(read_plan(tmp_path, f"{letter}{number}" * 32, "x") for letter in "abc" for number in range(10))
