"""The facts of a GGUF file, and the bytes that one decode step reads."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from trilithon.errors import ModelError, NotAModel
from trilithon.models.files.gguf_header import SkippedArray, Tensor, Value
from trilithon.models.files.gguf_parts import GgufHeader, read_header
from trilithon.models.files.kinds import kind_of, pooling_of
from trilithon.models.files.quantizations import FILE_TYPES, tensor_type
from trilithon.tables import table_beside

__all__ = [
    "SYNTHETIC_KEY",
    "GgufFacts",
    "Tensor",
    "bytes_per_token",
    "facts_of",
    "kv_bytes_per_position",
    "kv_bytes_read",
    "layer_kv_bytes",
    "read_gguf",
]

SYNTHETIC_KEY = "trilithon.synthetic"
"""True in the metadata of a model with random weights."""

_WINDOW_PERIODS: Mapping[str, tuple[int, bool]] = table_beside(__file__, "windows.toml")
"""Architecture → of how many layers one has full attention, and whether that one comes first. llama.cpp has these
numbers in its code, for files without a pattern (src/models/*.cpp, load_swa_pattern)."""

# A decode step reads only the rows of its token of these tensors.
_ROW_TABLES = frozenset({"per_layer_token_embd.weight", "position_embd.weight", "token_types.weight"})
_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"
_EXPERTS = re.compile(r"_exps\.(weight|bias|scale)$")
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFacts:
    """`quantization` is short ("Q4_K_M"), `quantization_name` llama-bench's ("Q4_K - Medium").

    `layers` counts the layers that decode runs; `draft_layers` are further ones for speculative decoding only.
    `windowed` says per layer whether its attention is limited to `sliding_window` positions. `heads`, `kv_heads` and
    `head_size` are the largest of all layers. `path` is the first of `parts`; a split model has several. `pooling` is
    how an embedding model makes one vector of a text, empty where the file does not say. `size_bytes` and `parameters`
    are of all parts. `kind` is that of a model (see `FileKind`). `synthetic` means random weights."""

    path: Path
    parts: tuple[Path, ...]
    size_bytes: int
    version: int
    architecture: str
    kind: str
    name: str
    size_label: str
    quantization: str
    quantization_name: str
    parameters: int
    context_train: int | None
    vocabulary: int | None
    embedding: int | None
    layers: int
    draft_layers: int
    heads: int | None
    kv_heads: int | None
    head_size: int | None
    sliding_window: int | None
    windowed: tuple[bool, ...]
    experts: int
    experts_used: int
    chat_template: str
    bos_token: int | None
    space_prefix: bool
    pooling: str
    synthetic: bool
    tensors: tuple[Tensor, ...]


def read_gguf(path: Path) -> GgufFacts:
    """Read the header of a GGUF and of all its parts. Raises NotAModel for an adapter and the like, and ModelError for
    a file that is not complete."""
    return facts_of(read_header(path))


def bytes_per_token(facts: GgufFacts, depth: int = 0, kv_type_k: str = "f16", kv_type_v: str = "f16") -> int:
    """Bytes that one decode step reads: the weights, and the KV cache of `depth` positions.

    Every weight counts once. Of the token embedding one row counts, or all of it when it is also the output matrix. Of
    experts the used ones count; layers for speculative decoding do not."""
    tied = all(tensor.name != _OUTPUT for tensor in facts.tensors)
    weights = sum(_read_of(tensor, facts, tied) for tensor in facts.tensors)
    return int(weights) + kv_bytes_read(facts, depth, kv_type_k, kv_type_v)


def kv_bytes_per_position(facts: GgufFacts, kv_type_k: str = "f16", kv_type_v: str = "f16") -> int:
    """Bytes of one position in the KV cache of all layers (windowed layers drop old positions)."""
    return sum(layer_kv_bytes(facts, kv_type_k, kv_type_v))


def kv_bytes_read(facts: GgufFacts, depth: int, kv_type_k: str = "f16", kv_type_v: str = "f16") -> int:
    """Bytes of KV cache that one decode step after `depth` positions reads; windowed layers read their window."""
    layers = zip(layer_kv_bytes(facts, kv_type_k, kv_type_v), facts.windowed, strict=True)
    window = facts.sliding_window
    return sum(size * (min(depth, window) if windowed and window else depth) for size, windowed in layers)


@dataclass(frozen=True, slots=True)
class _Metadata:
    """The values of a GGUF by key. A value of the wrong type counts as absent."""

    values: Mapping[str, Value]

    def text(self, key: str) -> str:
        value = self.values.get(key)
        return value if isinstance(value, str) else ""

    def number(self, key: str) -> int | None:
        """A count; the largest one when there is one per layer."""
        return max(self.numbers(key), default=None)

    def numbers(self, key: str) -> tuple[int, ...]:
        value = self.values.get(key)
        items = value if isinstance(value, tuple) else (value,)
        return tuple(item for item in items if isinstance(item, int) and not isinstance(item, bool) and item >= 0)

    def length(self, key: str) -> int | None:
        value = self.values.get(key)
        if isinstance(value, SkippedArray):
            return value.length
        return len(value) if isinstance(value, tuple) else None


def facts_of(header: GgufHeader) -> GgufFacts:
    """Of the header of a whole model. Raises NotAModel and ModelError as `read_gguf` does."""
    metadata = _Metadata(header.values)
    path, tensors = header.parts[0], header.tensors
    architecture, names = metadata.text("general.architecture"), frozenset(tensor.name for tensor in tensors)
    kind = kind_of(header.values, names)
    if kind.problem:
        raise NotAModel(kind.sentence(path))
    if not architecture:
        raise ModelError("{path} does not say its architecture; download another conversion of the model", path=path)
    if not tensors:
        raise ModelError("{path} has no weights; download the whole model", path=path)
    prefix = architecture + "."
    heads = metadata.number(prefix + "attention.head_count")
    embedding = metadata.number(prefix + "embedding_length")
    drafts = metadata.number(prefix + "nextn_predict_layers") or 0
    layers = max((metadata.number(prefix + "block_count") or _blocks(tensors)) - drafts, 0)
    if layers > len(tensors):
        raise ModelError("{path} is damaged: it claims {layers} layers; download it again", path=path, layers=layers)
    window = metadata.number(prefix + "attention.sliding_window") or None
    short, long = _quantization(metadata.number("general.file_type"), tensors)
    return GgufFacts(
        path=path,
        parts=header.parts,
        size_bytes=header.size_bytes,
        version=header.version,
        architecture=architecture,
        kind=kind.name,
        name=metadata.text("general.name") or path.stem,
        size_label=metadata.text("general.size_label"),
        quantization=short,
        quantization_name=long,
        parameters=sum(tensor.elements for tensor in tensors),
        context_train=metadata.number(prefix + "context_length"),
        vocabulary=_vocabulary(metadata, prefix, tensors),
        embedding=embedding,
        layers=layers,
        draft_layers=drafts,
        heads=heads,
        kv_heads=metadata.number(prefix + "attention.head_count_kv") or heads,
        head_size=metadata.number(prefix + "attention.key_length")
        or (embedding // heads if embedding and heads else None),
        sliding_window=window,
        windowed=_windowed(metadata, architecture, layers) if window else (False,) * layers,
        experts=metadata.number(prefix + "expert_count") or 0,
        experts_used=metadata.number(prefix + "expert_used_count") or 0,
        chat_template=metadata.text("tokenizer.chat_template"),
        bos_token=metadata.number("tokenizer.ggml.bos_token_id"),
        space_prefix=_space_prefix(metadata),
        pooling=pooling_of(header.values, names),
        synthetic=metadata.values.get(SYNTHETIC_KEY) is True,
        tensors=tensors,
    )


def _blocks(tensors: tuple[Tensor, ...]) -> int:
    return len({match[1] for tensor in tensors if (match := _BLOCK.match(tensor.name))})


def _vocabulary(metadata: _Metadata, prefix: str, tensors: tuple[Tensor, ...]) -> int | None:
    rows = next((tensor.shape[-1] for tensor in tensors if tensor.name == _EMBEDDING), None)
    return metadata.length("tokenizer.ggml.tokens") or metadata.number(prefix + "vocab_size") or rows


def _space_prefix(metadata: _Metadata) -> bool:
    """By the key, else by the kind of tokenizer (llama_vocab::impl::load in llama-vocab.cpp)."""
    by_kind = metadata.text("tokenizer.ggml.model") in ("llama", "t5")
    return metadata.values.get("tokenizer.ggml.add_space_prefix", by_kind) is True


def _quantization(file_type: int | None, tensors: tuple[Tensor, ...]) -> tuple[str, str]:
    """What the file says (1024 marks a guess of the converter), else the type that most weights have."""
    if file_type is not None and file_type % 1024 in FILE_TYPES:
        return FILE_TYPES[file_type % 1024]
    elements: Counter[str] = Counter()
    for tensor in tensors:
        elements[tensor.type] += tensor.elements
    most = elements.most_common(1)[0][0]
    return most, most


def _windowed(metadata: _Metadata, architecture: str, layers: int) -> tuple[bool, ...]:
    key = f"{architecture}.attention.sliding_window_pattern"
    pattern = metadata.values.get(key)
    if isinstance(pattern, tuple) and len(pattern) >= layers:
        return tuple(bool(flag) for flag in pattern[:layers])
    # An unknown architecture counts as full attention, so that its bytes are an upper bound.
    period, full_first = _WINDOW_PERIODS.get(architecture, (1, False))
    period = metadata.number(key) or period
    full = 0 if full_first else period - 1
    return tuple(layer % period != full for layer in range(layers))


def _read_of(tensor: Tensor, facts: GgufFacts, tied: bool) -> Fraction:
    block = _BLOCK.match(tensor.name)
    if block and int(block[1]) >= facts.layers:
        return Fraction(0)
    if tensor.name in _ROW_TABLES or (tensor.name == _EMBEDDING and not tied):
        return Fraction(tensor.size_bytes * tensor.shape[0], tensor.elements)
    if _EXPERTS.search(tensor.name) and 0 < facts.experts_used < facts.experts:
        return Fraction(tensor.size_bytes * facts.experts_used, facts.experts)
    return Fraction(tensor.size_bytes)


def layer_kv_bytes(facts: GgufFacts, kv_type_k: str, kv_type_v: str) -> list[int]:
    """The bytes of one position, per layer. Raises ModelError for an unknown KV type."""
    rows: dict[int, dict[str, int]] = {}
    for tensor in facts.tensors:
        if block := _BLOCK.match(tensor.name):
            rows.setdefault(int(block[1]), {})[block[2]] = tensor.shape[-1]
    usual = (facts.kv_heads or 0) * (facts.head_size or 0)
    widths = [_kv_widths(rows.get(layer, {}), usual) for layer in range(facts.layers)]
    return [_stored_bytes(keys, kv_type_k) + _stored_bytes(values, kv_type_v) for keys, values in widths]


def _kv_widths(rows: Mapping[str, int], usual: int) -> tuple[int, int]:
    """Elements of a layer's keys and values, by the rows of its weights, as layers may differ: heads of windowed layers
    may be narrower, and recurrent layers have none. Fused weights have the `usual` width."""
    if "attn_k.weight" in rows:
        keys = rows["attn_k.weight"]
        return keys, rows.get("attn_v.weight", keys)
    if "attn_kv_a_mqa.weight" in rows:  # latent attention keeps one vector for both
        return usual, 0
    recurrent = any(name.startswith("ssm_") for name in rows)
    return (usual, usual) if "attn_qkv.weight" in rows and not recurrent else (0, 0)


def _stored_bytes(elements: int, kv_type: str) -> int:
    try:
        kind = tensor_type(kv_type.upper())
    except KeyError:
        raise ModelError("unknown KV type {kv_type}; write for example f16, q8_0 or q4_0", kv_type=kv_type) from None
    return -(-elements // kind.elements) * kind.size_bytes
