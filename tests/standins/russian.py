"""Which English words a Russian text still has. Products, file formats, commands and identifiers keep their names."""

import re
from typing import Any

__all__ = ["english_in", "english_on"]

_WORD = re.compile(r"[A-Za-z][\w./:+@=-]*", re.ASCII)
_IDENTIFIER = re.compile(r"[\w-]*[\d/:_.=@].*|.*-thermal", re.ASCII)
"""pp512, llama.cpp/cpu, qwen2.5:0.5b, tokens_per_second, bigcore0-thermal."""
_NAMES = frozenset(
    re.findall(
        r"\S+",
        """A B C CPU CSV CUDA DMA English Enter Esc GGUF GIF GPU JPEG JSON KV Lines Linux Markdown Modelfile NPU PNG SQL
        SVG Shift+Enter Trilithon WebP bench key list llama-bench p pg pp rkllm root scripted seed tg top-p
        trilithon""",
    )
)
_SHOWN = """() => {
  const seen = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const skipped = '[lang=en], code, pre, script, style, .words, .board-again, .unit, td.model, td.build, .q-icon';
  const english = element => element.closest(skipped);
  while (walk.nextNode()) {
    const parent = walk.currentNode.parentElement;
    const visible = parent.checkVisibility({opacityProperty: true, visibilityProperty: true});
    if (visible && !english(parent)) seen.push(walk.currentNode.textContent);
  }
  for (const element of document.body.querySelectorAll('[aria-label], [title], [placeholder]'))
    if (!english(element))
      for (const name of ['aria-label', 'title', 'placeholder']) seen.push(element.getAttribute(name) ?? '');
  return seen;
}"""


def english_in(text: str, *names: str) -> set[str]:
    """`names` are words that may stand there besides, such as a model's name."""
    for name in (*names, "5m"):
        text = text.replace(name, "")
    words = {word.rstrip(".:-") for word in _WORD.findall(text)}
    return {word for word in words if word.endswith("/s") or not (word in _NAMES or _IDENTIFIER.fullmatch(word))}


def english_on(page: Any, *names: str) -> list[str]:
    """The texts with English words, of what a page shows and of the labels of its elements, but for what it marks as
    English."""
    return [text for text in page.evaluate(_SHOWN) if english_in(text, *names)]
