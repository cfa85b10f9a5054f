import math

import pytest

from trilithon.errors import ModelError
from trilithon.models.store.parameters import check_parameter, read_parameter

# Name → minimum, maximum, as in Ollama; None where there is none.
INTEGERS: dict[str, tuple[int | None, int | None]] = {
    "draft_num_predict": (0, None),
    "main_gpu": (0, None),
    "mirostat": (0, 2),
    "num_batch": (1, None),
    "num_ctx": (1, None),
    "num_gpu": (-1, None),
    "num_keep": (-1, None),
    "num_predict": (-2, None),
    "num_thread": (0, None),
    "repeat_last_n": (-1, None),
    "seed": (None, None),
    "top_k": (-1, None),
}
NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "frequency_penalty": (None, None),
    "min_p": (0, 1),
    "mirostat_eta": (0, None),
    "mirostat_tau": (0, None),
    "presence_penalty": (None, None),
    "repeat_penalty": (0, None),
    "temperature": (0, None),
    "top_p": (0, 1),
    "typical_p": (0, 1),
}
FAR = 2**59


@pytest.mark.parametrize(("name", "least", "most"), [(name, *bounds) for name, bounds in (INTEGERS | NUMBERS).items()])
def test_bounds(name: str, least: int | None, most: int | None) -> None:
    step = 1 if name in INTEGERS else 0.001
    for value in (-FAR if least is None else least, FAR if most is None else most):
        assert read_parameter(name, str(value)) == check_parameter(name, value) == value
    for value in ([] if least is None else [least - step]) + ([] if most is None else [most + step]):
        for parse, given in ((read_parameter, str(value)), (check_parameter, value)):
            with pytest.raises(ModelError, match=f"parameter {name} = .* does not fit"):
                parse(name, given)


@pytest.mark.parametrize(
    ("name", "text", "write"),
    [
        ("top_p", "2", "write number from 0 to 1"),
        ("num_ctx", "x", "write integer from 1"),
        ("seed", "x", "write integer"),
        ("use_mmap", "perhaps", "write true or false"),
        ("seed", "9" * 20, "write integer"),
    ],
)
def test_what_does_not_fit_is_said_with_what_would(name: str, text: str, write: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_parameter(name, text)
    assert str(caught.value).endswith(f"does not fit; {write}")


@pytest.mark.parametrize(
    ("name", "fix"), [("num_ctxt", "did you mean num_ctx?"), ("temperatur", "did you mean temperature?")]
)
def test_an_unknown_name_is_refused_with_a_near_one(name: str, fix: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_parameter(name, "1")
    assert str(caught.value) == f"unknown parameter {name!r}; {fix}"


def test_a_name_like_no_other_is_refused_with_all_names() -> None:
    with pytest.raises(ModelError, match=r"unknown parameter 'x{80}'; there are .*draft_num_predict, .*top_p"):
        check_parameter("x" * 90, 1)


def test_kinds() -> None:
    assert read_parameter("seed", "9" * 19) == int("9" * 19)
    assert type(read_parameter("seed", "4")) is type(check_parameter("seed", 4.0)) is int
    assert type(read_parameter("temperature", "1")) is float
    assert [read_parameter("think", text) for text in ("1", "T", " true ", "0", "f", "False")] == [True] * 3 + [
        False
    ] * 3
    assert read_parameter("stop", " a ") == check_parameter("stop", " a ") == [" a "]
    assert check_parameter("stop", ["a", "b"]) == ["a", "b"]
    assert check_parameter("think", True) is True
    for name, value in (("seed", 4.5), ("seed", math.inf), ("temperature", math.nan), ("think", 1), ("stop", ["a", 1])):
        with pytest.raises(ModelError, match="does not fit"):
            check_parameter(name, value)
