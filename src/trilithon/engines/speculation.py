"""Speculative decoding: tokens are guessed ahead, and one step of the model checks several. The answer is the model's
own all the same: a guess that it would not have made is dropped."""

from trilithon.engines.base import Build, Settings
from trilithon.models.files.model_file import ModelFile

__all__ = ["SPECULATIONS", "refusal_of_speculation"]

SPECULATIONS = ("ngram-simple", "ngram-map-k", "ngram-map-k4v", "ngram-mod", "draft-mtp")
"""llama-server's words (common/speculative.cpp). The n-gram ways look for what was just said earlier in the text and
guess that it goes on alike; draft-mtp asks the model's own prediction layers. Left out: "ngram-cache", which guesses
little without a file of its own, and separate draft models, which lost on an RK3588 wherever they were measured."""

_OWN_LAYERS = "draft-mtp"


def refusal_of_speculation(file: ModelFile, build: Build, settings: Settings) -> str:
    """Why the file cannot be run with the speculation that `settings` ask for; empty when it can."""
    wanted = settings.speculation
    if wanted is None:
        return ""
    if "speculation" not in build.features:
        return f"{build.engine} guesses no tokens ahead; leave spec out"
    if wanted not in SPECULATIONS:
        return f"unknown speculation {wanted}; there are {', '.join(SPECULATIONS)}"
    if wanted == _OWN_LAYERS and not file.draft_layers:
        return f"{file.path.name} has no layers that guess further tokens; take spec=ngram-mod, or another file"
    return ""
