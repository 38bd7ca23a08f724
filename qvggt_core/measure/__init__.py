"""Measures speed and memory: contenders side by side in one run, with the least time beside each.

Flow: `bench.run` takes a request (`bench_request`), builds the contenders (`candidates`), times
them in interleaved rounds (`timing`) or measures the peak memory of each in a process of its own
(`window_memory`), puts the roofline beside each figure (`roofline`), and returns rows that become
JSON and Markdown (`tables`).
"""
