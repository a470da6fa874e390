"""One virtual environment for each peer, made on first use under benchmarks/.envs.

`peers/NAME.txt` pins what is installed; `peers/NAME.no_deps.txt` what is installed without what it asks for.
Where the first names torch, constraints.txt of the project holds too, so that all run on the same torch.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDER = HERE / ".envs"
CONSTRAINTS = HERE.parent / "constraints.txt"
INSTALL_SECONDS = 1800
FAILED: dict[str, str] = {}  # reasons, so that a run tries each only once


class NotInstalledError(RuntimeError):
    """A peer's environment could not be made; the text says why."""


def requirements(name: str) -> tuple[Path, Path]:
    """Return the two requirement files of a peer; the second need not exist."""
    return HERE / "peers" / f"{name}.txt", HERE / "peers" / f"{name}.no_deps.txt"


def pinned(name: str) -> list[str]:
    """Return the pins of a peer, such as ["opacus==1.6.0", "torch==2.13.0"]."""
    lines = [line for path in requirements(name) if path.exists() for line in path.read_text().splitlines()]
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def python_of(name: str) -> Path:
    """Return the interpreter of a peer's environment, which is made where it is missing or its pins changed.

    Raises:
        NotInstalledError: it cannot be made; the log lies beside it.
    """
    place = FOLDER / name
    python = place / "bin" / "python"
    mark = place / ".made"
    wanted = _fingerprint(name)
    if name in FAILED:
        raise NotInstalledError(FAILED[name])
    if mark.exists() and mark.read_text() == wanted and python.exists():
        return python
    shutil.rmtree(place, ignore_errors=True)
    FOLDER.mkdir(exist_ok=True)
    log = FOLDER / f"{name}.log"
    log.write_text("")
    first, second = requirements(name)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    constrained = (
        ["--constraint", str(CONSTRAINTS)] if any(p.startswith("torch==") for p in pinned(name)) else []
    )
    steps = [[sys.executable, "-m", "venv", str(place)], [*pip, *constrained, "--requirement", str(first)]]
    if second.exists():
        steps.append([*pip, "--no-deps", "--requirement", str(second)])
    try:
        for step in steps:
            _run(step, log)
    except NotInstalledError as error:
        FAILED[name] = str(error)
        shutil.rmtree(place, ignore_errors=True)
        raise
    mark.write_text(wanted)
    return python


def packages_of(name: str) -> Path:
    """Return a folder with what `peers/NAME.no_deps.txt` pins, for this interpreter's path; made on first use.

    Raises:
        NotInstalledError: it cannot be made; the log lies beside it.
    """
    place, wanted = FOLDER / f"{name}.packages", _fingerprint(name)
    if name in FAILED:
        raise NotInstalledError(FAILED[name])
    mark = place / ".made"
    if mark.exists() and mark.read_text() == wanted:
        return place
    shutil.rmtree(place, ignore_errors=True)
    FOLDER.mkdir(exist_ok=True)
    log = FOLDER / f"{name}.log"
    log.write_text("")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    try:
        _run([*pip, "--target", str(place), "--requirement", str(requirements(name)[1])], log)
    except NotInstalledError as error:
        FAILED[name] = str(error)
        raise
    mark.write_text(wanted)
    return place


def _fingerprint(name: str) -> str:
    parts = [sys.version, *pinned(name), CONSTRAINTS.read_text()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _run(command: list[str], log: Path) -> None:
    with log.open("a") as out:
        try:
            code = subprocess.run(
                command, stdout=out, stderr=out, timeout=INSTALL_SECONDS, check=False
            ).returncode
        except subprocess.TimeoutExpired as error:
            raise NotInstalledError(f"not installed in {INSTALL_SECONDS} s") from error
        except OSError as error:
            raise NotInstalledError(str(error)) from error
    if code:
        lines = [line for line in log.read_text().splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()] or lines or [f"exit status {code}"]
        raise NotInstalledError(errors[-1].strip()[:200])
