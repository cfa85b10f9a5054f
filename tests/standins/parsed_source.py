"""Parses a source. CPython up to 3.11.7 counts the depth of all `ast.parse` in one place: one that begins while another
works makes that one fail with "SystemError: AST constructor recursion depth mismatch" (CPython's issue 106905). The
garbage collector may begin one, where a finalizer formats a traceback."""

import ast
import gc
from pathlib import Path

__all__ = ["parsed"]


def parsed(path: Path) -> ast.Module:
    text, collects = path.read_text(encoding="utf-8"), gc.isenabled()
    gc.disable()
    try:
        return ast.parse(text)
    finally:
        if collects:
            gc.enable()
