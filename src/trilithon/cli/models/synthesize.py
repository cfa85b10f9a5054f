"""`trilithon models synthesize`: models with random weights, to measure speed without a download."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trilithon.cli.output import say
from trilithon.errors import UserError
from trilithon.language import Message

# Anything heavier is imported when the command runs: `trilithon --help` has to answer within 0.2 s.
if TYPE_CHECKING:
    from trilithon.cli.engines.progress import CompileProgress
    from trilithon.models.store.manifest import Manifest
    from trilithon.models.synthetic.true_size import Synthetic

__all__ = ["models"]


def _complete_architecture(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    from trilithon.models.synthetic.architectures import architectures

    return [name for name in architectures() if name.startswith(incomplete.lower())]


def _complete_quantization(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    from trilithon.models.synthetic.architectures import QUANTIZATIONS

    return [name.lower() for name in QUANTIZATIONS if name.lower().startswith(incomplete.lower())]


@click.group("models")
def models() -> None:
    """Create models for measurements."""


@models.command("synthesize")
@click.argument("name", required=False, shell_complete=_complete_architecture)
@click.option(
    "--quant",
    default="f16",
    show_default=True,
    shell_complete=_complete_quantization,
    help="The quantisation of the weights.",
)
@click.option("--output", type=click.Path(path_type=Path), help="Write this file. [default: into the store]")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def synthesize(name: str | None, quant: str, output: Path | None, as_json: bool) -> None:
    """Make a model of the true size of NAME, for example qwen2.5-0.5b, with random weights.

    It runs as fast as the real model, and its answers mean nothing: measure its speed, not its quality. Without NAME,
    list the known architectures."""
    from trilithon.cli.engines.progress import CompileProgress
    from trilithon.cli.signals import stoppable
    from trilithon.engines.toolrun import conversions
    from trilithon.models.synthetic.architectures import find_architecture
    from trilithon.models.synthetic.true_size import plan_synthetic, write_synthetic
    from trilithon.settings import load_configuration

    if name is None:
        _print_architectures(as_json)
        return
    if as_json:
        raise UserError("--json is for the list of architectures; leave it or the name out")
    synthetic = plan_synthetic(find_architecture(name), quant)
    with stoppable("stopped; nothing was kept"), CompileProgress() as progress:
        if output is None:
            target = str(_store(synthetic, progress).name)
        else:
            notes = conversions(load_configuration())
            target = str(write_synthetic(synthetic, output, lambda done, size: progress("writing", done / size), notes))
    say(target)
    say(Message("measure it with: trilithon bench {model}", model=target), err=True)


def _print_architectures(as_json: bool) -> None:
    from dataclasses import asdict

    from trilithon.models.synthetic.architectures import QUANTIZATIONS, architectures

    if as_json:
        rows = [
            asdict(architecture) | {"quantizations": list(QUANTIZATIONS)} for architecture in architectures().values()
        ]
        say(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    for key, architecture in architectures().items():
        parameters = f"{architecture.parameters / 1e9:.2f} billion parameters"
        say(f"{key:<16}{parameters}, {architecture.layers} layers", wrap=True)
    names = ", ".join(name.lower() for name in QUANTIZATIONS)
    say(Message("quantisations: {names}", names=names), err=True)


def _store(synthetic: "Synthetic", progress: "CompileProgress") -> "Manifest":
    """Store the model, in the namespace `synthetic`."""
    from trilithon.models.names import ModelName
    from trilithon.models.store.manifest import Manifest, StoredFile, now
    from trilithon.models.store.model_store import ModelStore
    from trilithon.settings import load_configuration

    family, _, size = synthetic.model.key.rpartition("-")
    name = ModelName(ModelName.DEFAULTS[0], "synthetic", family, f"{size}-{synthetic.quantization.lower()}")
    with ModelStore.open(load_configuration()) as store:
        with store.receive(None, synthetic.size_bytes) as partial:
            for chunk in synthetic.chunks():
                partial.append(chunk)
                progress("writing", partial.bytes_done / synthetic.size_bytes)
            digest = partial.finish()
        file = StoredFile(
            role="weights",
            digest=digest,
            size_bytes=synthetic.size_bytes,
            name=synthetic.file_name,
            format="gguf",
            quantization=synthetic.quantization,
        )
        source = "made here, random weights"
        return store.put(Manifest(name=name, files=(file,), source=source, created=now(), synthetic=True))
