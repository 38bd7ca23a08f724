"""The contenders of `da3_peers.py`: how each is loaded, and answers a window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from da3_artifacts import Places
from da3_original import Answer, normalised, original_network
from qvggt_kernels import fastest_dtype
from torch import Tensor

from qvggt_core.model import ComputeSettings, decode_pose, load_model

Run = Callable[[], Answer]

ORIGINAL = "authors, float32"


class Contender(NamedTuple):
    """One of those that are compared.

    Attributes:
        needs: the kind of file that it reads, see `da3_artifacts.MAKERS`.
        load: makes a run of it for given places, images (1, S, 3, H, W) in [0, 1] and threads.
    """

    needs: str
    load: Callable[[Places, Tensor, int], Run]


def _original(dtype: torch.dtype) -> Contender:
    def load(places: Places, images: Tensor, threads: int) -> Run:
        network, given = original_network(places.clone, places.weights), normalised(images)

        def run() -> Answer:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
                depth, pose = network(given)
            return depth[0], pose[0]

        return run

    return Contender("weights", load)


def _ours(
    kind: str,
    dtype: torch.dtype | None = None,
    linears: Literal["float", "int8"] = "float",
    attention: Literal["auto", "int8"] = "auto",
) -> Contender:
    """Return this package; `dtype` None is the one that this machine is fastest in."""

    def load(places: Places, images: Tensor, threads: int) -> Run:
        path = places.weights if kind == "weights" else places.file(kind)
        model = load_model(path, dtype=dtype or fastest_dtype("cpu")).configure(
            ComputeSettings(linears=linears, attention=attention, reference_view="first")
        )

        def run() -> Answer:
            found = model(images, heads=("camera", "depth"))
            assert found.depth is not None
            pose, _ = decode_pose(found.pose_encodings[-1].double(), *images.shape[-2:])
            return found.depth[0], pose[0]

        return run

    return Contender(kind, load)


def _openvino(kind: str, hint: str) -> Contender:
    def load(places: Places, images: Tensor, threads: int) -> Run:
        import openvino as ov

        options = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
        compiled: Any = ov.Core().compile_model(places.file(kind), "CPU", options)
        given = normalised(images).numpy()

        def run() -> Answer:
            depth, pose = compiled([given]).values()
            return torch.from_numpy(depth)[0], torch.from_numpy(pose)[0]

        return run

    return Contender(kind, load)


def _onnx_runtime(kind: str) -> Contender:
    def load(places: Places, images: Tensor, threads: int) -> Run:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Others run in between: its threads are not to wait for work in a loop meanwhile.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = onnxruntime.InferenceSession(
            places.file(kind), options, providers=["CPUExecutionProvider"]
        )
        given = normalised(images).numpy()

        def run() -> Answer:
            depth, pose = session.run(["depth", "extrinsics"], {"images": given})
            return torch.from_numpy(depth)[0], torch.from_numpy(pose)[0]

        return run

    return Contender(kind, load)


def _torchao(places: Places, images: Tensor, threads: int) -> Run:
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, PerGroup, quantize_

    network, given = original_network(places.clone, places.weights), normalised(images)
    config = Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int4,
        weight_granularity=PerGroup(128),
        intx_packing_format="opaque_torchao_auto",
    )
    quantize_(network.network.backbone, config)

    def run() -> Answer:
        depth, pose = network(given)
        return depth[0], pose[0]

    return run


CONTENDERS: dict[str, Contender] = {
    ORIGINAL: _original(torch.float32),
    "authors, bfloat16 autocast": _original(torch.bfloat16),
    "qvggt, float32": _ours("weights", torch.float32),
    "qvggt, bfloat16": _ours("weights", torch.bfloat16),
    "qvggt, INT8": _ours("int8"),
    "qvggt, INT8, 8-bit scores": _ours("int8", attention="int8"),
    "qvggt, INT4": _ours("int4"),
    "qvggt, INT4, 8-bit products": _ours("int4", linears="int8"),
    "qvggt, INT4, 8-bit products and scores": _ours("int4", linears="int8", attention="int8"),
    "OpenVINO, float32": _openvino("openvino", "f32"),
    "OpenVINO, bfloat16 hint": _openvino("openvino", "bf16"),
    "OpenVINO, INT8 by NNCF": _openvino("openvino-int8", "f32"),
    "OpenVINO, INT4 weights by NNCF, bfloat16 hint": _openvino("openvino-int4", "bf16"),
    "ONNX Runtime, float32": _onnx_runtime("onnx"),
    "ONNX Runtime, dynamic INT8": _onnx_runtime("onnx-int8"),
    "ONNX Runtime, MatMulNBits, accuracy_level=4": _onnx_runtime("onnx-int4"),
    "torchao, INT4 weights, 8-bit activations": Contender("weights", _torchao),
}
"""In the order of the table."""
