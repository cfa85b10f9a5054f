"""Templates that a request brings: what is understood of Go's language, and what is refused."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.serve.http.errors import ApiError
from trilithon.serve.ollama.prompt import render_prompt


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ .Prompt }}", "hi"),
        ("[{{ .System }}] {{.Prompt}} ->{{ .Response }}<end>", "[be brief] hi ->"),
        ("{{ if .System }}S: {{ .System }}\n{{ end }}{{ if .Suffix }}no{{ else }}yes{{ end }}", "S: be brief\nyes"),
        ("{{ if .Suffix }}a{{ else if .Prompt }}b{{ else }}c{{ end }}", "b"),
        ("{{ if .Suffix }}{{ if .Prompt }}x{{ end }}y{{ end }}z", "z"),
        ("a \n {{- .Prompt -}} \n b", "ahib"),
        ("{{/* a remark */}}{{ .Prompt }}", "hi"),
        ("no action, { and } are text", "no action, { and } are text"),
    ],
)
def test_what_single_prompts_need_is_rendered(template: str, text: str) -> None:
    assert render_prompt(template, system="be brief", prompt="hi") == text


@pytest.mark.parametrize(
    "template",
    ["{{ range .Messages }}{{ end }}", "{{ .Messages }}", "{{ end }}", "{{ else }}", "{{ if .System }}", "{{ .Prompt",
     "{{ if and .System .Prompt }}{{ end }}", "{{ if .System }}" * 30 + "{{ end }}" * 30, "{{ else if .System }}"],
)  # fmt: skip
def test_what_goes_further_is_refused(template: str) -> None:
    with pytest.raises(ApiError, match="template") as caught:
        render_prompt(template, system="", prompt="hi")
    assert caught.value.status == 400


@given(st.text(alphabet="{}.-/* \nifelsndPromptSy", max_size=60), st.text(max_size=20))
def test_any_template_is_rendered_or_refused(template: str, prompt: str) -> None:
    try:
        render_prompt(template, system="", prompt=prompt)
    except ApiError:
        return


@given(st.text(max_size=50))
def test_a_prompt_is_never_taken_for_a_template(prompt: str) -> None:
    assert render_prompt("<{{ .Prompt }}>", system="", prompt=prompt) == f"<{prompt}>"


def test_a_hostile_template_costs_no_time() -> None:
    began = time.process_time()
    with pytest.raises(ApiError):
        render_prompt("{{ " * 300_000, system="", prompt="")
    assert time.process_time() - began < 5
