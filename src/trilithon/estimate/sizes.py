"""The sizes of models that decide speed and memory: from a table of known models, a GGUF's header, or a number of
parameters alone."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from trilithon.models.files.gguf import GgufFacts
from trilithon.tables import table_beside

__all__ = [
    "ModelSize",
    "WeightBytes",
    "bits_of",
    "known_sizes",
    "short_name",
    "size_named",
    "weights_of",
    "weights_of_file",
]

_MILLION = 1e6
# Bits per weight of the layers: of a block with its scales (ggml's types), or the mixture that llama-quantize makes.
# The last column is for rows that are not multiples of 256, which get coarser fallbacks (a published tensor table of
# Qwen2.5 0.5B: llama-roofline, format_matrix).
_TABLE = table_beside(__file__, "quantizations.toml")
_VERSIONS = re.compile(
    r"-(instruct|it|chat|base|thinking|qat|text|hf|gguf|\d{4}|v\d+(\.\d+)?|[24]k|128k"
    r"|i?q\d-(k(-[sml])?|[01]|nl|x?xs|[sm])|b?fp?16)(?=-|$)"
)
_BILLIONS = re.compile(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])")
_POSSIBLE = (0.001, 10_000)  # billions of parameters of a language model
_ACTIVE = re.compile(r"-a(\d+(?:\.\d+)?)b(?![a-z0-9])")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """`parameters`, `active` and `unread` are counts (see models.toml); `kv` numbers per layer and position;
    `forward` is the width of the feed-forward part if it is known; `exact` is false where only the number of parameters
    is known."""

    key: str
    parameters: float
    layers: int
    embedding: int
    vocabulary: int
    kv: int
    queries: int | None = None
    active: float | None = None
    unread: float = 0.0
    tied: bool = True
    attention_layers: int | None = None
    form: str = ""
    window: int | None = None
    window_layers: int = 0
    forward: int | None = None
    exact: bool = True

    @property
    def head(self) -> float:
        """WeightBytes of the output matrix."""
        return float(self.vocabulary * self.embedding)

    @property
    def body(self) -> float:
        """WeightBytes of all layers."""
        return max(self.parameters - self.unread - self.head * (1 if self.tied else 2), self.parameters * 0.05)

    @property
    def read(self) -> float:
        """WeightBytes of the layers that one token reads."""
        return self.active if self.active is not None else self.body

    @property
    def forward_width(self) -> float:
        """Of one token's feed-forward part: what three matrices of the layer beside those of attention leave."""
        if self.forward is not None:
            return self.forward
        queries = self.queries or self.embedding
        attention = self.embedding * (2 * queries + self.kv)
        return max((self.read / self.layers - attention) / (3 * self.embedding), self.embedding)

    def cached_numbers(self, depth: float) -> float:
        """Numbers of the KV cache that one token reads after `depth` positions."""
        layers = self.layers if self.attention_layers is None else self.attention_layers
        short = min(self.window_layers, layers)
        return self.kv * ((layers - short) * depth + short * min(depth, self.window or depth))


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightBytes:
    """Bytes: `body` is what one token reads of the layers, `head` of the output matrix, `held` the whole model; `kinds`
    of the matrices by the type of the tensors, where a file says it."""

    body: float
    head: float
    held: float
    kinds: Mapping[str, float] = field(default_factory=dict)


@cache
def known_sizes() -> Mapping[str, ModelSize]:
    """By every name in lower case."""
    sizes = {}
    for key, row in table_beside(__file__, "models.toml").items():
        names = row.pop("names", [])
        counts = {name: row.pop(name) * _MILLION for name in ("parameters", "active", "unread") if name in row}
        for name in (key, *names):
            sizes[name] = ModelSize(key=key, **counts, **row)
    return sizes


def size_named(name: str, billions: float | None = None) -> ModelSize | None:
    """A model by its name ("Qwen2.5-1.5B-Instruct", "qwen2.5:1.5b"); one that is not in the table by its number of
    parameters, which names often have; None where that is unknown too."""
    plain, short = _plain(name), short_name(name)
    for candidate in (plain, short, short.replace("-", "", 1), re.sub(r"^([a-z]+)(\d)", r"\1-\2", short)):
        if candidate in known_sizes():
            return known_sizes()[candidate]
    if billions is None and (stated := _BILLIONS.search(plain)):
        billions = float(stated[1]) / (1 if stated[2] == "b" else 1000)
        if not _POSSIBLE[0] <= billions <= _POSSIBLE[1]:
            return None
    if billions is None:
        return None
    active = _ACTIVE.search(plain)
    if active and not 0 < float(active[1]) <= billions:
        return None
    return _typical(short, billions, float(active[1]) if active else None)


def short_name(name: str) -> str:
    """What names of one model have in common: "qwen2.5-1.5b" of "Qwen2.5-1.5B-Instruct" and "qwen2.5:1.5b-q8_0"."""
    return _VERSIONS.sub("", _plain(name))


def _plain(name: str) -> str:
    return re.sub(r"[:_ /]", "-", name.strip().lower().rpartition("/")[2].replace("v-2_6", "v-2.6"))


def weights_of(size: ModelSize, body_bits: float, head_bits: float) -> WeightBytes:
    """From bits per weight."""
    held = size.body * body_bits + size.head * head_bits * (1 if size.tied else 2) + size.unread * body_bits
    return WeightBytes(body=size.read * body_bits / 8, head=size.head * head_bits / 8, held=held / 8)


def bits_of(quantization: str, embedding: int) -> tuple[float, float]:
    """Bits per weight of the layers and of the output matrix in a GGUF. Raises KeyError for an unknown one."""
    whole, fallback, head = _TABLE["bits"][quantization.upper().removeprefix("UD-").replace("_XL", "_M")]
    if embedding % 256 == 0:
        return whole, head
    return fallback, head if head > 8 else 8.5


def weights_of_file(facts: GgufFacts) -> WeightBytes:
    """Exact, from the tensor table."""
    from trilithon.models.files.gguf import bytes_per_token

    table = {tensor.name: tensor.size_bytes for tensor in facts.tensors}
    head = table.get("output.weight", table.get("token_embd.weight", 0))
    output = "output.weight" if "output.weight" in table else "token_embd.weight"  # a tied one is copied as output
    kinds: dict[str, float] = defaultdict(float)
    for tensor in facts.tensors:
        if len(tensor.shape) > 1 and (tensor.name.startswith("blk.") or tensor.name == output):
            kinds[tensor.type] += tensor.size_bytes
    return WeightBytes(body=bytes_per_token(facts) - head, head=head, held=sum(table.values()), kinds=dict(kinds))


@cache
def _dense_sizes() -> Sequence[ModelSize]:
    sizes = {size.key: size for size in known_sizes().values()}
    return [size for size in sizes.values() if size.active is None and not size.unread]


def _typical(key: str, billions: float, active: float | None) -> ModelSize:
    """Proportions that models of this size have: the nearest in the table, scaled."""
    nearest = min(_dense_sizes(), key=lambda size: abs(size.parameters / 1e9 / billions - 1))
    head = nearest.head * (1 if nearest.tied else 2)
    return replace(
        nearest,
        key=key,
        parameters=billions * 1e9,
        active=None if active is None else max(active * 1e9 - head, active * 5e8),
        form="",
        attention_layers=None,
        exact=False,
    )
