import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from trilithon.engines.rkllm.child.template import Detokenizer, ModelText, plain_prompt
from trilithon.engines.wire import chat_template
from trilithon.errors import ModelError, UserError

CHATML = (
    "{%- if tools %}{{ 'Tools:' }}\n{%- for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content }}"
    "{%- for call in message.tool_calls or [] %}<tool_call>{{ call.function.arguments | tojson }}</tool_call>"
    "{%- endfor %}{{- '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
HELLO: list[dict[str, Any]] = [{"role": "user", "content": "Hello, Ünï €!"}]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|im_start|>", "<|im_end|>", "<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["hello there user assistant"] * 5, trainer)
    return made


@pytest.fixture
def model(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """A model with tokenizer and template beside it."""
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    configure(tmp_path, chat_template=CHATML)
    return tmp_path / "m.rkllm"


def configure(folder: Path, **values: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(values))


def test_chat_by_the_models_own_template(model: Path, tokenizer: Tokenizer) -> None:
    words = ModelText.beside(model)
    prompt = words.chat(HELLO)
    assert prompt.text == "<|im_start|>user\nHello, Ünï €!<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.tokens == tuple(tokenizer.encode(prompt.text, add_special_tokens=False).ids)
    assert prompt.tokens[0] == tokenizer.token_to_id("<|im_start|>")
    assert not prompt.reasoning_opened
    assert words.note == ""
    assert words.vocabulary == tokenizer.get_vocab_size()
    assert words.token("<s>") == 2
    assert words.token("absent") is None


def test_thinking_is_off_only_when_that_is_said(model: Path) -> None:
    words = ModelText.beside(model)
    assert words.chat(HELLO, enable_thinking=False).text.endswith("<think>\n\n</think>\n\n")
    assert words.chat(HELLO, enable_thinking=True).text == words.chat(HELLO).text


def test_a_template_that_opens_the_thinking_block(model: Path) -> None:
    configure(model.parent, chat_template="{{ messages[0].content }}<think>\n")
    assert ModelText.beside(model).chat(HELLO).reasoning_opened


def test_tools_and_the_arguments_of_earlier_calls(model: Path) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "add", "arguments": '{"city": "Zürich", "n": 1}'}}
    messages = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]}]
    text = ModelText.beside(model).chat(messages, tools=[{"name": "<add>"}]).text
    assert 'Tools:{"name": "<add>"}' in text
    assert '<tool_call>{"city": "Zürich", "n": 1}</tool_call>' in text
    bad = {"function": {"name": "add", "arguments": "{oops"}}
    with pytest.raises(UserError, match="are not JSON"):
        ModelText.beside(model).chat([{"role": "assistant", "tool_calls": [bad]}])


def test_content_in_parts(model: Path) -> None:
    parts = [{"type": "image_url", "image_url": {"url": "data:"}}, {"type": "text", "text": "What is it?"}]
    assert "user\n<image>What is it?<" in ModelText.beside(model).chat([{"role": "user", "content": parts}]).text
    with pytest.raises(UserError, match="input_audio is unknown"):
        ModelText.beside(model).chat([{"role": "user", "content": [{"type": "input_audio"}]}])


def test_a_template_for_tools_alone_and_special_tokens(model: Path) -> None:
    named = [
        {"name": "default", "template": "{{ bos_token }}plain{{ eos_token }}"},
        {"name": "tool_use", "template": "with tools"},
    ]
    configure(model.parent, chat_template=named, bos_token={"content": "<s>"}, eos_token="</s>", pad_token=None)
    words = ModelText.beside(model)
    assert words.chat(HELLO).text == "<s>plain</s>"
    assert words.chat(HELLO, tools=[{}]).text == "with tools"


def test_the_template_in_a_file_of_its_own_goes_first(model: Path) -> None:
    (model.parent / "chat_template.json").write_text('{"chat_template": "second"}')
    assert ModelText.beside(model).chat(HELLO).text == "second"
    (model.parent / "chat_template.jinja").write_text("first")
    assert ModelText.beside(model).chat(HELLO).text == "first"


def test_what_templates_count_on(model: Path) -> None:
    (model.parent / "chat_template.jinja").write_text(
        "{% for n in [1, 2, 3] %}{% if n == 2 %}{% continue %}{% endif %}{{ n }}{% endfor %}\n"
        "  {% if true %}\n{% generation %}said{% endgeneration %}\n{% endif %}\n"
        "{{ strftime_now('%Y') | length }} {{ {'b': '<é>', 'a': 1} | tojson(indent=2) }}"
    )
    assert ModelText.beside(model).chat(HELLO).text == '13said4 {\n  "b": "<é>",\n  "a": 1\n}'


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('System role not supported') }}", "System role not supported"),
        ("{{ 1 + 'a' }}", "unsupported operand"),
        ("{{ messages[7].content.x }}", "no element 7"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages.append(1) }}", "not safely callable|unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% for n in range(1000000000) %}{% endfor %}", "Range too big"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "does not end"),
    ],
)
def test_a_template_that_refuses_or_wants_too_much(model: Path, template: str, words: str) -> None:
    configure(model.parent, chat_template=template)
    with pytest.raises(UserError, match=words) as caught:
        ModelText.beside(model).chat(HELLO)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", '{"chat_template": "{% if %}"}'),
        ("chat_template.jinja", "{{"),
    ],
)
def test_damaged_files_are_one_line(model: Path, name: str, content: str) -> None:
    (model.parent / name).write_text(content)
    with pytest.raises(ModelError, match=name) as caught:
        ModelText.beside(model)
    assert "\n" not in str(caught.value)


