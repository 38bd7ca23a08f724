"""Commands, run inside the test's process, and a small checkpoint to run them on."""

import pytest

from qvggt_ros.cli import app


def run(capsys, *arguments):
    """Return exit status, standard output and standard error of the command."""
    with pytest.raises(SystemExit) as caught:
        app.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return caught.value.code or 0, captured.out, captured.err


def small_checkpoint(path, metadata=None):
    from qvggt_core.model import VGGT, ModelConfig, save_checkpoint

    config = ModelConfig(
        img_size=28,
        embed_dim=128,
        depth=4,
        num_heads=4,
        encoder=None,
        camera_trunk_depth=1,
        camera_num_heads=4,
        dpt_features=16,
        dpt_out_channels=(16, 16, 16, 16),
        taps=(0, 1, 2, 3),
        point_head=False,
    )
    save_checkpoint(path, VGGT(config).state_dict(), config, metadata)
    return path
