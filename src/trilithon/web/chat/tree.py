"""A conversation as a tree: an edited question or another try at an answer is a branch beside the first, none is lost.

Messages have numbers from 1 on in the order in which they were made; 0 is the root, before the first."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from trilithon.web.texts import Texts

__all__ = ["ChatMessage", "ChatSettings", "Conversation", "Role", "as_markdown"]

Role = Literal["user", "assistant"]
ROOT = 0
_TITLE_CHARACTERS = 60


@dataclass(slots=True, kw_only=True)
class ChatMessage:
    """`images` are data URLs. Of an answer: `placement` that was asked for where that was not the server's choice,
    `figures` as `answering.figures_of` gives them, `error` why it is not whole."""

    number: int
    parent: int
    role: Role
    text: str = ""
    thinking: str = ""
    images: list[str] = field(default_factory=list)
    placement: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    error: str = ""


@dataclass(slots=True, kw_only=True)
class ChatSettings:
    """What the reader set; None and empty is the model's own."""

    system: str = ""
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    context: int | None = None


@dataclass(slots=True, kw_only=True, weakref_slot=True)
class Conversation:
    """`chosen` is the branch taken below a message: its number by that of its parent."""

    id: str
    created: str
    title: str = ""
    model: str = ""
    wishes: ChatSettings = field(default_factory=ChatSettings)
    messages: dict[int, ChatMessage] = field(default_factory=dict)
    chosen: dict[int, int] = field(default_factory=dict)

    def add(self, parent: int, role: Role, text: str = "", **more: Any) -> ChatMessage:
        """The new message, which is chosen. Raises KeyError for a parent that is not there."""
        if parent != ROOT:
            self.messages[parent]
        made = ChatMessage(number=len(self.messages) + 1, parent=parent, role=role, text=text, **more)
        self.messages[made.number] = made
        self.chosen[parent] = made.number
        if not self.title and role == "user":
            self.title = " ".join(text.split())[:_TITLE_CHARACTERS]
        return made

    def path(self) -> list[ChatMessage]:
        """What is shown, from the first message on."""
        chain, at = [], ROOT
        while (number := self.chosen.get(at)) is not None:
            chain.append(self.messages[number])
            at = number
        return chain

    def before(self, number: int) -> list[ChatMessage]:
        """From the first message to this one's parent."""
        chain, at = [], self.messages[number].parent
        while at != ROOT:
            chain.append(self.messages[at])
            at = self.messages[at].parent
        return chain[::-1]

    def branches(self, number: int) -> list[int]:
        """The numbers of this message and of those beside it, in the order in which they were made."""
        parent = self.messages[number].parent
        return [message.number for message in self.messages.values() if message.parent == parent]

    def choose(self, number: int) -> None:
        self.chosen[self.messages[number].parent] = number

    def as_json(self) -> dict[str, Any]:
        """For a thread, too, while messages are added."""
        whole = asdict(replace(self, messages={}, chosen=dict(self.chosen)))
        return whole | {"messages": [asdict(message) for message in list(self.messages.values())]}

    @classmethod
    def of_json(cls, body: Mapping[str, Any]) -> "Conversation":
        """Raises ValueError for what is no conversation."""
        try:
            messages = [_made(ChatMessage, body_message) for body_message in body["messages"]]
            made: Conversation = _made(cls, {**body, "messages": {}, "chosen": {}})
            made.wishes = _made(ChatSettings, body["wishes"])
            made.messages = {message.number: message for message in messages}
            made.chosen = {int(parent): int(number) for parent, number in body["chosen"].items()}
            made._check_words()
            made._check_tree()
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"no conversation: {error}") from error
        return made

    def _check_words(self) -> None:
        """Raises ValueError for what could not be shown."""
        words = [self.title, self.model, self.wishes.system]
        for message in self.messages.values():
            words += [message.text, message.thinking, message.placement, message.error, *message.images]
        if not all(isinstance(word, str) for word in words):
            raise ValueError("what should be words is none")
        if any(message.role not in get_args(Role) for message in self.messages.values()):
            raise ValueError("a message is nobody's")

    def _check_tree(self) -> None:
        """Raises ValueError where following parents or choices would lead nowhere, or for ever in a circle."""
        if list(self.messages) != list(range(1, len(self.messages) + 1)):
            raise ValueError("the messages' numbers are not in order")
        if any(not ROOT <= message.parent < message.number for message in self.messages.values()):
            raise ValueError("a message has no parent before it")
        chosen = {number: parent for parent, number in self.chosen.items()}
        if any(number not in self.messages or self.messages[number].parent != chosen[number] for number in chosen):
            raise ValueError("a branch is chosen that is not there")


def _made(kind: type[Any], body: Mapping[str, Any]) -> Any:
    known = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in body.items() if name in known})


def as_markdown(conversation: Conversation, text: Texts) -> str:
    """The branch that is shown, as a text to keep or to pass on."""
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
