import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.engines.wire.text_stream import (
    ReasoningSplit,
    StopFilter,
    TextPiece,
    TextStream,
    held_back,
    opens_reasoning,
)


def run(stream: TextStream, pieces: list[bytes] | list[str]) -> list[TextPiece]:
    return [shown for piece in pieces for shown in stream.feed(piece)] + stream.finish()


def joined(pieces: list[TextPiece]) -> tuple[str, str]:
    """Reasoning, visible text."""
    return (
        "".join(piece.text for piece in pieces if piece.reasoning),
        "".join(piece.text for piece in pieces if not piece.reasoning),
    )


def cut(text: str, stop: list[str]) -> tuple[str, str | None]:
    """What a reader of the whole text says: the stop string that is complete first wins, the longest of several."""
    for end in range(1, len(text) + 1):
        met = [word for word in stop if word and text[:end].endswith(word)]
        if met:
            word = max(met, key=len)
            return text[: end - len(word)], word
    return text, None


def parted(text: str, opened: bool) -> tuple[str, str]:
    match = re.fullmatch(r"\s*<think>(.*)" if not opened else r"(?:\s*<think>)?(.*)", text, re.DOTALL)
    if match is None:
        return "", text
    reasoning, tag, visible = match[1].partition("</think>")
    return reasoning.strip(), visible.lstrip() if tag else ""


TAGGED = st.lists(
    st.sampled_from(["<think>", "</think>", "<thin", "</", " ", "\n", "a", "ab", "<", "né", "€", "😀", "stop", "st"]),
    max_size=14,
).map("".join)
STOPS = st.lists(st.sampled_from(["stop", "st", "ab", "abc", "a\n", "</think>", "€", "op", "\n\n"]), max_size=3)


@st.composite
def split(draw: st.DrawFn, whole: bytes) -> list[bytes]:
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    edges = [0, *cuts, len(whole)]
    return [whole[a:b] for a, b in itertools.pairwise(edges)]


@given(st.data(), TAGGED | st.text(), STOPS, st.booleans())
def test_any_split_gives_what_the_whole_gives(data: st.DataObject, text: str, stop: list[str], opened: bool) -> None:
    stream = TextStream(stop=stop, reasoning_opened=opened)
    shown = run(stream, data.draw(split(text.encode())))
    kept, word = cut(text, stop)
    assert joined(shown) == parted(kept, opened)
    assert stream.stopped == word
    assert all(piece.text for piece in shown)


@given(st.data(), st.binary(max_size=40))
def test_bytes_that_are_no_utf8_come_out_as_when_decoded_at_once(data: st.DataObject, whole: bytes) -> None:
    shown = run(TextStream(), data.draw(split(whole)))
    assert joined(shown) == parted(whole.decode(errors="replace"), False)


@given(TAGGED, STOPS, st.booleans())
def test_text_pieces_are_as_good_as_bytes(text: str, stop: list[str], opened: bool) -> None:
    by_letter = run(TextStream(stop=stop, reasoning_opened=opened), list(text))
    assert joined(by_letter) == parted(cut(text, stop)[0], opened)


@given(st.text(st.sampled_from("abc<")), st.lists(st.text(st.sampled_from("abc<"), min_size=1), max_size=3))
def test_no_more_is_held_back_than_may_become_a_stop_string(text: str, stop: list[str]) -> None:
    stop_filter, shown = StopFilter(stop), ""
    for end, letter in enumerate(text, start=1):
        shown += stop_filter.feed(letter)
        if stop_filter.stopped is not None:
            break
        held = text[len(shown) : end]
        assert not held or any(word.startswith(held) for word in stop)


@pytest.mark.parametrize(
    ("words", "shown", "stopped"),
    [
        (["stop", "to"], "a s", "to"),  # complete before the word around it
        (["stop", "st"], "a ", "st"),
        (["op", "stop"], "a ", "stop"),  # complete together: the longest
        (["stop", "p"], "a ", "stop"),
        (["stop!", "top"], "a s", "top"),
    ],
)
def test_a_stop_string_inside_another(words: list[str], shown: str, stopped: str) -> None:
    for order in (words, words[::-1]):
        for pieces in (["a stop!"], list("a stop!")):
            stream = TextStream(stop=order)
            assert joined(run(stream, pieces)) == ("", shown)
            assert stream.stopped == stopped


def test_a_character_is_shown_with_its_last_byte() -> None:
    stream = TextStream()
    euro = "€".encode()
    assert [stream.feed(euro[:1]), stream.feed(euro[1:2]), stream.feed(euro[2:])] == [[], [], [TextPiece("€")]]


def test_half_a_character_before_text_is_replaced() -> None:
    stream = TextStream()
    assert stream.feed("€".encode()[:2]) == []
    assert stream.feed("x") == [TextPiece("�x")]


def test_what_comes_after_a_stop_string_is_dropped() -> None:
    stream = TextStream(stop=["\nUser:"])
    assert stream.feed("Hi\nUs") == [TextPiece("Hi")]
    assert stream.feed("er: and you?") == []
    assert stream.feed("more") == []
    assert stream.finish() == []
    assert stream.stopped == "\nUser:"


def test_reasoning_is_shown_as_it_comes_and_without_its_tags() -> None:
    split = ReasoningSplit()
    fed = ["<thi", "nk>\n", "I se", "e\n\n</th", "ink>", "\n\n", "Yes", " </think>"]
    assert [split.feed(text) for text in fed] == [
        [],
        [],
        [TextPiece("I se", True)],
        [TextPiece("e", True)],
        [],
        [],
        [TextPiece("Yes")],
        [TextPiece(" </think>")],
    ]
    assert split.finish() == []


def test_an_empty_block_leaves_the_answer_alone() -> None:
    assert run(TextStream(), ["<think>\n\n</think>\n\nHello"]) == [TextPiece("Hello")]


def test_a_block_that_the_template_opened_and_nobody_closes() -> None:
    assert run(TextStream(reasoning_opened=True), ["so", " and ", "so "]) == [
        TextPiece("so", True),
        TextPiece(" and", True),
        TextPiece(" so", True),
    ]


@pytest.mark.parametrize(
    ("prompt", "opened"), [("<|im_start|>assistant\n<think>\n", True), ("<think>\n\n</think>\n\n", False), ("", False)]
)
def test_a_template_that_opens_the_block(prompt: str, opened: bool) -> None:
    assert opens_reasoning(prompt) is opened


def test_held_back() -> None:
    assert held_back("ab<to", ("<tool>", "b<x")) == 3
    assert held_back("<tool>", ("<tool>",)) == 0
    assert held_back("anything", ()) == 0