def test_without_a_tokenizer_the_runtime_has_the_word(tmp_path: Path) -> None:
    words = ModelText.beside(tmp_path / "m.rkllm")
    assert (words.has_tokenizer, words.has_template, words.vocabulary) == (False, False, None)
    assert "tokenizer.json" in words.note
    prompt = words.chat([{"role": "system", "content": "Be kind."}, *HELLO])
    assert (prompt.text, prompt.tokens) == ("Be kind.\n\nHello, Ünï €!", None)
    with pytest.raises(UserError, match=r"tools need .* put the model's tokenizer.json"):
        words.chat(HELLO, tools=[{}])
    with pytest.raises(UserError, match="there is no tokenizer"):
        words.tokenize("a")


def test_without_a_template_tokens_can_still_be_counted(model: Path) -> None:
    configure(model.parent)
    words = ModelText.beside(model)
    assert words.chat(HELLO).tokens is None
    assert words.tokenize("hello")
    assert "no chat template" in words.note


def test_without_the_library_the_note_says_what_to_install(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    words = ModelText.beside(model)
    assert not words.has_tokenizer
    assert "-m pip install 'jinja2" in words.note


def test_a_conversation_for_the_runtimes_template() -> None:
    turns = [*HELLO, {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "And?"}]
    assert plain_prompt(turns) == "User: Hello, Ünï €!\n\nAssistant: Hi.\n\nUser: And?"
    with pytest.raises(UserError, match="role tool needs"):
        plain_prompt([{"role": "tool", "content": "1"}])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_tokens_come_back_as_the_text(model: Path, text: str) -> None:
    words = ModelText.beside(model)
    tokens = words.tokenize(text)
    assert words.detokenize(tokens) == text
    detokenizer = words.detokenizer(special=True)
    assert "".join(detokenizer.feed(token) for token in tokens) + detokenizer.finish() == text


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(3, 300), max_size=20))
def test_any_tokens_come_out_as_when_decoded_at_once(tokenizer: Tokenizer, tokens: list[int]) -> None:
    detokenizer = Detokenizer(tokenizer.decode)
    shown = "".join(detokenizer.feed(token) for token in tokens) + detokenizer.finish()
    if "\ufffd" not in tokenizer.decode(tokens):
        assert shown == tokenizer.decode(tokens)


def test_special_tokens_are_hidden_unless_asked_for(model: Path) -> None:
    words = ModelText.beside(model)
    token = words.token("<|im_end|>")
    assert token is not None
    assert words.detokenizer().feed(token) == ""
    assert words.detokenizer(special=True).feed(token) == "<|im_end|>"
    assert words.detokenize([token]) == "<|im_end|>"


def test_a_broken_character_does_not_hold_the_answer_back() -> None:
    detokenizer = Detokenizer(lambda tokens: bytes(tokens).decode(errors="replace"))
    assert [detokenizer.feed(0xE2) for _ in range(9)] == [""] * 7 + ["\ufffd" * 8, ""]


@pytest.mark.parametrize("token", [-1, 2**31])
def test_numbers_that_are_no_tokens(model: Path, token: int) -> None:
    with pytest.raises(UserError, match="is not a token"):
        ModelText.beside(model).detokenize([token])


FOR_EVER = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (FOR_EVER, "does not end"),
        ("{% for a in range(99999) %}{{ 'x' * 99999 }}{% endfor %}", "does not end"),
        ("{{ messages[0].content * 10 ** 13 }}", "needs more than 512 MiB"),
        ("{% include '/etc/hostname' %}", "no loader"),
        ("{% import '/etc/hostname' as x %}{{ x }}", "no loader"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_a_hostile_template_is_ended(model: Path, monkeypatch: pytest.MonkeyPatch, template: str, words: str) -> None:
    monkeypatch.setattr(chat_template, "_MOST_SECONDS", 0.2)
    configure(model.parent, chat_template=template)
    with pytest.raises(UserError, match=words):
        ModelText.beside(model).chat(HELLO)


@pytest.mark.parametrize("template", ["{{ 10 ** 100000 }}", "{{ 'x' * 10 ** 13 }}"])
def test_a_hostile_constant_is_told_or_ended(model: Path, template: str) -> None:
    """Jinja computes some of them when it reads the template."""
    configure(model.parent, chat_template=template)
    with pytest.raises((ModelError, UserError), match="template"):
        ModelText.beside(model).chat(HELLO)


def test_a_template_that_doubles_a_text_takes_a_limited_memory(model: Path) -> None:
    doubled = "{% set ns = namespace(x='aaaa') %}{% for i in range(31) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
    configure(model.parent, chat_template=doubled)
    with pytest.raises(UserError, match="needs more than 512 MiB"):
        ModelText.beside(model).chat(HELLO)
    assert len(bytearray(600 << 20)) == 600 << 20  # the limit was the template's alone


def test_the_kernels_time_counts_too(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New pages are the kernel's work, and a template can ask for them without end."""
    monkeypatch.setattr(chat_template, "_MOST_SECONDS", 1.0)
    paged = "{% for i in range(99999) %}{% set x = messages[0].role * 29999999 %}{% endfor %}"
    configure(model.parent, chat_template=paged)
    text, before = ModelText.beside(model), time.process_time()
    with pytest.raises(UserError, match="does not end"):
        text.chat(HELLO)
    assert time.process_time() - before < 2.5


def test_half_a_surrogate_pair_in_the_arguments_of_an_earlier_call(model: Path) -> None:
    call = {"function": {"name": "add", "arguments": '{"city": "\\ud800"}'}}
    prompt = ModelText.beside(model).chat([*HELLO, {"role": "assistant", "content": "", "tool_calls": [call]}])
    assert prompt.tokens
