"""Trilithon: language models on every unit of a board, measured so that the verdict can be trusted."""

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("trilithon")
