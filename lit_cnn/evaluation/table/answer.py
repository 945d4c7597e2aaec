"""What the table comes to, in a few sentences that one can act on."""

from lit_cnn.core.words import counted
from lit_cnn.evaluation.decision import MARGIN, Decision
from lit_cnn.evaluation.table.frontier import cost_on_axis, decision_of, smallest_visible
from lit_cnn.evaluation.table.numbers import Line, Numbers, Row
from lit_cnn.evaluation.table.wording import machine_of, subject
from lit_cnn.reports.wording import missed_words, others_words, percent_words, points_words


def answer(table: Numbers) -> str:
    """Says which row to take, how it stands to the others, and what so many images can show."""
    found, n = decision_of(table), table.num_images
    chosen = found.chosen
    num_images = len(chosen.row.correct)
    accuracy = f"{percent_words(chosen.accuracy, num_images)} on {counted(num_images, 'test image')}"
    name = _name(chosen.row, table)
    if not found.num_others:
        return f"{_begun(name, chosen.row)}: {accuracy}. There is nothing here to compare it with."
    said = [f"Take {name}: {accuracy}{_why(found, table)}."]
    if not found.is_better:
        said.append(others_words(len(found.worse), found.num_others, missed_words(smallest_visible(table), n)))
    if found.cheaper is not None:
        cheaper, ratio = found.cheaper, found.cheaper.cost_ratio
        said.append(
            f"Cheaper and not measurably worse: {_name(cheaper.row.row, table)}, at {100 * ratio:.2g} % of the "
            f"{_cost_name(table)}, {points_words(cheaper.difference, n)}."
        )
    return " ".join(said)


def _why(found: Decision[Line], table: Numbers) -> str:
    """Why a row is taken that is not the reference."""
    if found.over_reference is None:
        return ""
    row, reference = found.chosen.row, found.reference.row
    over = points_words(found.over_reference, len(row.correct))
    name = f"{_name(reference, table)}, the best on val"
    if found.is_for_its_cost:
        ratio = cost_on_axis(row) / cost_on_axis(reference)
        return (
            f". It takes {100 * ratio:.2g} % of the {_cost_name(table)} of {name}, and a loss of more than "
            f"{100 * MARGIN:.0f} point is excluded ({over})"
        )
    passes = (
        f", for {row.forward_passes:,} forward passes an image instead of {reference.forward_passes:,}"
        if row.forward_passes != reference.forward_passes
        else ""
    )
    return f", {over} over {name}{passes}"


def _name(row: Row, table: Numbers) -> str:
    """Returns a row in a sentence; its crops where rows have several numbers of them."""
    if len({line.row.num_views for line in table.lines}) > 1:
        return subject(row)
    return f"the {row.name}" if row.kind == "ensemble" else row.name


def _begun(name: str, row: Row) -> str:
    """Returns a name as a sentence begins with it; that of a network is written as it is."""
    return name if name.startswith(row.name) else f"{name[:1].upper()}{name[1:]}"


def _cost_name(table: Numbers) -> str:
    return "time for one image" if machine_of(table) else "multiply-adds"
