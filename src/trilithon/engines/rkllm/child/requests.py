"""What the RKLLM runtime can do of a request; what it cannot is refused by name."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from trilithon.engines.rkllm.child.answering import RkllmRequest
from trilithon.engines.rkllm.child.structs import GREEDY, Picture, RkllmSampling
from trilithon.engines.rkllm.child.template import ModelText
from trilithon.engines.rkllm.child.vision import VisionEncoder, images_in
from trilithon.engines.wire.bodies import field_of
from trilithon.engines.wire.generation import GenerationRequest
from trilithon.engines.wire.http import WireError
from trilithon.engines.wire.requests import RenderedPrompt, RequestReader, chat_messages, offered_tools
from trilithon.engines.wire.sampling_fields import NEUTRAL, RANDOM_SEEDS, UNSUPPORTED, biases, refuse_unknown, within

__all__ = ["RkllmReader", "Vision"]

Vision = tuple[VisionEncoder | None, str]
"""The vision encoder, or the reason why there is none."""

# Fields that the runtime does not support, with the values that have no effect: some clients send these every time.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {**NEUTRAL, "min_p": (0,)}
_WINDOWS = (64, -1)  # llama-server's, and "the whole context"; how far the runtime looks back is not documented

# The runtime's defaults, from its guide (1.3.0), for requests that are not greedy.
_DEFAULT = RkllmSampling(top_k=40, top_p=0.9, temperature=0.8, repeat_penalty=1.1)
_LEAST_TEMPERATURE, _MOST_TEMPERATURE = 1e-3, 10.0
_ALL_TOKENS = 100_000
_GREEDY_WORDS = ("n_probs", "logprobs", "logit_bias")


class RkllmReader(RequestReader[RkllmRequest]):
    """`thinking` is for requests that do not set it."""

    def __init__(self, text: ModelText, context: int, *, thinking: bool, vision: Vision) -> None:
        super().__init__(text, context)
        self._model_text = text
        self._thinking = thinking
        self._vision = vision

    def rendered(self, body: Mapping[str, Any]) -> RenderedPrompt:
        thinking = self._thinks(body)
        return self._model_text.chat(chat_messages(body), tools=offered_tools(body), enable_thinking=thinking)

    def chat(self, body: Mapping[str, Any]) -> RkllmRequest:
        picture = self._picture(body)
        # The text of a conversation with pictures is tokenized by the runtime, after the encoder has run.
        rendered = RenderedPrompt("", None, reasoning_opened=False) if picture else self.rendered(body)
        return replace(self.chat_of(body, rendered), thinking=self._thinks(body), picture=picture)

    def request(self, body: Mapping[str, Any], common: GenerationRequest) -> RkllmRequest:
        sampling, bias = _sampling(body), biases(body, self._model_text.token)
        _refuse_unsupported(body, greedy=sampling.top_k == 1)
        if (common.candidates or bias) and sampling != GREEDY:
            # The runtime gives scores instead of an answer; the token is then chosen here, which is only done greedily.
            name = next((name for name in _GREEDY_WORDS if body.get(name)), "top_logprobs")
            raise WireError(400, f'"{name}" needs "temperature" 0 and no penalties with the RKLLM runtime', UNSUPPORTED)
        if (common.candidates or bias or common.ignore_eos) and common.prompt_tokens is None:
            name = next((name for name in (*_GREEDY_WORDS, "ignore_eos") if body.get(name)), "prompt")
            raise WireError(400, f'"{name}" needs token ids; {self.text.note or "send them"}', UNSUPPORTED)
        fields = {name: getattr(common, name) for name in GenerationRequest.__slots__}
        return RkllmRequest(**fields, sampling=sampling, bias=bias)

    def _picture(self, body: Mapping[str, Any]) -> Callable[[], Picture] | None:
        """Encodes the conversation with its pictures; None where there are none."""
        messages = chat_messages(body)
        if not images_in(messages):
            return None
        encoder, reason = self._vision
        if encoder is None:
            raise WireError(501, reason, UNSUPPORTED)
        if offered_tools(body):
            message = '"tools" and pictures do not go together in the RKLLM runtime; leave out one'
            raise WireError(400, message, UNSUPPORTED)
        return lambda: encoder.chat(messages)

    def _thinks(self, body: Mapping[str, Any]) -> bool:
        settings = field_of(body, "chat_template_kwargs", dict, {})
        if unknown := settings.keys() - {"enable_thinking"}:
            message = f'"chat_template_kwargs" takes enable_thinking alone; leave out {", ".join(sorted(unknown))}'
            raise WireError(400, message, UNSUPPORTED)
        enabled = settings.get("enable_thinking", body.get("enable_thinking"))
        return self._thinking if enabled is None else bool(enabled)


def _refuse_unsupported(body: Mapping[str, Any], *, greedy: bool) -> None:
    refuse_unknown(body, _NEUTRAL, "the RKLLM runtime")
    if not greedy and body.get("seed") is not None and body["seed"] not in RANDOM_SEEDS:
        message = '"seed" is not supported by the RKLLM runtime; leave it out, or set "temperature" to 0'
        raise WireError(400, message, UNSUPPORTED)
    if body.get("repeat_last_n") is not None and body["repeat_last_n"] not in _WINDOWS:
        raise WireError(400, '"repeat_last_n" cannot be set in the RKLLM runtime; leave it out', UNSUPPORTED)


def _sampling(body: Mapping[str, Any]) -> RkllmSampling:
    temperature = within(body, "temperature", _DEFAULT.temperature, 0, _MOST_TEMPERATURE)
    top_k = field_of(body, "top_k", int, _DEFAULT.top_k)
    plain = RkllmSampling(
        repeat_penalty=within(body, "repeat_penalty", _DEFAULT.repeat_penalty, 0.1, 10),
        frequency_penalty=within(body, "frequency_penalty", 0.0, -2, 2),
        presence_penalty=within(body, "presence_penalty", 0.0, -2, 2),
    )
    if temperature < _LEAST_TEMPERATURE or top_k == 1:
        return plain
    return replace(
        plain,
        top_k=min(top_k, _ALL_TOKENS) if top_k > 0 else _ALL_TOKENS,
        top_p=within(body, "top_p", _DEFAULT.top_p, 0, 1),
        temperature=temperature,
        mirostat=int(within(body, "mirostat", 0, 0, 2)),
        mirostat_tau=within(body, "mirostat_tau", GREEDY.mirostat_tau, 0.01, 100),
        mirostat_eta=within(body, "mirostat_eta", GREEDY.mirostat_eta, 0.001, 10),
    )
