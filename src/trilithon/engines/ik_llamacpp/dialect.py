"""The dialect of ik_llama.cpp's server: its requests and answers from and to llama-server's.

The differences are those of examples/server in ik-llama-cpp-python 0.1.5, each seen with the program."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trilithon.engines.ik_llamacpp.answers import AnswerTranslator, ChatAnswers, CompletionAnswers, slots_translated
from trilithon.engines.ik_llamacpp.faults import PLAIN_TEXT, claims_unread_token, counts_the_tail_twice
from trilithon.engines.wire.dialect import Ask, Translation
from trilithon.errors import EngineError

__all__ = ["IkDialect"]

_COMPLETION, _CHAT, _SLOTS = "/completion", "/v1/chat/completions", "/slots"
_INFILL = "/infill"  # ends the server: std::out_of_range in the task that it posts without tokens
_NAMED_COMPLETION = "/v1/completions"
_FORCING = 100.0  # a bias from here on leaves no choice


@dataclass(slots=True)
class IkDialect:
    """Which of its `faults` the build has; None until it was asked."""

    counts_twice: bool | None = None
    claims_unread: bool | None = None

    async def translation(self, path: str, body: Mapping[str, Any] | None, ask: Ask) -> Translation:
        if path == _SLOTS:
            return Translation(path, body, AnswerTranslator(slots_translated))
        if path == _INFILL:
            raise EngineError("ik_llama.cpp cannot insert text; use llama.cpp/cpu", status=501)
        if body is None or path not in (_COMPLETION, _CHAT):
            return Translation(path, body)
        if body.get("cache_prompt", True):
            if self.claims_unread is None:
                self.claims_unread = await claims_unread_token(ask)
            body = {**body, "cache_prompt": not self.claims_unread}
        # A slot keeps the biases of its last request, that of `ignore_eos` too, until it is given others.
        body = {**body, "logit_bias": body.get("logit_bias") or []}
        listed = bool(body.get("n_probs") if path == _COMPLETION else body.get("logprobs"))
        if listed and self.counts_twice is None:
            self.counts_twice = await counts_the_tail_twice(ask)
        twice = listed and bool(self.counts_twice) and not body.get("post_sampling_probs")
        if path == _CHAT:
            chat = ChatAnswers(body, counts_twice=twice)
            # Only a whole answer has calls in one piece, and with tools the listed probabilities.
            return _translation(path, body, chat, streams=not body.get("tools"))
        completion = CompletionAnswers(body, counts_twice=twice)
        # Only the answers of OpenAI's kind have the ids of the listed tokens.
        named = (_NAMED_COMPLETION, _unbiased(body)) if listed else (path, body)
        return _translation(*named, completion, streams=True)


def _translation(
    path: str, body: Mapping[str, Any], answers: ChatAnswers | CompletionAnswers, *, streams: bool
) -> Translation:
    """With `streams` the server answers in events, also where the client does not: in a whole answer, a part of a
    character (which a limit can leave at the end of the text, and a listed token can be) makes this server fail."""
    if body.get("stream") or not streams:
        return Translation(path, body, AnswerTranslator(answers))
    streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
    return Translation(path, streamed, AnswerTranslator(answers, answers.gathered), "application/json")


def _unbiased(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """A bias changes the probabilities that this server lists. One that forces a token is there to get plain text
    (see `messages.Completion.forced`), which a grammar gets too, without a trace in the list."""
    biases = body.get("logit_bias")
    if not isinstance(biases, list) or not any(isinstance(b, list) and b[-1] >= _FORCING for b in biases):
        return body
    return {**body, "logit_bias": [], "grammar": PLAIN_TEXT}
