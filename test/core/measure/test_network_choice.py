"""A network for a machine: the most accurate that keeps up, by measurement."""

from dataclasses import replace

import pytest
from support.small_network import STACK

from qvggt_core.measure import network_choice
from qvggt_core.measure.network_choice import (
    CHOICES,
    MeasuredChoice,
    NetworkChoice,
    measure_choices,
    proposal,
)
from qvggt_core.model import ComputeSettings
from qvggt_core.model.catalog import CATALOG
from qvggt_core.quantize.random_checkpoint import write_random_checkpoint


def test_the_most_accurate_that_keeps_up_is_proposed() -> None:
    measured = [MeasuredChoice(choice, 0.8 - 0.1 * i) for i, choice in enumerate(CHOICES)]
    assert proposal(measured, 2.4) is measured[0]
    assert proposal(measured, 4.0) is measured[3]
    assert proposal(measured, 100.0) is None


def test_choices_are_networks_of_the_catalogue_in_whole_patches() -> None:
    for choice in CHOICES:
        assert CATALOG[choice.network].config is not None
        assert choice.width % 14 == choice.height % 14 == 0


def test_every_choice_is_measured_on_random_weights(monkeypatch) -> None:
    small = replace(STACK, num_heads=1, camera_num_heads=4)
    choices = (NetworkChoice("toy", 56, 42), NetworkChoice("toy", 42, 28))
    monkeypatch.setattr(network_choice, "CHOICES", choices)
    monkeypatch.setattr(network_choice, "DEPTH_ANYTHING_3", {"toy": small})
    seen = []
    measured = measure_choices(
        "cpu", ComputeSettings(), write_random_checkpoint, lambda *step: seen.append(step)
    )
    assert [m.choice for m in measured] == list(choices)
    assert all(m.seconds > 0 for m in measured)
    assert measured[0].keyframes_per_second == pytest.approx(2 / measured[0].seconds)
    assert [step[2] for step in seen] == ["toy 42x28", "toy 56x42"]
