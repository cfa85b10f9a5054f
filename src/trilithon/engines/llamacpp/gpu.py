"""llama.cpp on a GPU: the device, the features that can be turned off for a driver, and the order to try that.

The variables are those of ggml-vulkan.cpp (llama.cpp 0c1e570), which only checks whether they are set."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from trilithon.engines.base import Build, Device, FallbackStep, Placement, Settings
from trilithon.engines.llamacpp.devices import VISIBLE_DEVICES
from trilithon.language import Message
from trilithon.models.files.gguf import read_gguf
from trilithon.suggestions import alternatives

__all__ = [
    "PLAIN_V_TYPES",
    "chosen_device",
    "gpu_environment",
    "gpu_fallback_steps",
    "gpu_options",
    "gpu_refusal",
    "no_gpu_environment",
    "no_gpu_options",
]

PLAIN_V_TYPES = ("f32", "f16", "bf16")
"""KV types of V that need no flash attention."""

_SWITCHES: Mapping[str, tuple[str, ...]] = {
    "f16": ("GGML_VK_DISABLE_F16",),
    "coopmat": ("GGML_VK_DISABLE_COOPMAT", "GGML_VK_DISABLE_COOPMAT2"),
    "intdot": ("GGML_VK_DISABLE_INTEGER_DOT_PRODUCT",),
    "fusion": ("GGML_VK_DISABLE_FUSION",),
    "async": ("GGML_VK_DISABLE_ASYNC",),
}
# A slow GPU may take seconds for one micro-batch, and drivers abort what takes long.
_SMALL_MICRO_BATCH = 64
# Fallback steps for Vulkan only, the likeliest cause first.
_VULKAN_STEPS: Mapping[str, tuple[str, ...]] = {
    "no f16 arithmetic": ("f16",),
    "no cooperative matrix": ("coopmat",),
    "plain shaders one by one": ("intdot", "fusion", "async"),
}


def chosen_device(build: Build, settings: Settings) -> Device:
    """The device that the settings name, else the first that is not software, else the first. Raises LookupError where
    there is none; `gpu_refusal` checks that before."""
    name = dict(settings.options).get("device")
    devices = [device for device in build.devices if device.unit == "gpu" and name in (None, device.id)]
    if not devices:
        raise LookupError(f"build {build.name} has no device {name or 'for the GPU'}")
    return min(devices, key=lambda device: device.software)


def gpu_refusal(build: Build, settings: Settings) -> str:
    for name, value in settings.options:
        if name not in (known := ("device", "layers", "kv", *_SWITCHES)):
            return Message("unknown option {name} for a GPU; {fix}", name=name, fix=alternatives(name, known))
        if name == "layers" and not (value.isdecimal() and int(value) > 0):
            return f"layers is a number from 1, not {value}; leave it out for all layers"
        if name in ("kv", *_SWITCHES) and value not in ("on", "off"):
            return f"{name} is on or off, not {value}"
    try:
        device = chosen_device(build, settings)
    except LookupError as error:
        return f"{error}; it has {', '.join(f'{device.id} ({device.name})' for device in build.devices)}"
    turned_off = _turned_off(settings)
    if turned_off and not _is_vulkan(device):
        return f"{turned_off[0]} can be turned off on Vulkan devices only, not on {device.id}; leave it out"
    return ""


def gpu_options(device: Device, settings: Settings) -> dict[str, str | bool]:
    """llama-server's options for this device, by their long names. It is the only visible Vulkan device."""
    options = dict(settings.options)
    return {
        "device": "Vulkan0" if _is_vulkan(device) else device.id,
        "n-gpu-layers": options.get("layers", "all"),
        "no-kv-offload": options.get("kv") == "off",
    }


def gpu_environment(device: Device, settings: Settings) -> dict[str, str]:
    variables = dict.fromkeys((variable for name in _turned_off(settings) for variable in _SWITCHES[name]), "1")
    return variables | ({VISIBLE_DEVICES: device.id.removeprefix("Vulkan")} if _is_vulkan(device) else {})


def _turned_off(settings: Settings) -> list[str]:
    return [name for name, value in settings.options if name in _SWITCHES and value == "off"]


def no_gpu_options(build: Build) -> dict[str, str | bool]:
    """Options that keep a build with a GPU on the CPU: with no layer on the GPU, it would still compute large matrices
    there."""
    return {"device": "none"} if build.devices else {}


def no_gpu_environment() -> dict[str, str]:
    return {VISIBLE_DEVICES: ""}


def gpu_fallback_steps(placement: Placement) -> Iterator[FallbackStep]:
    """Settings of the user are kept: for fa=on there is no step without flash attention."""
    settings = placement.settings
    options = dict(settings.options)
    if settings.flash_attention == "auto":
        # Without it llama.cpp does not support a quantised V.
        v_type = settings.kv_type_v if settings.kv_type_v in PLAIN_V_TYPES else "f16"
        given_up = "flash attention off" + ", V in f16" * (v_type != settings.kv_type_v)
        settings = replace(settings, flash_attention="off", kv_type_v=v_type)
        yield FallbackStep(name=given_up, settings=settings)
    if _is_vulkan(chosen_device(placement.build, settings)):
        for name, switches in _VULKAN_STEPS.items():
            if not options.keys() & set(switches):
                settings = _with(settings, dict.fromkeys(switches, "off"))
                yield FallbackStep(name=name, settings=settings)
    if settings.micro_batch > _SMALL_MICRO_BATCH:
        settings = replace(settings, micro_batch=_SMALL_MICRO_BATCH)
        yield FallbackStep(name=f"micro-batch {_SMALL_MICRO_BATCH}", settings=settings)
    if "kv" not in options:
        # The cache of one layer may be larger than a buffer of the device; llama.cpp then aborts.
        settings = _with(settings, {"kv": "off"})
        yield FallbackStep(name="KV cache in main memory", settings=settings)
    if "layers" not in options:
        layers = read_gguf(placement.file.path).layers
        for fewer in filter(None, (layers // 2, layers // 4)):
            settings = _with(settings, {"layers": str(fewer)})
            yield FallbackStep(name=f"{fewer} of {layers} layers on the GPU", settings=settings)


def _with(settings: Settings, options: Mapping[str, str]) -> Settings:
    return replace(settings, options=tuple({**dict(settings.options), **options}.items()))


def _is_vulkan(device: Device) -> bool:
    return device.id.startswith("Vulkan")
