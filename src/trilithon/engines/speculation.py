"""Speculative decoding: several tokens are drafted, and one step of the model checks them all. The answer is the same
as without: a drafted token that the model would not have chosen is dropped."""

from trilithon.engines.base import Build, Settings
from trilithon.language import Message
from trilithon.models.files.model_file import ModelFile
from trilithon.suggestions import alternatives

__all__ = ["SPECULATIONS", "refusal_of_speculation"]

SPECULATIONS = ("ngram-simple", "ngram-map-k", "ngram-map-k4v", "ngram-mod", "draft-mtp")
"""Values of llama-server's `--spec-type` (common/speculative.cpp). The n-gram methods search the text for its last
tokens and draft what followed there; draft-mtp uses prediction layers of the model. Not supported: "ngram-cache",
which drafts little without a file of its own, and separate draft models, which were slower on an RK3588
in every measurement."""

_PREDICTION_LAYERS = "draft-mtp"


def refusal_of_speculation(file: ModelFile, build: Build, settings: Settings) -> str:
    """Why the file cannot run with `settings.speculation`; empty when it can."""
    method = settings.speculation
    if method is None:
        return ""
    if "speculation" not in build.features:
        return f"{build.engine} has no speculative decoding; leave spec out"
    if method not in SPECULATIONS:
        return Message("unknown speculation {name}; {fix}", name=method, fix=alternatives(method, SPECULATIONS))
    if method == _PREDICTION_LAYERS and not file.draft_layers:
        return f"{file.path.name} has no layers that predict further tokens; take spec=ngram-mod, or another file"
    return ""
