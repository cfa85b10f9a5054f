import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.models.files.capabilities import capabilities_of, has_vision_weights


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("", set()),
        ("{% for message in messages %}{{ message['content'] }}{% endfor %}", set()),
        ("{%- if tools %}{{ tools | tojson }}{%- endif %}", {"tools"}),
        ("{%- for each in\n tools %}x{% endfor %}", {"tools"}),
        ("{# tools are not for this one #}You have no tools.", set()),
        ("{{ message.tool_calls }}", set()),
        ("{%- if enable_thinking is defined %}x{% endif %}", {"thinking"}),
        ("{{ content.split('</think>')[-1] }}", {"thinking"}),
        ("<|channel|>analysis", {"thinking"}),
        ("{{ message.reasoning_content }}{% if tools is not none %}x{% endif %}", {"thinking", "tools"}),
        ("{% if item['type'] == 'image' %}<start_of_image>{% endif %}", set()),
    ],
)
def test_what_a_template_says(template: str, expected: set[str]) -> None:
    assert capabilities_of(template, vision=False) == expected
    assert capabilities_of(template, vision=True) == expected | {"vision"}


@given(st.text(alphabet="{}% #tols\n", max_size=2000))
def test_any_template_is_read(template: str) -> None:
    assert capabilities_of(template, vision=False) <= {"thinking", "tools"}


def test_a_long_template_without_an_end_is_read_in_no_time() -> None:
    assert capabilities_of("{%" * 20_000 + "x" * 20_000, vision=False) == set()


def test_an_encoder_in_the_file_is_what_sees() -> None:
    assert has_vision_weights(["token_embd.weight", "v.blk.0.attn_q.weight"])
    assert has_vision_weights(["mm.0.weight"])
    assert not has_vision_weights(["token_embd.weight", "blk.0.attn_v.weight"])
