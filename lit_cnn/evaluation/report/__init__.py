"""Models x crops: the table of GoogLeNet's paper (Szegedy et al. 2014, table 3), every number with its error."""

from lit_cnn.evaluation.report.figure import plot_accuracy
from lit_cnn.evaluation.report.formats import render, to_csv, to_html, to_json, to_markdown
from lit_cnn.evaluation.report.pareto import plot_pareto
from lit_cnn.evaluation.report.reliability import plot_reliability
from lit_cnn.evaluation.report.table import Gain, Line, MembersSummary, Row, Table, build_table
from lit_cnn.evaluation.report.verdict import write_verdict
from lit_cnn.evaluation.report.wording import sentences

__all__ = [
    "Gain",
    "Line",
    "MembersSummary",
    "Row",
    "Table",
    "build_table",
    "plot_accuracy",
    "plot_pareto",
    "plot_reliability",
    "render",
    "sentences",
    "to_csv",
    "to_html",
    "to_json",
    "to_markdown",
    "write_verdict",
]
