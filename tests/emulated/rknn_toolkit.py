"""Runs in the environment of rknn-toolkit2 (build/fixtures/rknn), the vendor's converter with its simulator.

    rknn_toolkit.py make FOLDER

writes a small vision encoder for each chip, with one output and with four,

    rknn_toolkit.py damaged FOLDER

writes ONNX files that cannot be converted, and flat.onnx, which takes no pictures, and

    rknn_toolkit.py run ENCODER.onnx PIXELS.npy OUT.npz

stores its outputs by the simulator (o0, …) and by onnxruntime (r0, …).
PIXELS are of the shape (1, rows, columns, 3), 8 bits a value.
"""

import contextlib
import os
import sys
from pathlib import Path

import numpy as np

SOURCE = Path(__file__).parents[2] / "src"
sys.path.insert(0, str(SOURCE / "trilithon/engines/rkllm/child"))
import toolkit  # noqa: E402

toolkit.replace_absent_torch()

import onnx  # noqa: E402
import onnxruntime  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from rknn.api import RKNN  # noqa: E402

CHIPS = ("rk3588", "rk3576", "rk3562")
SIDE, PATCH, SIZE = 32, 8, 16
TOKENS = (SIDE // PATCH) ** 2
MIDDLE = 127.5


def encoder(path, outputs):
    """A patch embedding, and a projection for each output: (1, tokens, size), as vision encoders have."""
    random = np.random.default_rng(5)
    weights = [
        numpy_helper.from_array(random.normal(size=(SIZE, 3, PATCH, PATCH)).astype("f") * 0.05, "w"),
        numpy_helper.from_array(np.array([1, SIZE, TOKENS]), "shape"),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[PATCH, PATCH], strides=[PATCH, PATCH]),
        helper.make_node("Reshape", ["c", "shape"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[0, 2, 1]),
    ]
    results = []
    for number in range(outputs):
        weights.append(numpy_helper.from_array(random.normal(size=(SIZE, SIZE)).astype("f") * 0.2, f"m{number}"))
        nodes.append(helper.make_node("MatMul", ["t", f"m{number}"], [f"o{number}"]))
        results.append(helper.make_tensor_value_info(f"o{number}", TensorProto.FLOAT, [1, TOKENS, SIZE]))
    picture = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, SIDE, SIDE])
    graph = helper.make_graph(nodes, "encoder", [picture], results, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, path)


def built(path, chip):
    toolkit = RKNN(verbose=False)
    toolkit.config(mean_values=[[MIDDLE] * 3], std_values=[[MIDDLE] * 3], target_platform=chip)
    assert toolkit.load_onnx(str(path)) == 0
    assert toolkit.build(do_quantization=False) == 0
    return toolkit


def make(folder):
    for outputs in (1, 4):
        path = Path(folder) / f"{outputs}.onnx"
        encoder(path, outputs)
        for chip in CHIPS:
            toolkit = built(path, chip)
            assert toolkit.export_rknn(str(Path(folder) / f"{outputs}-{chip}.rknn")) == 0
            toolkit.release()


def damaged(folder):
    def write(name, shape=(1, 3, SIDE, SIDE), operator="Relu", domain="", opset=13, location=None):
        nodes = [helper.make_node(operator, ["x"], ["o"], domain=domain)]
        picture = helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))
        result = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
        tensors = []
        if location:
            tensors = [numpy_helper.from_array(np.zeros(4, "f"), "w")]
            onnx.external_data_helper.set_external_data(tensors[0], location)
            tensors[0].ClearField("raw_data")
        graph = helper.make_graph(nodes, "damaged", [picture], [result], tensors)
        versions = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
        model = helper.make_model(graph, opset_imports=versions)
        model.ir_version = 8
        (Path(folder) / name).write_bytes(model.SerializeToString())

    write("flat.onnx", shape=(1, 16, 24))
    write("batch.onnx", shape=("batch", 3, SIDE, SIDE))
    write("sides.onnx", shape=(1, 3, "height", "width"))
    write("zero.onnx", shape=(1, 3, 0, SIDE))
    write("operator.onnx", operator="Frobnicate")
    write("domain.onnx", operator="FusedThing", domain="com.acme")
    write("unsupported.onnx", operator="Unique")
    write("opset.onnx", opset=22)
    write("weights.onnx", location="weights.bin")
    encoder(Path(folder) / "whole.onnx", 1)
    whole = (Path(folder) / "whole.onnx").read_bytes()
    (Path(folder) / "cut.onnx").write_bytes(whole[:-1])
    (Path(folder) / "half.onnx").write_bytes(whole[: len(whole) // 2])
    (Path(folder) / "empty.onnx").write_bytes(b"")
    (Path(folder) / "text.onnx").write_bytes(b"version https://git-lfs.github.com/spec/v1\n" * 3)


def run(path, pixels, out):
    pixels = np.load(pixels)
    toolkit = built(path, CHIPS[0])
    assert toolkit.init_runtime() == 0  # without a target: the simulator
    simulated = toolkit.inference(inputs=[pixels], data_format=["nhwc"])
    session = onnxruntime.InferenceSession(str(path))
    reference = session.run(None, {"x": ((pixels.astype("f") - MIDDLE) / MIDDLE).transpose(0, 3, 1, 2)})
    np.savez(out, **{f"o{n}": a for n, a in enumerate(simulated)}, **{f"r{n}": a for n, a in enumerate(reference)})


if __name__ == "__main__":
    with contextlib.chdir(Path(sys.argv[2]) if Path(sys.argv[2]).is_dir() else Path(sys.argv[2]).parent):
        {"make": make, "damaged": damaged, "run": run}[sys.argv[1]](*map(os.path.abspath, sys.argv[2:]))
