"""A network that knows the true geometry of a data set's frames, but not their gauge."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qvggt_core.datasets import PosedFrame, PosedScene
from qvggt_core.geometry.poses import inverse
from qvggt_core.protocols.window import sampled_depth
from qvggt_core.stream import Frame, Preprocessor, WindowPrediction


class Oracle:
    """Recognises frames by their pixels; its world is the first view's camera, its unit 0.4 m."""

    patch_size = 8

    def __init__(
        self,
        scenes: Sequence[PosedScene],
        image_width: int = 64,
        perturb: Callable[[np.ndarray], np.ndarray] = lambda camera_from_world: camera_from_world,
    ) -> None:
        """Memorise the scenes; `perturb` changes the (S, 4, 4) cameras that are predicted."""
        self.image_width = image_width
        self._perturb = perturb
        preprocessor = Preprocessor(image_width, self.patch_size)
        self._known: dict[bytes, tuple[PosedFrame, np.ndarray, np.ndarray]] = {}
        for scene in scenes:
            for frame in scene.frames:
                view = preprocessor.view(Frame(frame.stamp_ns, frame.image(), frame.camera))
                depth = np.full(view.image.shape[:2], 2.0, np.float32)
                if frame.read_depth is not None and not frame.camera.is_distorted:
                    depth = sampled_depth(frame.depth(), frame.camera, view)
                assert view.intrinsics is not None
                self._known[view.image.tobytes()] = (frame, view.intrinsics, depth)

    def encode(self, image: np.ndarray) -> bytes:
        """Return what it recognises an image by."""
        assert image.tobytes() in self._known, "the oracle never saw this image"
        return image.tobytes()

    def predict(
        self, tokens: Sequence[bytes], height: int, width: int, newest: int | None = None
    ) -> WindowPrediction:
        """Return the truth."""
        unit = 0.4
        known = [self._known[token] for token in tokens]
        poses = np.stack([frame.world_from_camera for frame, _, _ in known])
        camera_from_world = inverse(poses) @ poses[0]
        camera_from_world[:, :3, 3] /= unit
        depth = np.stack([np.nan_to_num(depth, nan=1.0) for _, _, depth in known]) / unit
        return WindowPrediction(
            camera_from_world=self._perturb(camera_from_world),
            intrinsics=np.stack([intrinsics for _, intrinsics, _ in known]),
            depth=depth.astype(np.float32),
            confidence=np.full(depth.shape, 2.0, np.float32),
        )
