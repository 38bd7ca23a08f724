"""Describes the machine that a benchmark ran on, for the raw results."""

from qvggt_core.measure.machine import describe_machine as describe

__all__ = ["describe"]
