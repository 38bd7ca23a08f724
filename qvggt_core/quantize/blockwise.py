"""The network run block by block, with the inputs of every window's next block kept.

Calibration never runs the network from its start again: the inputs of the next block are kept
per window, the block is changed in place, and the runner advances through the changed block.
From any block the rest of the network can be run to its heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from qvggt_core.model import VGGT, Prediction
from qvggt_core.model.aggregator import WindowState
from qvggt_core.model.blocks import Block, RotaryTable
from qvggt_core.model.camera_head import CameraHead
from qvggt_core.model.matching import window_similarity

Part = Literal["encoder", "frame", "global", "camera"]


@dataclass(frozen=True)
class BlockSite:
    """A transformer block and its position in the network.

    Attributes:
        path: of the block in the network, e.g. "aggregator.frame_blocks.3".
        part: of the network.
        index: of the block within its part.
        block: the block itself.
        special_tokens: leading tokens of each frame that are not image tokens.
    """

    path: str
    part: Part
    index: int
    block: Block
    special_tokens: int


@dataclass(frozen=True)
class BlockInput:
    """Arguments of a block: tokens (B, S, N, C), RoPE tables, and whether frames mix."""

    x: Tensor
    rope: RotaryTable | None
    across_frames: bool


def sites_of(model: VGGT) -> list[BlockSite]:
    """Return the transformer blocks of a network in the order in which it runs them.

    Those of a camera encoder run only where cameras are known, and are left out.
    """
    found: list[BlockSite] = []

    def add(path: str, part: Part, index: int, special_tokens: int) -> None:
        block = model.get_submodule(path)
        assert isinstance(block, Block)
        found.append(BlockSite(path, part, index, block, special_tokens))

    for place in model.aggregator.places():
        add(f"aggregator.{place.path}", place.part, place.number, place.special_tokens)
    if isinstance(model.camera_head, CameraHead):
        for index in range(len(model.camera_head.trunk)):
            add(f"camera_head.trunk.{index}", "camera", index, 0)
    return found


class BlockwiseRunner:
    """Runs a network block by block and keeps the inputs of the next block of all windows.

    Attributes:
        model: the network; blocks before `position` may have been changed.
        sites: its blocks in order.
        position: index of the block that is next.
        patch_norm: mean length of the last tap's patch tokens, once the aggregator has run.
    """

    def __init__(self, model: VGGT, images: Tensor, batch: int = 4, judged: int = 0) -> None:
        """Start at the first block.

        Args:
            model: in evaluation mode.
            images: (B, S, 3, H, W) uint8.
            batch: windows that are run at once.
            judged: first windows that `predict` can run, rounded up to whole batches; only these
                keep the inputs of the heads, which are most of the memory.
        """
        self.model = model
        self.sites = sites_of(model)
        self.position = 0
        self.patch_norm = 0.0
        self._device = next(model.parameters()).device
        self._height, self._width = images.shape[-2:]
        patch = model.config.patch_size
        self._grid = (self._height // patch, self._width // patch)
        self._judged = -(-judged // batch)
        self._places = {f"aggregator.{p.path}": p for p in model.aggregator.places()}
        last = [site.path for site in self.sites if site.part != "camera"][-1]
        self._last_place = self._places[last]
        self._states: list[WindowState] = []
        for part in images.split(batch):
            pixels = part.to(self._device).float() / 255.0
            self._states.append(self._enter(pixels))

    @property
    def site(self) -> BlockSite:
        """The block that is next."""
        return self.sites[self.position]

    @property
    def done(self) -> bool:
        """Whether every block has run."""
        return self.position == len(self.sites)

    def batches(self, *, judged: bool = False) -> int:
        """Return the number of batches, of all windows or of those that `predict` can run."""
        return self._judged if judged else len(self._states)

    @torch.no_grad()
    def inputs(self) -> list[BlockInput]:
        """Return the next block's inputs; a block that works in place needs a copy of them."""
        site = self.site
        if site.part == "camera":
            return self._trunk_inputs(site)
        place, aggregator = self._places[site.path], self.model.aggregator
        rope = aggregator.rope_at(place, *self._grid, self._device)
        return [BlockInput(p.x, rope, site.part == "global") for p in self._states]

    @torch.no_grad()
    def advance(self) -> None:
        """Run the next block as it is now."""
        site = self.site
        if site.part != "camera":
            lengths = []
            for number, state in enumerate(self._states):
                moved = self._step(site, state)
                if moved.patches:
                    lengths.append(float(moved.patches[-1].norm(dim=-1).mean()))
                # The taps are inputs of the heads alone.
                keep = number < self._judged
                self._states[number] = moved if keep else moved._replace(patches=())
            if self._places[site.path] is self._last_place:
                self.patch_norm = sum(lengths) / len(lengths)
        self.position += 1

    @torch.no_grad()
    def predict(self, batch: int) -> Prediction:
        """Run a judged batch from the next block to the heads, without advancing."""
        state = self._states[batch]
        for site in self.sites[self.position :]:
            if site.part == "camera":
                break
            state = self._step(site, state)
        return self._heads(state)

    @torch.no_grad()
    def matches(self, batch: int) -> Tensor | None:
        """Return the log attention between patches of a batch's views, as matches are read from it.

        Returns:
            (B, S, S, P, P), at [:, i, j, p] that of patch p of view i over the patches of view j;
            None where the network was not trained to match, or the blocks behind can change
            nothing about it any more.
        """
        if not self.model.config.matching:
            return None
        state = self._states[batch]
        for site in self.sites[self.position :]:
            place = self._places.get(site.path)
            if place is not None and place.part == "global":
                if place.number > 0:
                    return None
                patches = state.x[:, :, place.special_tokens :]
                return window_similarity(self.model, patches, *self._grid).log_softmax(dim=-1)
            if site.part == "camera":
                return None
            state = self._step(site, state)
        return None

    def tokens(self) -> list[Tensor]:
        """Return the tokens (B, S, N, C) of every batch before the next block."""
        return [state.x for state in self._states]

    def camera_tokens(self) -> Tensor:
        """Return the camera tokens (B * S, 2C) of all windows, once the aggregator has run."""
        tokens = [p.camera for p in self._states if p.camera is not None]
        return torch.cat([t.flatten(0, 1) for t in tokens])

    @torch.no_grad()
    def _enter(self, pixels: Tensor) -> WindowState:
        return self.model.aggregator.start(pixels)

    def _step(self, site: BlockSite, state: WindowState) -> WindowState:
        state = state._replace(x=state.x.clone())
        return self.model.aggregator.step(state, self._places[site.path], *self._grid)

    def _heads(self, state: WindowState) -> Prediction:
        return self.model.decode(state.patches, state.camera, *self._grid)

    def _trunk_inputs(self, site: BlockSite) -> list[BlockInput]:
        seen: list[BlockInput] = []
        handle = site.block.register_forward_pre_hook(
            lambda _, arguments: seen.append(BlockInput(arguments[0].clone(), None, False))
        )
        try:
            for state in self._states:
                assert self.model.camera_head is not None
                self.model.camera_head(state.camera)
        finally:
            handle.remove()
        return seen


def run_block(block: Block, given: BlockInput) -> Tensor:
    """Return a block's output (B, S, N, C), leaving its input alone."""
    x = given.x if torch.is_grad_enabled() else given.x.clone()
    return block(x, given.rope, across_frames=given.across_frames)
