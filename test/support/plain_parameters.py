"""Parameters under which a stream is the network's own geometry, of every frame."""

from qvggt_core.parameters import Parameters

PLAIN = Parameters(
    confirm=False, refine=False, keyframe_min_motion=0.0, min_confidence_percentile=0.0
)
