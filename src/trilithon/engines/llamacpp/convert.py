"""Hugging Face models converted to GGUF by convert_hf_to_gguf.py, which comes with llama.cpp's source."""

import sys
from pathlib import Path

from trilithon.engines.conversion import (
    Converted,
    Progress,
    ToolProgress,
    conversion_dir,
    environment_python,
    json_output,
    require_new_file,
    require_written,
)
from trilithon.engines.llamacpp.source import DEFAULT_VERSION, fetch, open_source
from trilithon.engines.toolrun import conversion_log, run_tool
from trilithon.errors import UserError
from trilithon.models.store.staging import publish
from trilithon.settings import Configuration

__all__ = ["GGUF_TYPES", "convert_to_gguf"]

GGUF_TYPES = ("f16", "bf16", "f32", "q8_0")
"""The values of `--outtype` that convert_hf_to_gguf.py writes for any model; llama-quantize writes the others."""

_LIBRARIES = ("torch", "transformers", "sentencepiece", "numpy")
_FIND_LIBRARIES = (
    "import importlib.util as u, json, sys; print(json.dumps({m: bool(u.find_spec(m)) for m in sys.argv[1:]}))"
)


def convert_to_gguf(
    source: Path,
    output: Path,
    kind: str,
    configuration: Configuration,
    progress: Progress,
    converter: Path | None = None,
) -> Converted:
    """`converter` is a folder or an archive of llama.cpp's source; by default the source is downloaded. Raises
    UserError for what can be checked before the conversion, TrilithonError when the converter fails."""
    if kind not in GGUF_TYPES:
        raise UserError(
            f"--quant {kind}: a GGUF is first made as {', '.join(GGUF_TYPES)}; then use: trilithon quantize"
        )
    if not (source / "config.json").is_file():
        raise UserError(f"{source} is not a Hugging Face model: it has no config.json; name the model's folder")
    require_new_file(output, ".gguf")
    python = _converter_python(configuration)
    log = conversion_log(configuration, output)
    with conversion_dir(output, configuration) as work:
        progress("fetching llama.cpp's converter", None)
        place = converter or fetch(DEFAULT_VERSION, configuration.cache)
        program = open_source(place, work.folder / "source").folder / "convert_hf_to_gguf.py"
        if not program.is_file():
            raise UserError(f"{place} has no {program.name}; name another source of llama.cpp with --converter")
        converted = work.folder / output.name
        arguments = [str(source.absolute()), "--outfile", str(converted), "--outtype", kind]
        command = [str(python), str(program), *arguments]
        run_tool(command, log, ToolProgress(progress, "converting"), inherited=[work.lock])
        require_written(converted, "the converter", log)
        publish(converted, output)
        return Converted(output, log)


def _converter_python(configuration: Configuration) -> Path:
    """Raises UserError, naming the libraries that are missing."""
    folder = configuration.gguf_converter
    python = environment_python(folder, "TRILITHON_GGUF_CONVERTER") if folder else Path(sys.executable)
    installed = json_output(python, ["-c", _FIND_LIBRARIES, *_LIBRARIES])
    missing = [name for name, is_there in installed.items() if not is_there]
    if missing:
        raise UserError(
            f"llama.cpp's converter needs {', '.join(missing)}; make a virtual environment, run in it: pip install "
            f"{' '.join(_LIBRARIES)} protobuf, and name it with TRILITHON_GGUF_CONVERTER=FOLDER"
        )
    return python
