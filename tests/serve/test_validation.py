"""What of a body goes on: everything is either passed, refused by name, or named in a header."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.serve.http.errors import ApiError
from trilithon.serve.validation import Rules, ignoring_header, require_few, require_schema, require_sound, validate

RULES = Rules(passed=frozenset({"stop", "seed"}), neutral={"audio": (), "modalities": (["text"],), "n": (1,)})

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["stop", "seed", "audio", "modalities", "n", "user", "Ünknown", "a\r\nb"])


@given(st.dictionaries(NAMES, JSON, max_size=8))
def test_nothing_is_left_out_in_silence(fields: dict[str, object]) -> None:
    try:
        admitted = validate(fields, RULES)
    except ApiError as problem:
        assert problem.status == 400
        return
    said = {name for name, value in fields.items() if value is not None}
    asks_for_nothing = {name for name in said if name in RULES.neutral}
    assert set(admitted.body) | set(admitted.ignored) | asks_for_nothing == said
    assert all(admitted.body[name] == fields[name] for name in admitted.body)
    json.dumps(admitted.body, allow_nan=False, ensure_ascii=False).encode()


def test_a_value_that_asks_for_nothing_is_no_error() -> None:
    assert validate({"modalities": ["text"], "n": 1, "audio": None}, RULES).body == {}
    with pytest.raises(ApiError, match="modalities") as raised:
        validate({"modalities": ["text", "audio"]}, RULES)
    assert raised.value.field == "modalities"


@given(st.lists(st.text(), max_size=60))
def test_a_header_can_be_sent_whatever_the_names_are(names: list[str]) -> None:
    for name, value in ignoring_header(names).items():
        assert value
        assert (name + value).isascii()
        assert (name + value).isprintable()


@pytest.mark.parametrize(
    "value", [float("inf"), float("nan"), "half \ud800", {"a\udfff": 1}, [[{"a": [float("-inf")]}]]]
)
def test_what_no_engine_could_read(value: object) -> None:
    with pytest.raises(ApiError) as raised:
        require_sound({"x": value})
    assert raised.value.status == 400


def test_depth_has_a_bottom() -> None:
    deep: list[object] = []
    for _ in range(50):
        deep = [deep]
    require_sound(deep)
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ApiError, match="nested deeper"):
        require_sound(deep)


def test_the_most_entries_are_still_taken() -> None:
    require_few(range(4), 4, "stop")
    with pytest.raises(ApiError, match="stop has 5 entries; send 4 at most") as raised:
        require_few(range(5), 4, "stop")
    assert raised.value.field == "stop"


def test_schemas_are_objects_and_bounded() -> None:
    require_schema({"type": "object"}, "schema")
    with pytest.raises(ApiError, match="must be a JSON schema"):
        require_schema([1], "schema")
    with pytest.raises(ApiError, match="smaller schema"):
        require_schema({"enum": ["x" * (300 << 10)]}, "schema")
