"""The names of an image set as text that can be stored."""

from collections import Counter
from dataclasses import replace

from lit_cnn.core.errors import UsageError
from lit_cnn.core.file_names import as_text, is_utf8
from lit_cnn.data.findings import Finding
from lit_cnn.data.image_set import ImageSet


def with_text_names(image_set: ImageSet) -> ImageSet:
    """Returns the set with its names as text that can be stored (see `as_text`); those that are not UTF-8 are findings.

    Raises:
        UsageError: If two files or two classes have one text: the name of one is what the other's is written as.
    """
    named = replace(
        image_set,
        name=as_text(image_set.name),
        source=as_text(image_set.source),
        class_names=tuple(map(as_text, image_set.class_names)),
        paths=[*map(as_text, image_set.paths)],
        groups=None if image_set.groups is None else [*map(as_text, image_set.groups)],
    )
    classes = tuple((name,) for name in image_set.class_names if not is_utf8(name))
    paths = tuple((path,) for path in image_set.paths if not is_utf8(path))
    if not classes and not paths:
        return named
    for texts in (named.class_names, named.paths):
        if len(set(texts)) < len(texts):
            again = next(text for text, count in Counter(texts).items() if count > 1)
            raise UsageError("root", named.source, f"two names are written as {again}, one is not UTF-8", "rename it")
    findings = []
    if classes:
        message = "is the name of a class that is not UTF-8, with each such byte written as %XX; rename its folder"
        findings.append(Finding("class_not_utf8", "warning", message, classes))
    if paths:
        message = "is a name that is not UTF-8, with each such byte written as %XX"
        findings.append(Finding("name_not_utf8", "note", message, paths))
    return replace(named, findings=(*image_set.findings, *findings))
