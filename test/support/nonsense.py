"""A network that knows nothing of what it is shown."""

import numpy as np

from qvggt_core.stream import WindowPrediction


class Nonsense:
    """Gives poses and depths at random, the same ones each time."""

    def __init__(self, width, patch, intrinsics):
        self.image_width, self.patch_size, self.intrinsics = width, patch, intrinsics

    def encode(self, image):
        return None

    def predict(self, tokens, height, width, newest=None):
        rng, count = np.random.default_rng(0), len(tokens)
        poses = np.tile(np.eye(4), (count, 1, 1))
        poses[:, :3, 3] = rng.normal(0.0, 1.0, (count, 3))
        shape = (count if newest is None else newest, height, width)
        depth = np.exp(rng.normal(0.0, 0.7, shape)).astype(np.float32)
        intrinsics = np.tile(self.intrinsics, (count, 1, 1))
        return WindowPrediction(poses, intrinsics, depth, np.full(shape, 2.0, np.float32))
