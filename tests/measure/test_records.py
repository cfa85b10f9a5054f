import pytest

from trilithon.measure.records import Test


@pytest.mark.parametrize(
    ("test", "name"),
    [
        (Test(kind="pp", prompt_tokens=512), "pp512"),
        (Test(kind="tg", generated_tokens=128), "tg128"),
        (Test(kind="pg", prompt_tokens=512, generated_tokens=128), "pp512+tg128"),
        (Test(kind="pp", prompt_tokens=512, depth=4096), "pp512 @ d4096"),
        (Test(kind="tg", generated_tokens=128, depth=4096), "tg128 @ d4096"),
        (Test(kind="question", question="Why?"), "question"),
        (Test(kind="cold", prompt_tokens=8), "cold"),
    ],
)
def test_names_are_those_of_llama_bench(test: Test, name: str) -> None:
    assert test.name == name
