"""Metrics of poses, trajectories and depth."""
