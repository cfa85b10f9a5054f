"""The memory-bandwidth limit of decode: every token reads the weights once."""

__all__ = ["decode_ceiling", "fraction_of_bandwidth"]


def decode_ceiling(bytes_per_token: float, bandwidth_bytes_per_second: float) -> float:
    """The limit in tokens per second, for one sequence without speculative decoding."""
    if bytes_per_token <= 0 or bandwidth_bytes_per_second <= 0:
        raise ValueError("bytes per token and bandwidth must be more than 0")
    return bandwidth_bytes_per_second / bytes_per_token


def fraction_of_bandwidth(
    decode_tokens_per_second: float, bytes_per_token: float, bandwidth_bytes_per_second: float
) -> float:
    """The fraction of the measured bandwidth that decode used. More than 1 means that weights were read from a cache,
    or that `bytes_per_token` counts bytes that this model does not read."""
    return decode_tokens_per_second / decode_ceiling(bytes_per_token, bandwidth_bytes_per_second)
