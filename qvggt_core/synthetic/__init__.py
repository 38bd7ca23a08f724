"""Worlds with exact ground truth, and the training of a small VGGT in them."""
