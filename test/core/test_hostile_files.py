"""Parameter, plan, study, training and truth files that are wrong: a slice of the torture."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.figures import outcome
from support.hostile_texts import BASES, BOMB, mutated, read

from qvggt_core.errors import EvaluationError, ParameterError, TrainingError
from qvggt_core.evaluate.trajectory_files import read_trajectory
from qvggt_core.parameters import Parameters
from qvggt_core.training.config import TrainConfig


@pytest.mark.parametrize("kind", BASES)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32))
def test_a_wrong_file_is_read_or_refused_with_a_reason(tmp_path, kind: str, seed: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(mutated(BASES[kind](), random.Random(seed)))
    assert 0 < len(outcome(lambda: read(kind, path))) < 4000


@pytest.mark.parametrize("kind", set(BASES) - {"kitti"})
def test_the_files_that_are_made_wrong_are_right(tmp_path, kind: str) -> None:
    path = tmp_path / "file"
    path.write_text(BASES[kind]())
    read(kind, path)


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e308"])
def test_numbers_without_bound_are_no_parameters(tmp_path, value: str) -> None:
    path = tmp_path / "parameters.yaml"
    path.write_text(f"metres_per_unit: {value}\n")
    with pytest.raises(ParameterError, match="metres_per_unit"):
        Parameters.read(path)


@pytest.mark.parametrize("text", [BOMB, "1: 2", "yes: 3", "null: 4", "a: 2024-13-45", "- a"])
def test_what_is_no_mapping_of_names_is_refused(tmp_path, text: str) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with pytest.raises(ParameterError):
        Parameters.read(path)
    with pytest.raises(TrainingError):
        TrainConfig.read(path)


def test_a_true_pose_beyond_the_solar_system_is_refused(tmp_path) -> None:
    path = tmp_path / "truth.txt"
    path.write_text("1.0 1e300 0 0 0 0 0 1\n")
    with pytest.raises(EvaluationError, match="line 1"):
        read_trajectory(path)
