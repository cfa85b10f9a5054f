"""A model's life in the log: loaded where and why, evicted for which other, unloaded, crashed."""

import logging

from trilithon.runtime.pool.loaded_model import LoadedModel

__all__ = ["log_crashed", "log_failed", "log_leaving", "log_loaded", "log_loading"]

_log = logging.getLogger("trilithon.model")


def log_loading(model: LoadedModel, *, pinned: bool, waiting: int) -> None:
    _tell("model loading", model, why="pinned" if pinned else "requested", need_bytes=model.need_bytes, waiting=waiting)


def log_loaded(model: LoadedModel) -> None:
    _tell("model loaded", model, load_seconds=round(model.load_seconds, 3))


def log_leaving(model: LoadedModel) -> None:
    """When it is over; why is what `LoadedModel.leave` was told."""
    message = "model evicted" if model.evicted_for else "model unloaded" if model.runner else "model load stopped"
    whom = {"for": model.evicted_for} if model.evicted_for else {}
    _tell(message, model, logging.INFO, why=model.left_because, **whom)


def log_crashed(model: LoadedModel, reason: str, retry_in_seconds: float) -> None:
    _tell("model crashed", model, logging.WARNING, why=reason, retry_in_seconds=round(retry_in_seconds, 1))


def log_failed(model: LoadedModel, reason: str, retry_in_seconds: float) -> None:
    _tell("model failed to load", model, logging.WARNING, why=reason, retry_in_seconds=round(retry_in_seconds, 1))


def _tell(message: str, model: LoadedModel, /, level: int = logging.INFO, **facts: object) -> None:
    _log.log(level, message, extra={"facts": {"model": model.key, "placement": model.placement.name, **facts}})
