"""Reports: one self-contained page a run, and one that compares runs."""

from qvggt_core.report.comparison import write_comparison
from qvggt_core.report.run import write_report

__all__ = ["write_comparison", "write_report"]
