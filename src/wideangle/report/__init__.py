"""Documents as one self-contained HTML page or as Markdown; reads results only, computes nothing."""

from __future__ import annotations

import os
from pathlib import Path

from wideangle.document import Document
from wideangle.errors import InputError
from wideangle.files import write_atomically
from wideangle.plan import Plan

__all__ = ["html", "markdown", "write"]


def html(document: Document, plan: Plan | None = None) -> str:
    """Return the document as one HTML page that needs nothing from outside itself.

    The page holds, in this order: the verdict, the plan with the evidence of every entry, the sections
    with their values, figures (inline SVG, each with its data and the command that made it) and tables,
    and where all of it comes from. Text from the user is escaped. Cost: tens of milliseconds a figure,
    no pass over the data.

    Args:
        document: a check-up, a training or a paper run.
        plan: the plan to show in place of `document.plan`.

    Returns:
        The text of the page, UTF-8.

    Example:
        >>> page = html(Document(title="Check-up of <mlp>", verdict=["Step size 0.1 is stable."]))
        >>> "Check-up of &lt;mlp&gt;" in page, "http" in page
        (True, False)
    """
    from wideangle.report._page import render

    return render(document, plan if plan is not None else document.plan)


def markdown(document: Document) -> str:
    """Return the document as Markdown: the same order as `html`, figures as short tables of their points.

    Args:
        document: a check-up, a training or a paper run.

    Returns:
        The text; user text is escaped, so that it cannot turn into markup.

    Example:
        >>> markdown(Document(title="Check-up", verdict=["Step size 0.1 is stable."])).splitlines()[2]
        '1. Step size 0.1 is stable.'
    """
    from wideangle.report._plain import render

    return render(document)


def write(document: Document, path: str | os.PathLike[str]) -> Path:
    """Return the path of the report written: a page for .html, Markdown for .md.

    Args:
        document: a check-up, a training or a paper run.
        path: where to; the ending decides the form. Missing folders are made, and the file appears
            whole or not at all.

    Raises:
        InputError: the ending is neither .html nor .md.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(Document(title="Check-up"), f"{folder}/report.md").name
        'report.md'
    """
    makers = {".html": html, ".htm": html, ".md": markdown, ".markdown": markdown}
    ending = Path(path).suffix.lower()
    if ending not in makers:
        raise InputError(f"a report ends in .html or .md, got {str(path)!r}")
    return write_atomically(path, makers[ending](document))
