"""The sizes of a model from the header of its GGUF, which is exact: the table of models is not needed."""

from pathlib import Path

from trilithon.errors import ModelError
from trilithon.estimate.answer import Subject
from trilithon.estimate.sizes import ModelSize, size_named, weights_of_file
from trilithon.models.files.gguf import GgufFacts, kv_bytes_per_position
from trilithon.models.files.memory import feed_forward_width

__all__ = ["subject_of_file"]

_KV_BYTES = 2


def subject_of_file(reference: str, facts: GgufFacts) -> Subject:
    """Raises ModelError for a file without layers."""
    weights = weights_of_file(facts)
    if weights.body <= 0:
        raise ModelError("{reference} holds no layers; name the file with the model's weights", reference=reference)
    name = facts.name.partition(",")[0]  # synthetic models say so behind it
    named = size_named(name) if name else None
    head = (facts.vocabulary or 0) * (facts.embedding or 0)
    tied = all(tensor.name != "output.weight" for tensor in facts.tensors)
    body = facts.parameters - head * (1 if tied else 2)
    read = weights.body / max(weights.held - weights.head * (1 if tied else 2), 1.0)
    same = named is not None and abs(named.parameters / facts.parameters - 1) < 0.05
    size = ModelSize(
        key=named.key if named is not None and same else name.lower() or Path(reference).stem,
        parameters=float(facts.parameters),
        layers=max(facts.layers, 1),
        embedding=facts.embedding or 1,
        vocabulary=facts.vocabulary or 1,
        kv=kv_bytes_per_position(facts) // _KV_BYTES // max(facts.layers, 1),
        active=body * read if facts.experts else None,
        tied=tied,
        form=named.form if named is not None and same else "",
        window=facts.sliding_window,
        forward=feed_forward_width(facts) or None,
        window_layers=sum(facts.windowed),
    )
    return Subject(reference=reference, size=size, weights=weights, quantization=facts.quantization)
