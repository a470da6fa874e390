"""The one wording for unknown names."""

from __future__ import annotations

from wideangle.errors import InputError
from wideangle.names import unknown_name


def test_the_nearest_names_and_the_list_are_offered():
    error = unknown_name("data set", "MNST", ["mnist", "digits"], "or a file")
    assert isinstance(error, InputError)
    assert str(error) == "unknown data set 'MNST'; did you mean 'mnist'? Known are mnist, digits, or a file"
    assert str(unknown_name("data set", "qqq", ["mnist"])) == "unknown data set 'qqq'; known are mnist"
