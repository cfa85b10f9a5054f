"""Options of a model that some placements take: the first that takes all, or those that every engine knows."""

import pytest

from trilithon.engines.placement_spec import PlacementSpec, first_with_options, parse_placement

SPECS = [parse_placement("llama.cpp/cpu"), parse_placement("rk-llama.cpp/npu")]
OPTIONS = {"pipeline": "W8A8_STANDARD+W4A4_HADAMARD", "ctk": "q8_0"}


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        ({"llama.cpp": {"ctk"}, "rk-llama.cpp": {"ctk", "pipeline"}}, "rk-llama.cpp/npu:pipeline=W8A8_STANDARD+"),
        ({"llama.cpp": {"ctk"}, "rk-llama.cpp": {"ctk"}}, "llama.cpp/cpu:ctk=q8_0"),
        ({"llama.cpp": set(), "rk-llama.cpp": {"ctk"}}, "rk-llama.cpp/npu:ctk=q8_0"),
        ({"llama.cpp": set(), "rk-llama.cpp": set()}, "llama.cpp/cpu"),
    ],
)
def test_the_first_that_runs(taken: dict[str, set[str]], expected: str) -> None:
    def runs(spec: PlacementSpec) -> bool:
        return spec.options.keys() <= taken[spec.engine]

    chosen = first_with_options(SPECS, OPTIONS, runs)
    assert chosen.text.startswith(expected)
    assert {name: OPTIONS[name] for name in chosen.options} == chosen.options


def test_without_options_nothing_is_tried() -> None:
    assert first_with_options(SPECS, {}, lambda _: False) is SPECS[0]
