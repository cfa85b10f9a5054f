import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trilithon.errors import UserError
from trilithon.units import (
    format_byte_range,
    format_bytes,
    format_duration,
    format_number,
    parse_bytes,
    parse_duration,
    parse_integers,
)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("512", [512]),
        ("512,1024", [512, 1024]),
        (" 512 , 1024 ", [512, 1024]),
        ("128-512+128", [128, 256, 384, 512]),
        ("128-500+128", [128, 256, 384]),
        ("128-1024*2", [128, 256, 512, 1024]),
        ("1-4", [1, 2, 3, 4]),
        ("0", [0]),
        ("7-7", [7]),
        ("0-2,1,1-3", [0, 1, 2, 3]),
    ],
)
def test_lists_and_ranges(text: str, values: list[int]) -> None:
    assert parse_integers(text, name="-p") == values


@pytest.mark.parametrize(
    "text",
    [
        *("", ",", "512,", "a", "-1", "1.5", "512 1024", "1-", "-5-3", "1-5+", "1-5/2", "1e3", "9" * 19, "9" * 5000),
        *("5-3", "1-5+0", "1-5*1", "1-5*0", "0-5*2", "1-1001", "1-999999999999999999"),
    ],
)
def test_nonsense_ranges_are_one_line_that_names_the_option(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_integers(text, name="-ub")
    assert str(caught.value).startswith(f"-ub {text}: ")
    assert "\n" not in str(caught.value)


def test_values_under_the_least_are_refused() -> None:
    assert parse_integers("1,2", name="-t", least=1) == [1, 2]
    with pytest.raises(UserError, match=r"^-t 2,0: 0 is less than 1$"):
        parse_integers("2,0", name="-t", least=1)


@given(st.integers(0, 500), st.integers(0, 400), st.integers(1, 50))
def test_sums_are_ranges_with_both_ends(first: int, more: int, step: int) -> None:
    last = first + more
    assert parse_integers(f"{first}-{last}+{step}", name="-p") == list(range(first, last + 1, step))


@given(st.lists(st.integers(0, 10**18 - 1), min_size=1, max_size=20))
def test_lists_come_back_without_doubles(values: list[int]) -> None:
    assert parse_integers(",".join(map(str, values)), name="-p") == list(dict.fromkeys(values))


@given(st.text(max_size=30) | st.from_regex(r"[0-9]+(-[0-9]+[+*]?[0-9]*)?", fullmatch=True))
@example("1" * 4301)
@example("٣-٥")
def test_any_text_is_values_or_a_user_error(text: str) -> None:
    try:
        values = parse_integers(text, name="-p")
    except UserError as error:
        assert str(error).startswith("-p ")
    else:
        assert values == list(dict.fromkeys(values)) != []


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), (" 5m ", 300), ("1.5m", 90), ("2h", 7200), ("250ms", 0.25), ("0", 0)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text, name="--time-budget") == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1", "1d", "1e3", "1.", ".5", "5 m", "nan", "inf", "9" * 400, "1h30m"])
def test_no_durations(text: str) -> None:
    with pytest.raises(UserError, match="write 90, 90s, 5m or 1h"):
        parse_duration(text, name="--time-budget")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        *((0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (245_891_072, "234.5 MiB"), (3 << 30, "3.0 GiB")),
        *((1024**2 - 1, "1.0 MiB"), (5 << 50, "5120.0 TiB"), (-2048, "-2.0 KiB")),
    ],
)
def test_bytes(count: float, text: str) -> None:
    assert format_bytes(count) == text


@given(st.integers(0, 1 << 49))
def test_bytes_never_show_more_than_the_next_unit(count: int) -> None:
    number, unit = format_bytes(count).split()
    assert float(number) < 1024
    factor = 1024 ** ("B", "KiB", "MiB", "GiB", "TiB").index(unit)
    assert float(number) * factor == pytest.approx(count, abs=0.051 * factor)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0.00 s"), (0.35, "0.35 s"), (9.994, "9.99 s"), (9.999, "10 s"), (12, "12 s"), (59.4, "59 s")),
        *((59.7, "1:00"), (60, "1:00"), (185, "3:05"), (600, "10:00"), (3599.4, "59:59"), (3599.7, "1:00:00")),
        *((3729, "1:02:09"), (36000, "10:00:00")),
    ],
)
def test_durations_as_text(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0, "0"), (0.0123, "0.0123"), (0.5, "0.500"), (4.56, "4.56"), (78.9, "78.9"), (1234, "1234"), (123.4, "123")),
        *((9.999, "10.0"), (99.97, "100"), (0.9999, "1.00"), (-78.94, "-78.9"), (999.6, "1000")),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert format_number(value) == text


@given(st.floats(1e-4, 1e9))
def test_numbers_keep_three_digits(value: float) -> None:
    text = format_number(value)
    assert float(text) == pytest.approx(value, rel=0.0051)
    if value < 100:
        digits = text.replace(".", "").lstrip("0").split("e")[0]
        assert len(digits) <= 3


@pytest.mark.parametrize(
    ("text", "count"),
    [
        *(("0", 0), ("512", 512), ("1K", 1024), ("4096M", 4 << 30), ("3.5G", 7 << 29), ("4 GiB", 4 << 30)),
        *(("4gb", 4 << 30), (" 1T ", 1 << 40), ("10B", 10)),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_bytes(text, name="--memory-budget") == count


@pytest.mark.parametrize("text", ["", "G", "-1G", "4 Gib it", "1e9", "1.G", "4GBB", "50%", "9" * 5000, "inf"])
def test_nonsense_sizes_are_one_line_that_names_the_option(text: str) -> None:
    with pytest.raises(UserError, match=r"^--memory-budget .*: write 4096M, 3\.5G or 4GiB$"):
        parse_bytes(text, name="--memory-budget")


@given(st.integers(0, 1 << 50))
def test_a_size_as_text_is_about_that_size(count: int) -> None:
    assert parse_bytes(format_bytes(count), name="") == pytest.approx(count, rel=0.05, abs=1)


@pytest.mark.parametrize(
    ("least", "most", "text"),
    [
        (4.9 * 2**30, 9 * 2**30, "4.9–9.0 GiB"),
        (9 * 2**30, 9 * 2**30 + 1, "9.0 GiB"),
        (900 * 2**20, 1.5 * 2**30, "0.9–1.5 GiB"),
        (0, 0, "0 B"),
    ],
)
def test_a_range_has_one_unit(least: float, most: float, text: str) -> None:
    assert format_byte_range(least, most) == text
