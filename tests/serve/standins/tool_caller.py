"""A tiny real model that calls tools: a GGUF of half a megabyte that llama.cpp runs, with weights that are set.

Its only layer adds nothing, so that the next token depends on the last one alone: the embedding of token t is the t-th
unit vector, and the output matrix holds the preferences. Where tools are offered and the last message is not a tool's
result, the template ends the prompt with a token of its own, after which the model begins a call; the grammar then
leads it through names and arguments. Otherwise it writes a sentence. Strings are "a", numbers 3, and what is optional
is left out. Temperature 0 makes all of this certain."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, LlamaFileType, TokenType
from tool_template import TOOL_TEMPLATE

__all__ = ["SENTENCE", "write_tool_caller"]

SENTENCE = ("The", " weather", " is", " fine", ".")
_CALL, _CALL_END, _OFFER, _END = "<tool_call>", "</tool_call>", "\n\n", "<|im_end|>"
_SPECIAL = ("<unk>", "<s>", _END)
_SPACE = "\u2581"
_WORDS = ("<|im_start|>", _CALL, _CALL_END, _OFFER, *SENTENCE)
_SIZE = 288
_THOUGHTS = "{% if message.reasoning_content %}<think>\n{{ message.reasoning_content }}\n</think>\n\n{% endif %}"
_NO_THOUGHTS = "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
_TEMPLATE = TOOL_TEMPLATE.removesuffix("{% endif -%}") + (
    "{% if tools and messages[-1].role != 'tool' %}{{ '\\n' }}{% endif %}{% endif -%}"
)
# What follows a token, the best first; what is not named comes last. Grammars strike out what does not fit.
_VALUE = '"3t{[nf'
_CLOSING = '}],:"'


def write_tool_caller(path: Path, *, context: int = 8192, thinks: bool = False) -> Path:
    """With `thinks`, its template has a place for thoughts, as that of Qwen 3. It never thinks."""
    tokens = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *_WORDS]
    tokens.append(_SPACE)
    tokens += [f"<spare{number}>" for number in range(_SIZE - len(tokens))]
    number_of = {token: number for number, token in enumerate(tokens)}
    number_of |= {chr(byte): len(_SPECIAL) + byte for byte in range(128)}
    preferences = np.zeros((_SIZE, _SIZE), np.float32)  # next token × last token
    preferences[: len(_SPECIAL) - 1] = preferences[tokens.index(_SPACE) + 1 :] = -9.0
    preferences[[number_of[word] for word in _WORDS]] = -3.0

    usual = preferences[:, :1].copy()

    def prefer(last: Iterable[str], following: Iterable[str]) -> None:
        columns = [number_of[token] for token in last]
        preferences[:, columns] = usual
        for rank, token in enumerate(dict.fromkeys(following)):
            preferences[number_of[token], columns] = 9.0 - 0.25 * rank

    everything = [*map(chr, range(128)), *_WORDS, _SPACE]
    prefer(everything, [*_CLOSING, _END, "a", *'3tn{["'])
    prefer('"', ["a", *"}],:", _END])
    prefer(":,", [*_VALUE])
    prefer("{", '}"')
    prefer("[", ["]", *_VALUE])
    prefer("a", '"a')
    prefer("3", [*'"}],', _END, "3"])
    prefer("}]", [*"}]", _END, "\n", _CALL_END, ","])
    prefer([_CALL], "\n{")
    prefer([_CALL_END], [_END])
    prefer([_OFFER], [_CALL, *_VALUE[3:], *_VALUE])
    prefer("\n", [SENTENCE[0], _CALL_END, *_CLOSING, "{", *_VALUE])
    for word, following in zip(SENTENCE, (*SENTENCE[1:], _END), strict=True):
        prefer([word], [following])

    writer = GGUFWriter(path, "llama")
    writer.add_name("Tool caller")
    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_block_count(1)
    writer.add_context_length(context)
    writer.add_embedding_length(_SIZE)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_key_length(32)
    writer.add_value_length(32)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(32)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * _SIZE)
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL] + [TokenType.BYTE] * 256
    types += [TokenType.CONTROL, *[TokenType.USER_DEFINED] * (len(_WORDS) - 1), TokenType.NORMAL]
    writer.add_token_types(types + [TokenType.UNUSED] * (_SIZE - len(types)))
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    template = _TEMPLATE
    if thinks:
        head = "<|im_start|>{{ message.role }}\n"
        template = template.replace(head, head + _THOUGHTS)
        template = template.removesuffix("{% endif -%}") + _NO_THOUGHTS + "{% endif -%}"
    writer.add_chat_template(template)
    nothing = {
        "attn_q": (32, _SIZE), "attn_k": (32, _SIZE), "attn_v": (32, _SIZE), "attn_output": (_SIZE, 32),
        "ffn_gate": (32, _SIZE), "ffn_up": (32, _SIZE), "ffn_down": (_SIZE, 32),
    }  # fmt: skip
    writer.add_tensor("token_embd.weight", np.eye(_SIZE, dtype=np.float32))
    writer.add_tensor("output_norm.weight", np.ones(_SIZE, np.float32))
    writer.add_tensor("output.weight", preferences / np.sqrt(_SIZE).astype(np.float32))
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", np.ones(_SIZE, np.float32))
    for name, shape in nothing.items():
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
