"""The model of a VGGT's operations, against an independent count and published figures."""

import dataclasses

import pytest
import torch
from support.small_network import ENCODED
from torch.utils.flop_counter import FlopCounterMode

from qvggt_core.measure import roofline
from qvggt_core.measure.roofline import Peaks, Shape, Work
from qvggt_core.model import VGGT, ModelConfig

TERA = 1e12


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        pytest.param(ENCODED, Shape(3, 42, 70), id="small, odd grid"),
        pytest.param(dataclasses.replace(ENCODED, encoder=None), Shape(2, 56, 56), id="no encoder"),
        pytest.param(ModelConfig.vggt_1b(), Shape(2, 392, 518), id="VGGT-1B"),
    ],
)
def test_parts_count_what_pytorch_counts(config: ModelConfig, shape: Shape) -> None:
    with torch.device("meta"):
        model = VGGT(config).eval()
        images = torch.rand(1, shape.frames, 3, shape.height, shape.width)
    rows, columns = shape.height // config.patch_size, shape.width // config.patch_size
    counted = {}

    def count(name, run):
        with FlopCounterMode(display=False) as counter:
            result = run()
        counted[name] = counter.get_total_flops()
        return result

    # With gradients recorded every operation is a plain one that the counter has a formula for.
    tokens = count("encoder", lambda: model.encode(images))
    patches, camera, _ = count("aggregator", lambda: model.aggregator(tokens, rows, columns))
    count("camera head", lambda: model.camera_head(camera))
    count("depth head", lambda: model.depth_head(patches, rows, columns))
    count("point head", lambda: model.point_head(patches, rows, columns))
    modelled = {name: work.flop for name, work in roofline.parts(config, shape).items()}
    assert modelled == pytest.approx(counted, rel=1e-6)


@pytest.mark.parametrize(
    ("frames", "height", "teraflop"),
    [(1, 392, 2.66), (2, 392, 5.53), (8, 392, 27.3), (30, 392, 172.5), (2, 518, 7.66)],
)
def test_vggt_1b_takes_what_is_known_of_it(frames: int, height: int, teraflop: float) -> None:
    works = roofline.parts(ModelConfig.vggt_1b(), Shape(frames, height, 518))
    total = sum(works.values(), Work()).flop
    # The original's dense heads have four 1x1 convolutions after their resizing, not before.
    finest, coarsest = 4 * 16 * (height // 14) * 37, ((height // 14 + 1) // 2) * 19
    total += 2 * frames * 2.0 * 256**2 * (finest - coarsest)
    assert total / TERA == pytest.approx(teraflop, rel=0.003)


def test_vggt_1b_has_the_weights_of_its_checkpoint() -> None:
    config = ModelConfig.vggt_1b()
    works = roofline.parts(config, Shape(2, 392, 518))
    with torch.device("meta"):
        model = VGGT(config)
    dense = {
        "encoder": model.aggregator.patch_embed,
        "aggregator": torch.nn.ModuleList(
            [*model.aggregator.frame_blocks, *model.aggregator.global_blocks]
        ),
        "depth head": model.depth_head,
        "point head": model.point_head,
    }
    for name, module in dense.items():
        matrices = [p for n, p in module.named_parameters() if p.dim() > 1 and "weight" in n]
        assert works[name].weights == sum(p.numel() for p in matrices), name
    # Read again in every iteration.
    trunk = [p for p in model.camera_head.parameters() if p.dim() == 2]
    passes = config.camera_iterations
    assert works["camera head"].weights == passes * sum(p.numel() for p in trunk)


def test_the_narrower_of_arithmetic_and_memory_bounds_the_time() -> None:
    peaks = Peaks({"float32": 1e12, "bfloat16": 2e12}, 1e10)
    assert peaks.seconds(Work(flop=4e12), 0.5, 2) == 2.0
    assert peaks.seconds(Work(flop=4e12, weights=1e11), 0.5, 2) == 5.0
    assert peaks.seconds(Work(activations=1e10), 0.5, 2) == 2.0


def test_measured_peaks_are_those_of_a_machine() -> None:
    with torch.inference_mode():
        peaks = roofline.measure_peaks("cpu", "cpu", size=128)
    assert set(peaks.flops) == {"float32", "bfloat16"}
    assert min(*peaks.flops.values(), peaks.bytes) > 0
