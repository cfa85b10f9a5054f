"""A conversation as a text to keep or to pass on: the branch that is shown, as Markdown."""

from trilithon.web.chat.tree import Conversation
from trilithon.web.texts import Texts

__all__ = ["as_markdown"]


def as_markdown(conversation: Conversation, text: Texts) -> str:
    parts = [f"# {conversation.title or text('chat.untitled')}"]
    if conversation.model:
        parts.append(f"{text('chat.model')}: {conversation.model}")
    if conversation.wishes.system:
        parts.append(f"{text('chat.system')}: {conversation.wishes.system}")
    for message in conversation.path():
        parts.append(f"## {text(f'chat.{message.role}')}")
        parts += [f"*{text('chat.picture')}*"] * len(message.images)
        parts.append(message.text + (f"\n\n*{message.error}*" if message.error else ""))
    return "\n\n".join(parts) + "\n"
