"""A stand-in for llama-quantize: it says what that says, and does what Trilithon's own re-quantiser does."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["QuantizerStandIn"]

# known(source): ggml-org/llama.cpp@007dbbf src/llama-quant.cpp: a line for each tensor, with "converting to"
# known(log): ggml-org/llama.cpp#6745: lines of llama-quantize with sizes
# known(documentation): ggml-org/llama.cpp@311c2c9 tools/quantize/README.md: options, then source, target, type
# known(guess): llama-quantize makes its target at the beginning
_PROGRAM = """#!{python}
import os, sys, time
from pathlib import Path
from trilithon.models.synthetic.tiny import requantise
source, target, kind = sys.argv[-3:]
notes = Path({notes!r})
(notes / "source").write_text(source)
Path(target).write_bytes(b"GGUF")
(notes / "pid.new").write_text(str(os.getpid()))
(notes / "pid.new").rename(notes / "pid")
if not (notes / "silent").exists():
    print("[   1/   2]  token_embd.weight - [  64, 512, 1, 1], type = f16, converting to", kind, flush=True)
while (notes / "silent").exists() or (notes / "slow").exists():
    time.sleep(0.01)
requantise(Path(source), Path(target), kind)
print("[   2/   2]  output_norm.weight - [  64, 1, 1, 1], type = f32, size = 0.003 MiB", flush=True)
"""


@dataclass(frozen=True)
class QuantizerStandIn:
    """In a folder that is to stand on PATH. While there is a file `slow` beside it, it gets no further than its first
    step; while there is one `silent`, it does not get there either."""

    folder: Path

    @property
    def program(self) -> Path:
        return self.folder / "llama-quantize"

    @property
    def source(self) -> Path:
        """What it was given last."""
        return Path((self.folder / "source").read_text())

    def install(self) -> None:
        self.folder.mkdir()
        self.program.write_text(_PROGRAM.format(python=sys.executable, notes=str(self.folder)), encoding="utf-8")
        self.program.chmod(0o755)

    def pid(self, seconds: float = 60.0) -> int:
        """Of the one that runs, or is about to."""
        noted, deadline = self.folder / "pid", time.monotonic() + seconds
        while not noted.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        number = int(noted.read_text())
        noted.unlink()
        return number
