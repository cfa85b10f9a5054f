"""Why an NPU cannot be used: the same for every engine that uses the vendor's driver."""

from trilithon.board.snapshot import Npu

__all__ = ["refusal_of_driver"]


def refusal_of_driver(npu: Npu) -> str:
    """Empty where the vendor's driver is loaded and this user may open its device."""
    if npu.driver == "rocket":
        return "the NPU is used by mainline's rocket driver, and its runtimes need the vendor's; boot a vendor kernel"
    if npu.driver == "none" or not npu.nodes:
        return (
            "the NPU's driver is not loaded; boot a kernel with the vendor's rknpu 0.9.8 or newer, "
            "and see trilithon doctor"
        )
    if not any(node.usable for node in npu.nodes):
        return f"this user may not open {npu.nodes[-1].path}; see trilithon doctor"
    return ""
