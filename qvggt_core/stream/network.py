"""What the stream asks of a network, and the networks of this package in that role."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvggt_core.errors import CheckpointError
from qvggt_core.geometry.poses import inverse
from qvggt_core.model import HEADS, VGGT, decode_pose
from qvggt_core.model.camera_encoder import MIN_DISTANCE, normalise_cameras
from qvggt_core.model.matching import patch_similarity
from qvggt_core.stream.conditioning import KnownCameras, similarity_scale
from qvggt_core.stream.frame import WindowPrediction
from qvggt_core.stream.graphs import GraphCache, graphed
from qvggt_core.stream.memory_ladder import Slices


class Network(Protocol):
    """A multi-view network in two steps: once per image, then once per window."""

    @property
    def image_width(self) -> int:
        """Width in pixels of the images that it sees."""
        ...

    @property
    def patch_size(self) -> int:
        """Side in pixels of its patches; width and height of an image are multiples of it."""
        ...

    def encode(self, image: NDArray[np.uint8]) -> Any:
        """Return what the network keeps of one RGB image (H, W, 3), whatever window it is in."""
        ...

    def predict(
        self,
        tokens: Sequence[Any],
        height: int,
        width: int,
        newest: int | None = None,
        cameras: KnownCameras | None = None,
    ) -> WindowPrediction:
        """Return the geometry of the window whose images, of one size, were encoded.

        Depth is wanted of the last `newest` images, None for all; there may be more of it.
        `cameras` are given only where the parameter `condition_on` asks for it.
        """
        ...


class TorchNetwork:
    """A network on one device, one window at a time."""

    def __init__(
        self,
        model: VGGT,
        device: str = "cpu",
        image_width: int = 0,
        with_points: bool = False,
        cuda_graphs: bool = False,
        with_matches: bool = True,
    ) -> None:
        """Take a loaded network into use.

        Args:
            model: the network, in the dtype that it computes in.
            device: where the network is.
            image_width: width in pixels that it sees; 0 takes the width of its training.
            with_points: whether its point head runs too; the stream does without.
            cuda_graphs: replay CUDA graphs, one per window shape; nothing changes on a CPU.
            with_matches: whether predictions say which patches match, if it was trained to.

        Raises:
            CheckpointError: the network has no depth head or no cameras, or no point head where
                it is wanted.
        """
        if not model.config.depth_head:
            raise CheckpointError(
                "the network has no depth head, and windows are aligned by their depth: choose a "
                "checkpoint with one"
            )
        if model.config.camera_head == "none":
            raise CheckpointError(
                "the network sees one image at a time and gives no poses: choose it as "
                "scale_network, and one for several views as checkpoint"
            )
        if with_points and not model.config.point_head:
            raise CheckpointError(
                "the network has no point head: choose a checkpoint with one, or take the points "
                "from its depth and cameras"
            )
        self._finds_matches = with_matches and model.config.matching
        self._heads = HEADS if with_points else ("camera", "depth")
        self._model = model.eval()
        self._device = torch.device(device)
        self._image_width = image_width or model.config.img_size
        device_of_graphs = self._device if cuda_graphs else torch.device("cpu")
        self._encode_step = graphed(self._encode_pixels, device_of_graphs)
        self._predict_step = graphed(self._predict_tokens, device_of_graphs)
        self._slices = Slices(self._model)

    @property
    def image_width(self) -> int:
        """Width in pixels of the images that it sees."""
        return self._image_width

    @property
    def patch_size(self) -> int:
        """Side in pixels of its patches."""
        return self._model.config.patch_size

    @property
    def finds_matches(self) -> bool:
        """Whether predictions say how alike the patches of views are."""
        return self._finds_matches

    @torch.inference_mode()
    def encode(self, image: NDArray[np.uint8]) -> Tensor:
        """Return the tokens (P', C) of one RGB image (H, W, 3), on the network's device."""
        # Always a batch of one: the same arithmetic, bit for bit, whether tokens are kept or not.
        pixels = torch.from_numpy(np.ascontiguousarray(image)).to(self._device)
        (tokens,) = self._encode_step(pixels)
        # The stream keeps it, a graph overwrites it.
        return tokens.clone() if isinstance(self._encode_step, GraphCache) else tokens

    @torch.inference_mode()
    def predict(
        self,
        tokens: Sequence[Tensor],
        height: int,
        width: int,
        newest: int | None = None,
        cameras: KnownCameras | None = None,
    ) -> WindowPrediction:
        """Return the geometry of a window of S images from their tokens.

        Known poses and intrinsics are returned as they are given, and the depth in metres. With
        intrinsics alone the poses of a first pass stand in for known ones.

        Args:
            tokens: what `encode` returned of each.
            height: of the images, pixels.
            width: of the images, pixels.
            newest: number of last images that get depth; None for all.
            cameras: what is known of the cameras, if anything.

        Raises:
            CheckpointError: cameras are known and the network has no camera encoder.
        """
        if newest is not None:
            newest = min(newest, len(tokens))
        window = torch.stack(list(tokens))[None]
        if cameras is None:
            return self._run(window, height, width, newest)
        poses = cameras.camera_from_world
        if poses is None:
            poses = self._run(window, height, width, 1).camera_from_world
        gauge = normalise_cameras(torch.from_numpy(poses))
        intrinsics = torch.from_numpy(cameras.intrinsics)
        window = self._model.condition(
            window,
            gauge.camera_from_world[None].to(self._device),
            intrinsics[None].to(self._device),
            (height, width),
        )
        predicted = self._run(window, height, width, newest, conditioned=True)
        if cameras.camera_from_world is None:
            return replace(predicted, intrinsics=cameras.intrinsics)
        return _in_metres(predicted, cameras, float(gauge.unit))

    def _run(
        self,
        window: Tensor,
        height: int,
        width: int,
        newest: int | None,
        conditioned: bool = False,
    ) -> WindowPrediction:
        encoding, depth, confidence, *others = self._slices.run(
            lambda: self._predict_step(window, height, width, newest, conditioned), height * width
        )
        # Small translations do not survive 16 bits: the cameras are decoded in float64.
        encodings = encoding[0].to("cpu", torch.float64)
        matrices, intrinsics = decode_pose(encodings, height, width)
        similarity = others.pop() if self._finds_matches else None
        camera_from_world = np.tile(np.eye(4), (window.shape[1], 1, 1))
        camera_from_world[:, :3] = matrices.numpy()
        return WindowPrediction(
            camera_from_world=camera_from_world,
            intrinsics=intrinsics.numpy(),
            depth=_host_image(depth),
            confidence=_host_image(confidence),
            world_points=_host_image(others[0]) if others else None,
            similarity=None if similarity is None else _host_image(similarity),
        )

    def _encode_pixels(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Map an image (H, W, 3) uint8 to tokens (P', C)."""
        images = pixels.permute(2, 0, 1)[None].float() / 255.0
        return (self._model.encode(images)[0],)

    def _predict_tokens(
        self, tokens: Tensor, height: int, width: int, newest: int | None, conditioned: bool
    ) -> tuple[Tensor, ...]:
        """Map tokens (1, S, P', C) to pose encodings, depth, confidence, and what else is wanted.

        That is points, then similarity.
        """
        predicted = self._model.forward_tokens(
            tokens, height, width, self._heads, newest, conditioned
        )
        assert predicted.depth is not None, "the constructor checked that there is a depth head"
        assert predicted.depth_confidence is not None
        others = [] if predicted.points is None else [predicted.points]
        if self._finds_matches:
            assert predicted.entering is not None
            grid = (height // self.patch_size, width // self.patch_size)
            others.append(patch_similarity(self._model, predicted.entering[0], *grid)[None])
        return (predicted.pose_encodings[-1], predicted.depth, predicted.depth_confidence, *others)


def _in_metres(predicted: WindowPrediction, cameras: KnownCameras, unit: float) -> WindowPrediction:
    """Return a prediction with the known cameras, its depth in their metres.

    The scale is that of the similarity between the camera centres, known and predicted. Where
    the cameras hardly move it would be noise: there the unit in which the network was given them
    is taken, `unit` metres.
    """
    known = cameras.camera_from_world
    assert known is not None
    units_per_metre = 1.0 / unit
    if unit > MIN_DISTANCE:
        centres = (inverse(poses)[:, :3, 3] for poses in (known, predicted.camera_from_world))
        found = similarity_scale(*centres)
        units_per_metre = found if found > 0 else units_per_metre
    return replace(
        predicted,
        camera_from_world=known,
        intrinsics=cameras.intrinsics,
        depth=(predicted.depth / np.float32(units_per_metre)),
        world_points=None,
        metres_per_unit=1.0,
    )


def _host_image(values: Tensor) -> NDArray[np.float32]:
    return values[0].float().cpu().numpy()
