"""Tables of numbers with their errors, as text, pictures, pages and files."""

from lit_cnn.evaluation.report.numbers import Gain, Line, MembersSummary, Numbers, Row
from lit_cnn.evaluation.report.result import Result
from lit_cnn.evaluation.report.table import Table
from lit_cnn.evaluation.report.wording import sentences

__all__ = ["Gain", "Line", "MembersSummary", "Numbers", "Result", "Row", "Table", "sentences"]
