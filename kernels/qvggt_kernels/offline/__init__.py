"""Compiles every Triton kernel that ships for GPUs that are not there; no product code needs it."""
