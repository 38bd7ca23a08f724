"""Fuzzing, faults and load, longer than the default suite: `make torture`."""
