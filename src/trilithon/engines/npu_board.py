"""Why an NPU that is there cannot be used: the same for every engine that computes on it by the vendor's driver."""

from trilithon.board.snapshot import Npu

__all__ = ["refusal_of_driver"]


def refusal_of_driver(npu: Npu) -> str:
    """Empty where the driver is the vendor's and this user may open it."""
    if npu.driver == "rocket":
        return "the NPU is under mainline's rocket driver, and its runtimes need the vendor's; boot a vendor kernel"
    if npu.driver == "none" or not npu.nodes:
        return (
            "the NPU's driver is not loaded; boot a kernel with the vendor's rknpu 0.9.8 or newer, "
            "and see trilithon doctor"
        )
    if not any(node.usable for node in npu.nodes):
        return f"{npu.nodes[-1].path} may not be opened by this user; see trilithon doctor"
    return ""
