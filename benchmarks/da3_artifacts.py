"""Networks as the peers of `da3_peers.py` read them, made once per case and kept in a folder.

    python benchmarks/da3_artifacts.py CLONE FOLDER da3-small FRAMES HEIGHT WIDTH openvino

Everything is made from the authors' network for one size and number of views, which suits these
compilers best. NNCF calibrates on windows of the same kind as the measured one, other than it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from da3_original import (
    normalised,
    original_network,
    window,
    without_what_converters_lack,
    write_random_weights,
)

_CLI = "from qvggt_ros.cli.app import main; main()"
_GROUP = 128
_CALIBRATION_WINDOWS = 8


_NAMES = {
    "weights": "config.json",
    "int4": "int4.safetensors",
    "int8": "int8.safetensors",
}
"""Files that serve every case of a network."""


class Case(NamedTuple):
    """What is measured: a network, a number of views and their size.

    Attributes:
        network: name, such as "da3-small".
        frames: views of a window.
        height: pixels.
        width: pixels.
    """

    network: str
    frames: int
    height: int
    width: int

    @property
    def name(self) -> str:
        """E.g. "da3-small 336x252 x4"."""
        return f"{self.network} {self.width}x{self.height} x{self.frames}"


class Places(NamedTuple):
    """Where the networks of a case lie.

    Attributes:
        clone: of the authors' repository.
        folder: of all that is made here.
        case: which it is made for.
    """

    clone: Path
    folder: Path
    case: Case

    @property
    def weights(self) -> Path:
        """The folder of the authors' weights."""
        return self.file("weights").parent

    def file(self, kind: str) -> Path:
        """The file of a kind, alone in a folder with what belongs to it."""
        case = self.case
        if kind in _NAMES:
            return self.folder / case.network / kind / _NAMES[kind]
        name = "network.onnx" if kind.startswith("onnx") else "network.xml"
        return (
            self.folder / f"{case.network}-{case.width}x{case.height}x{case.frames}" / kind / name
        )


def _weights(places: Places, target: Path) -> None:
    write_random_weights(places.clone, places.case.network, target.parent)


def _quantize(places: Places, target: Path, *precision: str) -> None:
    # Rounding to nearest, as the peers' weights are rounded: no calibration on either side.
    command = ["quantize", str(places.weights), "-o", str(target), "--recipe", "rtn", *precision]
    subprocess.run([sys.executable, "-c", _CLI, *command], check=True)


def _int4(places: Places, target: Path) -> None:
    _quantize(places, target)


def _int8(places: Places, target: Path) -> None:
    _quantize(places, target, "--precision", "w8a8")


def _openvino(places: Places, target: Path) -> None:
    import openvino as ov

    network, images = _network_and_images(places)
    converted = ov.convert_model(network, example_input=images)
    converted.reshape(list(images.shape))
    ov.save_model(converted, target, compress_to_fp16=False)


def _nncf_int8(places: Places, target: Path) -> None:
    import nncf
    import openvino as ov

    case = places.case
    windows = [
        normalised(window(case.frames, case.height, case.width, seed)).numpy()
        for seed in range(1, 1 + _CALIBRATION_WINDOWS)
    ]
    quantized = nncf.quantize(
        ov.Core().read_model(places.file("openvino")),
        nncf.Dataset(windows),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(windows),
    )
    ov.save_model(quantized, target, compress_to_fp16=False)


def _nncf_int4(places: Places, target: Path) -> None:
    import nncf
    import openvino as ov

    compressed = nncf.compress_weights(
        ov.Core().read_model(places.file("openvino")),
        mode=nncf.CompressWeightsMode.INT4_SYM,
        group_size=_GROUP,
        ratio=1.0,
    )
    ov.save_model(compressed, target, compress_to_fp16=False)


def _onnx(places: Places, target: Path) -> None:
    network, images = _network_and_images(places)
    names = ["depth", "extrinsics"]
    torch.onnx.export(
        network,
        (images,),
        target,
        input_names=["images"],
        output_names=names,
        opset_version=18,
        dynamo=False,
    )


def _onnx_int8(places: Places, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from qvggt_kernels import cpu_features

    # Without dot products of integers, sums of 8-bit weights saturate in 16 bits: its manual
    # advises seven bits there.
    quantize_dynamic(
        places.file("onnx"),
        target,
        per_channel=True,
        reduce_range=not cpu_features.has_vnni(),
        weight_type=QuantType.QInt8,
    )


def _onnx_int4(places: Places, target: Path) -> None:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(
        onnx.load(places.file("onnx")),
        block_size=_GROUP,
        is_symmetric=True,
        accuracy_level=4,
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(target))


MAKERS: dict[str, Callable[[Places, Path], None]] = {
    "weights": _weights,
    "int4": _int4,
    "int8": _int8,
    "openvino": _openvino,
    "openvino-int8": _nncf_int8,
    "openvino-int4": _nncf_int4,
    "onnx": _onnx,
    "onnx-int8": _onnx_int8,
    "onnx-int4": _onnx_int4,
}
"""How each kind of file is made; one that needs another comes after it."""

NEEDS = {
    "int4": ("weights",),
    "int8": ("weights",),
    "openvino": ("weights",),
    "openvino-int8": ("weights", "openvino"),
    "openvino-int4": ("weights", "openvino"),
    "onnx": ("weights",),
    "onnx-int8": ("weights", "onnx"),
    "onnx-int4": ("weights", "onnx"),
}


def _network_and_images(places: Places) -> tuple[Any, torch.Tensor]:
    network = original_network(places.clone, places.weights)
    without_what_converters_lack()
    _, frames, height, width = places.case
    return network, normalised(window(frames, height, width))


@torch.inference_mode()
def make(places: Places, kind: str) -> None:
    """Make a file where it is not there already, and what it needs before."""
    for each in (*NEEDS.get(kind, ()), kind):
        folder = places.file(each).parent
        if folder.exists():
            continue
        # A folder is there as a whole or not at all.
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        MAKERS[each](places, unfinished / places.file(each).name)
        unfinished.replace(folder)


if __name__ == "__main__":
    clone, folder, network, *sizes, kind = sys.argv[1:]
    frames, height, width = map(int, sizes)
    make(Places(Path(clone), Path(folder), Case(network, frames, height, width)), kind)
