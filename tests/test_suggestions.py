"""The end of a message that refuses a word."""

from trilithon.suggestions import alternatives

MANY = [f"model-{number}" for number in range(90)]


def test_few_names_are_listed_and_the_similar_one_is_named() -> None:
    assert str(alternatives("x", [])) == "there are none"
    assert str(alternatives("x", ["cpu", "gpu"])) == "there are cpu, gpu"
    assert str(alternatives("gpi", ["cpu", "gpu"])) == "there are cpu, gpu; did you mean gpu?"


def test_a_long_list_is_no_wall_of_names() -> None:
    assert str(alternatives("modle-7", MANY)) == "did you mean model-7?"
    text = str(alternatives("zzz", MANY))
    assert text.startswith("there are model-0, model-1, ")
    assert text.endswith("model-15 and 74 more")
