"""The smallest training run that still learns something."""

from __future__ import annotations

TINY = {
    "model": {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 4,
        "num_heads": 2,
        "num_register_tokens": 1,
        "layer_scale": 0.2,
        "encoder": None,
        "camera_trunk_depth": 1,
        "camera_num_heads": 2,
        "dpt_features": 16,
        "dpt_out_channels": [16, 16, 16, 16],
        "taps": [0, 1, 2, 3],
        "point_head": False,
    },
    "pool": {
        "worlds": ["studio"],
        "clips": 6,
        "frames": 4,
        "height": 24,
        "width": 32,
        "samples": 0,
    },
    "evaluation_pool": {
        "worlds": ["studio"],
        "clips": 2,
        "frames": 4,
        "height": 24,
        "width": 32,
        "samples": 0,
        "evaluation": True,
    },
    "stages": [
        {"until": 25, "images": 8, "frames": [2], "max_gap": 2, "dense_frames": 4},
        {"until": 50, "images": 8, "frames": [2], "scattered": 0.5, "dense_frames": 4},
    ],
    "warmup": 5,
    "relative_weight": 1.0,
    "average": 0.8,
    "log_every": 10,
    "evaluate_every": 50,
    "checkpoint_every": 20,
    "evaluation_clips": 2,
    "precision": "float32",
}
