"""Commands, run inside the test's process, and a small checkpoint to run them on."""

from dataclasses import replace

import pytest

from qvggt_ros.cli import app


def run(capsys, *arguments):
    """Return exit status, standard output and standard error of the command."""
    with pytest.raises(SystemExit) as caught:
        app.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return caught.value.code or 0, captured.out, captured.err


def small_checkpoint(path, metadata=None):
    from qvggt_core.model import VGGT, save_checkpoint
    from support.small_network import TINY

    config = replace(TINY, img_size=28, embed_dim=128, num_heads=4, camera_iterations=4)
    save_checkpoint(path, VGGT(config).state_dict(), config, metadata)
    return path
