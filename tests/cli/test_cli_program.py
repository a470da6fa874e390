"""The program from outside: version, help, speed, exit codes, what an error looks like."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

import wideangle
from wideangle.cli import app
from wideangle.cli._common import Guarded
from wideangle.errors import ConvergenceError, InputError, MissingExtraError, NumericsError

runner = CliRunner()


def program(*words: str) -> subprocess.CompletedProcess[str]:
    code = "from wideangle.cli import app; app()"
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120)


def test_version_and_help_without_heavy_imports():
    code = (
        "import sys; from wideangle.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'torch', 'numpy', 'scipy', 'sklearn', 'matplotlib', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for verb in ("checkup", "train", "papers", "doctor"):
        assert verb in done.stdout
    result = runner.invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"wideangle {wideangle.__version__}\n")


def test_an_expected_error_is_one_line_on_standard_error_and_exit_code_2():
    done = program("checkup", "mlp", "--data", "digist")
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown data set 'digist'; did you mean 'digits'?")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def failing(error: BaseException) -> typer.Typer:
    other = typer.Typer(cls=Guarded, pretty_exceptions_enable=False)

    @other.command()
    def now() -> None:
        raise error

    @other.command()
    def other_verb() -> None: ...

    return other


@pytest.mark.parametrize("kind", [InputError, NumericsError, ConvergenceError, MissingExtraError])
def test_every_error_of_the_library_ends_the_same_way(kind):
    result = runner.invoke(failing(kind("what to do")), ["now"])
    assert result.exit_code == 2
    assert result.stderr == "error: what to do\n"


def test_ctrl_c_ends_in_130_and_anything_unexpected_stays_a_traceback():
    result = runner.invoke(failing(KeyboardInterrupt()), ["now"])
    assert (result.exit_code, result.stderr) == (130, "stopped\n")
    result = runner.invoke(failing(ZeroDivisionError("a bug")), ["now"])
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.mark.parametrize("words", [["nonsense"], ["checkup", "--n", "many"], ["checkup", "--unknown"]])
def test_wrong_usage_is_exit_code_2(words):
    assert runner.invoke(app, words).exit_code == 2
