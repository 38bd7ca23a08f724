"""Reports: one self-contained page a run, and one that compares runs."""

from qvggt_core.report.comparison import is_page, write_comparison
from qvggt_core.report.run import write_report

__all__ = ["is_page", "write_comparison", "write_report"]
