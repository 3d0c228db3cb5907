"""Reports that a person wants to read: an HTML twin of each JSON report, an index of them, a closing table.

Standard library only, so that every step and the command line can use it at no cost.
"""

from mtlops.report.pages import html_page, task_page, write_index, write_report
from mtlops.report.table import summary

__all__ = ["html_page", "summary", "task_page", "write_index", "write_report"]
