import itertools
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.engines.wire.tool_calls import ToolCall, ToolCallStream, parse_tool_calls

NAMES = frozenset({"weather", "add"})


def run(pieces: list[str]) -> list[str | ToolCall]:
    """Text in one piece between calls, and ids that count."""
    numbers = itertools.count(1)
    stream = ToolCallStream(NAMES, lambda: f"id{next(numbers)}")
    parts = [part for piece in pieces for part in stream.feed(piece)] + stream.finish()
    merged: list[str | ToolCall] = []
    for part in parts:
        last = merged[-1] if merged else None
        if isinstance(part, str) and isinstance(last, str):
            merged[-1] = last + part
        else:
            merged.append(part)
    return merged


PARIS = ToolCall("id1", "weather", '{"city": "Paris"}')


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>', [PARIS]),
        ('<tool_call>{"name":"weather","arguments":"{\\"city\\": \\"Paris\\"}"}</tool_call>', [PARIS]),
        ('Let me look.\n<tool_call>{"name":"weather","arguments":{"city":"Paris"}}', ["Let me look.\n", PARIS]),
        ('\n<tool_call>{"name": "now"}</tool_call>\n', [ToolCall("id1", "now", "{}")]),
        ('<tool_call>{"name": "now", "arguments": null}</tool_call>Done', [ToolCall("id1", "now", "{}"), "Done"]),
        ('<|python_tag|>{"name": "weather", "parameters": {"city": "Paris"}}', [PARIS]),
        ('{"name": "weather", "parameters": {"city": "Paris"}}', [PARIS]),
        ('\n\n{"type": "function", "name": "weather", "parameters": {"city": "Paris"}}', [PARIS]),
        ('{"type":"function","function":{"name":"weather","parameters":{"city":"Paris"}}}', [PARIS]),
        ('[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Paris"}}]', [PARIS]),
        ('[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris"}, "id": "abcdefghi"}]', [PARIS]),
        ('[{"name": "weather", "arguments": {"city": "Paris"}}]', [PARIS]),
    ],
)
def test_a_call(text: str, parts: list[str | ToolCall]) -> None:
    assert run([text]) == parts
    assert run(list(text)) == parts


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(f'<tool_call>{{"name":"add","arguments":{{"n":{n}}}}}</tool_call>' for n in (1, 2)),
        '<tool_call>\n{"name":"add","arguments":{"n":1}}\n{"name":"add","arguments":{"n":2}}\n</tool_call>',
        '<|python_tag|>{"name":"add","parameters":{"n":1}}; {"name":"add","parameters":{"n":2}}',
        '{"name":"add","parameters":{"n":1}};{"name":"add","parameters":{"n":2}}',
        '[TOOL_CALLS][{"name":"add","arguments":{"n":1}},{"name":"add","arguments":{"n":2}}]',
    ],
)
def test_two_calls(text: str) -> None:
    expected = [ToolCall("id1", "add", '{"n": 1}'), ToolCall("id2", "add", '{"n": 2}')]
    assert run([text]) == run(list(text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "weather", "arguments": {"city": Paris}}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": {"city": "Par',
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": {"n": NaN}}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": {"n": 1e999}}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        "<tool_call>weather in Paris</tool_call>",
        "<tool_call>",
        '[TOOL_CALLS][{"name": "add", "arguments": {}}, {"no": 1}]',
        "[TOOL_CALLS][]",
        "<|python_tag|>brave_search.call(query='Paris')",
        '{"name": "somebody", "arguments": {}}',
        '{"name": "weather", "age": 3',
        '{"city": "Paris"}',
        "[1, 2, 3] is a list",
        "{ int x; }",
        "  \n",
        'Here is JSON: {"name": "weather", "parameters": {}}',
        "a <tool_cal",
        "[TOOL",
        '<tool_call>{"name": "weather", "arguments": ' + '{"a":' * 3000 + "1" + "}" * 3001 + "</tool_call>",
        '<tool_call>{"name": "weather", "arguments": {"n": ' + "9" * 5000 + "}}</tool_call>",
    ],
)
def test_what_is_no_call_stays_text(text: str) -> None:
    assert run([text]) == [text]
    assert run(list(text)) == [text]


