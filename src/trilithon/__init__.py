"""Trilithon: language models on every unit of a board, measured so that the verdict can be trusted."""

__all__ = ["__version__"]

__version__: str


def __getattr__(name: str) -> object:
    # Asked for late: importlib.metadata costs about 50 ms, which every child process would pay again.
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version

    return version("trilithon")
