"""Pools that are rendered once for all tests of training."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tiny_run import TINY

from qvggt_core.training.config import TrainConfig
from qvggt_core.training.pool import Pool, build_pool, open_pool


@pytest.fixture(scope="session")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pools")
    config = TrainConfig.model_validate(TINY)
    build_pool(config.pool, directory / "pool_train", workers=1)
    build_pool(config.evaluation_pool, directory / "pool_eval", workers=1)
    return directory


@pytest.fixture(scope="session")
def pool(pools: Path) -> Pool:
    return open_pool(pools / "pool_train")
