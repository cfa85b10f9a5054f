"""Chats as the scripted engine reads them: its chat template, and images as one word each."""

from collections.abc import Mapping
from typing import Any, Final

from trilithon.engines.scripted.child.model import VOCABULARY
from trilithon.engines.wire.generation import GenerationRequest
from trilithon.engines.wire.requests import RenderedPrompt, RequestReader, chat_messages

__all__ = ["IMAGE", "TEMPLATE", "ScriptedReader"]

IMAGE: Final = "<image>"
TEMPLATE: Final = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}\n{% endfor %}<|assistant|>\n"


class ScriptedReader(RequestReader[GenerationRequest]):
    def __init__(self, context: int) -> None:
        super().__init__(VOCABULARY, context)

    def rendered(self, body: Mapping[str, Any]) -> RenderedPrompt:
        messages = [
            f"<|{message.get('role', 'user')}|>\n{_content(message.get('content'))}\n"
            for message in chat_messages(body)
        ]
        text = "".join(messages) + "<|assistant|>\n"
        return RenderedPrompt(text, tuple(self.text.tokenize(text, add_special=True)), reasoning_opened=False)

    def request(self, body: Mapping[str, Any], common: GenerationRequest) -> GenerationRequest:
        return common


def _content(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(str(part.get("text", "")) if part["type"] == "text" else IMAGE for part in content)