def test_the_request_may_end_inside_the_closing_tag() -> None:
    call = '<tool_call>{"name":"weather","arguments":{"city":"Paris"}}'
    for end in range(len("</tool_call>") + 1):
        assert run([call + "</tool_call>"[:end]])[0] == PARIS
    assert run([call + " and so on"]) == [PARIS, "and so on"]
    assert run([call + "; then"]) == [PARIS, "; then"]


def test_a_closing_tag_inside_a_string_closes_nothing() -> None:
    text = '<tool_call>{"name":"add","arguments":{"a":"</tool_call> } \\" ]"}}</tool_call>'
    assert run([text]) == run(list(text)) == [ToolCall("id1", "add", '{"a": "</tool_call> } \\" ]"}')]


def test_a_malformed_call_does_not_hide_the_next() -> None:
    good = '<tool_call>{"name":"weather","arguments":{"city":"Paris"}}</tool_call>'
    assert run(["<tool_call>{oops}</tool_call>" + good]) == ["<tool_call>{oops}</tool_call>", PARIS]


def test_half_a_surrogate_pair_stays_valid_json() -> None:
    (call,) = parse_tool_calls('<tool_call>{"name":"add","arguments":{"a":"\\ud83d","b":"é"}}</tool_call>', NAMES)[1]
    assert json.loads(call.arguments) == {"a": "\ud83d", "b": "é"}
    call.arguments.encode()


def test_arguments_keep_their_letters() -> None:
    (call,) = parse_tool_calls('{"name":"add","parameters":{"a":"日本","ok":true,"no":null,"s":"it\'s"}}', NAMES)[1]
    assert call.arguments == '{"a": "日本", "ok": true, "no": null, "s": "it\'s"}'


def test_ids_are_their_own_and_fit_every_template() -> None:
    _, calls = parse_tool_calls('[TOOL_CALLS][{"name":"add"},{"name":"add"}]', NAMES)
    assert len({call.id for call in calls}) == 2
    assert all(len(call.id) == 9 and call.id.isalnum() for call in calls)


def test_text_is_not_held_back_longer_than_it_may_be_a_call() -> None:
    stream = ToolCallStream(NAMES)
    assert stream.feed("Hello") == ["Hello"]
    assert stream.feed(" a < b") == [" a < b"]
    assert stream.feed(" <too") == [" "]
    assert stream.feed("ls>") == ["<tools>"]
    assert ToolCallStream(NAMES).feed("{ return 1; }") == ["{ return 1; }"]


def test_a_long_answer_letter_by_letter_takes_no_square_of_its_length() -> None:
    text = '<tool_call>{"name":"add","arguments":{"a":"' + "x{" * 20_000 + '"}}</tool_call>'
    started = time.process_time_ns()
    assert len(run(list(text))) == 1
    assert time.process_time_ns() - started < 5e9


MARKS = ["<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "<tool", *'{}[],;:"\\ \n', "NaN", "null", "1"]
WORDS = ['"name"', '"arguments"', '"parameters"', '"weather"', "text", "€", '{"name": "weather", "parameters": {}}']
FRAGMENTS = st.lists(st.sampled_from([*MARKS, *WORDS, '{"name":"add","arguments":{"n":1}}']), max_size=14).map("".join)


@given(st.data(), FRAGMENTS | st.text())
def test_any_split_gives_what_the_whole_gives(data: st.DataObject, text: str) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    edges = [0, *cuts, len(text)]
    whole = run([text])
    assert run([text[a:b] for a, b in itertools.pairwise(edges)]) == whole
    assert run(list(text)) == whole


@given(FRAGMENTS | st.text())
def test_nothing_is_lost_and_every_call_is_valid(text: str) -> None:
    parts = run([text])
    calls = [part for part in parts if isinstance(part, ToolCall)]
    if not calls:
        assert "".join(part for part in parts if isinstance(part, str)) == text
    for call in calls:
        assert call.name
        assert isinstance(json.loads(call.arguments), dict)
    # What is kept stands in the order in which it was written.
    rest = iter(text)
    assert all(letter in rest for part in parts if isinstance(part, str) for letter in part)


@pytest.mark.parametrize("announced", ["<tool_call>{", "[TOOL_CALLS]["])
def test_a_model_that_announces_calls_for_ever_costs_little(announced: str) -> None:
    text, started = announced * 6000, time.thread_time()
    assert parse_tool_calls(text, ["weather"]) == (text, [])
    assert time.thread_time() - started < 3  # some 20 s, were each looked for to the end
