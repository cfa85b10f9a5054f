"""The prompt form for models that bring no chat template: base models, which continue a text and know no roles.

llama.cpp falls back to ChatML for them, whose markers such a model has never seen: it answers junk. Two questions
with their answers show it instead what to continue.
"""

import re
from dataclasses import dataclass

from trilithon.models.files.gguf import GgufFacts

__all__ = ["BASE_TEMPLATE", "GO_TEMPLATE", "JINJA_TEMPLATE", "PromptForm", "is_go_template", "prompt_form_for"]

JINJA_TEMPLATE, GO_TEMPLATE = "chat_template.jinja", "ollama-template.txt"
"""What the two are called among a model's files. Beside its weights the first is imposed on the model; the second,
Ollama's, is kept for those who look, and nothing here runs it."""

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
"""A Jinja chat template: the system's words, the worked examples, then the turns as Q: and A:."""


@dataclass(frozen=True, slots=True)
class PromptForm:
    """A chat template, and what a request needs with it: where the answer ends, and the penalty against loops."""

    template: str
    stop: tuple[str, ...]
    repeat_penalty: float


_BASE_FORM = PromptForm(BASE_TEMPLATE, ("\n\n", "\nQ:"), 1.1)


def prompt_form_for(facts: GgufFacts, imposed: str = "") -> PromptForm | None:
    """`imposed` is a Jinja template that goes before the file's own; None where the file's own is to be used."""
    if imposed.strip():
        return PromptForm(imposed, (), 1.0)
    return None if facts.chat_template.strip() else _BASE_FORM


# Go's actions begin with a field, a variable, a comment or a keyword; Jinja's statements stand in {% %}.
_GO_ACTION = re.compile(
    r"\{\{-?\s*(?:\.[A-Za-z]|\.\s*-?\}\}|\$|/\*|(?:if|with|range|else|end|define|block|template|break)\b)"
)


def is_go_template(text: str) -> bool:
    """Whether a chat template is one of Ollama's, in Go's language."""
    return "{%" not in text and _GO_ACTION.search(text) is not None
