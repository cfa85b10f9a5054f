from pathlib import Path

import jinja2
import pytest

from trilithon.models.files.gguf import read_gguf
from trilithon.models.files.model_file import read_model_file
from trilithon.models.files.prompt_form import BASE_TEMPLATE, PromptForm, is_go_template, prompt_form_for
from trilithon.models.synthetic.tiny import write_tiny_model


def render(*messages: tuple[str, str], generate: bool = True) -> str:
    # As llama.cpp and transformers render chat templates.
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(BASE_TEMPLATE)
    return template.render(
        messages=[{"role": role, "content": content} for role, content in messages], add_generation_prompt=generate
    )


def test_examples_come_first_and_the_question_last() -> None:
    text = render(("user", " What is a river?\n"))
    assert text.startswith("Q: What is bread made of?\nA: Bread is made of flour")
    assert text.endswith("new technology.\n\nQ: What is a river?\nA:")
    assert text.count("Q: ") == text.count("\nA:") == 3


def test_the_stop_words_do_not_occur_inside_an_example() -> None:
    text = render(("user", "one?"))
    answers = [block.split("\nA: ")[1] for block in text.split("\n\n")[:-1]]
    assert len(answers) == 2
    assert all(len(answer.split()) >= 40 and "\n" not in answer for answer in answers)


def test_a_system_message_opens_the_text() -> None:
    text = render(("system", "Answer in one sentence."), ("user", "one?"))
    assert text.startswith("Answer in one sentence.\n\nQ: What is bread made of?")
    assert text.endswith("\n\nQ: one?\nA:")


def test_turns_alternate() -> None:
    text = render(("user", "one?"), ("assistant", "One."), ("user", "two?"))
    assert text.endswith("\n\nQ: one?\nA: One.\n\nQ: two?\nA:")
    assert render(("user", "one?"), ("assistant", "One."), generate=False).endswith("Q: one?\nA: One.\n\n")


def test_content_with_template_marks_stays_text() -> None:
    assert render(("user", "{{ messages }} {% if %} 'quoted'")).endswith("Q: {{ messages }} {% if %} 'quoted'\nA:")


def test_only_a_model_without_a_template_gets_the_form(tmp_path: Path) -> None:
    base = read_gguf(write_tiny_model(tmp_path / "base.gguf"))
    chat = read_gguf(write_tiny_model(tmp_path / "chat.gguf", template="{{ messages }}"))
    form = prompt_form_for(base)
    assert form is not None
    assert (form.template, form.stop, form.repeat_penalty) == (BASE_TEMPLATE, ("\n\n", "\nQ:"), 1.1)
    assert prompt_form_for(chat) is None


@pytest.mark.parametrize(
    ("text", "go"),
    [
        ("{{ .Prompt }}", True),
        ("{{- range .Messages }}{{ .Role }}{{ end }}", True),
        ("{{ if .System }}<|system|>{{ .System }}{{ end }}", True),
        ("{{- $last := len .Messages }}", True),
        ("{{/* a comment */}}{{ .Response }}", True),
        ("{{ . }}", True),
        ("{% for message in messages %}{{ message['content'] }}{% endfor %}", False),
        ("{{ messages[0]['content'] }}", False),
        ("{{ bos_token }}{% if messages %}{{ '.Prompt' }}{% endif %}", False),
        ("{{ ifs }}", False),
        ("no action at all", False),
        ("", False),
    ],
)
def test_ollamas_templates_are_told_from_jinja(text: str, go: bool) -> None:
    assert is_go_template(text) is go


def test_a_template_beside_a_file_goes_before_its_own(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "one.gguf", template="its own")
    assert read_model_file(model, tmp_path).prompt_form is None
    (tmp_path / "chat_template.jinja").write_text("{{ 'imposed' }}{# enable_thinking #}")
    file = read_model_file(model, tmp_path)
    assert file.prompt_form == PromptForm("{{ 'imposed' }}{# enable_thinking #}", (), 1.0)
    assert "thinking" in file.capabilities
    write_tiny_model(tmp_path / "mmproj-one.gguf")
    assert read_model_file(model, tmp_path).prompt_form is not None
    write_tiny_model(tmp_path / "two.gguf")  # whose template is it now?
    assert read_model_file(model, tmp_path).prompt_form is None
