"""Tables of numbers with their errors, as text, pictures, pages and files."""

from lit_cnn.evaluation.table.numbers import Gain, Line, MembersSummary, Numbers, Row
from lit_cnn.evaluation.table.table import Table
from lit_cnn.evaluation.table.wording import sentences
from lit_cnn.reports.result import Result

__all__ = ["Gain", "Line", "MembersSummary", "Numbers", "Result", "Row", "Table", "sentences"]
