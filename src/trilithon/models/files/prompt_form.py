"""The prompt form for models without a chat template: base models, which continue a text and know no roles.

llama.cpp uses ChatML for them, whose markers such a model has never seen, so that it answers nonsense. Here two example
questions with their answers show the model what to continue."""

import re
from dataclasses import dataclass

from trilithon.models.files.gguf import GgufFacts

__all__ = ["BASE_TEMPLATE", "GO_TEMPLATE", "JINJA_TEMPLATE", "PromptForm", "is_go_template", "prompt_form_for"]

JINJA_TEMPLATE, GO_TEMPLATE = "chat_template.jinja", "ollama-template.txt"
"""The file names of the two kinds of template. The first is used when it lies beside the weights; the second, of Ollama
in Go's language, is stored and never run."""

_SHOWN = """\
Q: What is bread made of?
A: Bread is made of flour, water, salt and yeast. First the baker mixes them and kneads the dough until it is smooth. \
Then the yeast makes the dough rise, which takes an hour or two. At last the bread is baked in a hot oven, which gives \
it a soft inside and a brown crust.

Q: tell me about Nokia
A: Nokia is a company from Finland that makes equipment for telephone networks. It was founded in 1865 as a paper \
mill, and later made rubber boots and cables. In the 1990s Nokia became the largest maker of mobile phones in the \
world. When smartphones with touch screens came, it lost most of its customers. Today Nokia builds networks for mobile \
operators and does research on new technology.

"""
# Of eight pairs of examples tried on the demo model, this one gave the most sensible answers to six questions, 28 to 53
# words each; examples of one or two sentences get answers of one or two.

BASE_TEMPLATE = (
    "{%- for message in messages if message['role'] == 'system' -%}"
    "{{ message['content'] | trim + '\\n\\n' }}"
    "{%- endfor -%}"
    f"{{{{ {_SHOWN!r} }}}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{ 'Q: ' + message['content'] | trim + '\\n' }}"
    "{%- elif message['role'] == 'assistant' -%}{{ 'A: ' + message['content'] | trim + '\\n\\n' }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'A:' }}{%- endif -%}"
)
"""A Jinja chat template: the system prompt, the two examples, then the turns as Q: and A:."""


@dataclass(frozen=True, slots=True)
class PromptForm:
    """A chat template, the stop strings that a request needs with it, and the penalty against repetition."""

    template: str
    stop: tuple[str, ...]
    repeat_penalty: float


_BASE_FORM = PromptForm(BASE_TEMPLATE, ("\n\n", "\nQ:"), 1.1)


def prompt_form_for(facts: GgufFacts, beside: str = "") -> PromptForm | None:
    """None when the file's own template is to be used. `beside` is a Jinja template that takes precedence over it."""
    if beside.strip():
        return PromptForm(beside, (), 1.0)
    return None if facts.chat_template.strip() else _BASE_FORM


# Actions in Go begin with a field, a variable, a comment or a keyword; statements in Jinja are in {% %}.
_GO_ACTION = re.compile(
    r"\{\{-?\s*(?:\.[A-Za-z]|\.\s*-?\}\}|\$|/\*|(?:if|with|range|else|end|define|block|template|break)\b)"
)


def is_go_template(text: str) -> bool:
    """Whether a chat template is written in Go's template language, as Ollama's are."""
    return "{%" not in text and _GO_ACTION.search(text) is not None
