from __future__ import annotations

import pytest
import sample_document
from page_reader import Page

import wideangle.report as report


@pytest.fixture(scope="session")
def document():
    return sample_document.make()


@pytest.fixture(scope="session")
def text(document):
    return report.html(document)


@pytest.fixture(scope="session")
def page(text):
    return Page(text)
