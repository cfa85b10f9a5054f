import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.board.sysfs import Machine
from trilithon.runtime.pool.budget import Budget, fewest, measured_budget, process_memory

GIB = 1 << 30


@dataclass(eq=False)
class Model:
    need_bytes: int
    held_bytes: int | None = 0


def machine(root: Path, path: str, text: str) -> Machine:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)
    return Machine(root)


def test_what_this_process_holds() -> None:
    found = process_memory(os.getpid())
    assert found is not None and found.anonymous_bytes > 1 << 20 and found.mapped_bytes > 1 << 20


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("RssAnon:\t 3 kB\nRssFile:\t 4 kB\nRssShmem:\t 5 kB\n", (8 << 10, 4 << 10)),
        ("Name:\tzombie\nState:\tZ\n", None),
        ("RssAnon:\t 3 kB\nRssFile:\t many\nRssShmem:\t 5 kB\n", None),
    ],
)
def test_what_a_process_holds(tmp_path: Path, text: str, expected: tuple[int, int] | None) -> None:
    found = process_memory(7, machine(tmp_path, "proc/7/status", text))
    assert expected == (found and (found.anonymous_bytes, found.mapped_bytes))
    assert process_memory(8, Machine(tmp_path)) is None


def test_the_budget_is_what_is_there_without_our_own_less_a_reserve(tmp_path: Path) -> None:
    here = machine(tmp_path, "proc/meminfo", f"MemAvailable: {8 * GIB // 1024} kB\n")
    assert measured_budget([], here) == Budget(now=8 * GIB - 8 * GIB // 10, total=8 * GIB - 8 * GIB // 10)
    loaded, loading = Model(5 * GIB, 2 * GIB), Model(3 * GIB, None)
    found = measured_budget([loaded, loading], here)
    assert found is not None and (found.now, found.total) == (9 * GIB, int(13 * GIB * 0.9) + 1)
    small = machine(tmp_path, "proc/meminfo", f"MemAvailable: {GIB // 1024} kB\n")
    assert measured_budget([], small) == Budget(now=GIB // 2, total=GIB // 2)
    tiny = machine(tmp_path, "proc/meminfo", "MemAvailable: 9 kB\n")
    assert measured_budget([], tiny) == Budget(now=0, total=0)
    assert measured_budget([], machine(tmp_path, "proc/meminfo", "MemTotal: 9 kB\n")) is None


@given(st.lists(st.integers(0, 50)), st.integers(-20, 300), st.integers(-2, 8))
def test_enough_go_and_none_that_need_not(needs: list[int], missing_bytes: int, missing_places: int) -> None:
    models = [Model(need) for need in needs]
    chosen = fewest(models, missing_bytes, missing_places)
    if chosen is None:
        assert sum(needs) < missing_bytes or len(needs) < missing_places
        return
    freed = sum(each.need_bytes for each in chosen)
    assert freed >= missing_bytes and len(chosen) >= missing_places
    assert [each for each in models if each in chosen] == chosen
    for each in chosen:
        assert freed - each.need_bytes < missing_bytes or len(chosen) - 1 < missing_places
