"""Measures speed and memory: contenders side by side in one run, with the least time beside each.

Flow: `bench.run` takes what shall be measured, builds the contenders (`contenders`), times them in
interleaved rounds (`timing`) or lets a process of its own say its peak memory (`worker`), puts the
roofline beside each figure (`roofline`), and returns rows that become JSON and Markdown (`tables`).
"""
