"""The report of a run, made from its files alone."""

from melete.report.build import build_report

__all__ = ["build_report"]
