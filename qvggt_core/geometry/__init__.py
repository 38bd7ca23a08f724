"""Camera models, rigid transforms and point clouds."""
