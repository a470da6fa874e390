"""What holds for the package as a whole: layers, import cost, names, documentation, file length, seeds."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import wideangle

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "wideangle"
FOLDERS = ("src", "tests", "benchmarks", "examples")

TOP = {
    "errors",
    "result",
    "plan",
    "seeds",
    "files",
    "progress",
    "losses",
    "targets",
    "names",
    "document",
    "parallel",
}
ORDER = [TOP, {"data", "nets"}, {"kernel"}, {"taylor"}, {"curvature"}, {"optim"}, {"dynamics"}]
ORDER += [{"checks", "training"}, {"report", "testing"}, {"papers", "cli"}]
RANK = {name: rank for rank, row in enumerate(ORDER) for name in row}
ANYTHING_INSIDE_FUNCTIONS = {"papers", "cli"}
SERVES_ALL = {"report", "testing"}  # stand on the top modules alone, and nothing below stands on them

BASE = {"torch", "numpy", "scipy"}
FOREIGN = dict.fromkeys(RANK, BASE) | {
    "kernel": BASE | {"threadpoolctl"},
    "data": BASE | {"sklearn"},
    "progress": {"rich"},
    "parallel": BASE | {"joblib"},
    "report": {"numpy", "jinja2", "markupsafe", "matplotlib"},
    "testing": {"torch"},
    "cli": BASE | {"typer", "rich"},
}
SLOW_TO_IMPORT = {"sklearn", "matplotlib", "jinja2", "joblib", "rich"}


def sources(*folders: str) -> list[Path]:
    found = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    # hidden folders are not ours: benchmarks/.envs holds the peers
    return sorted(path for path in found if not any(p.startswith(".") for p in path.relative_to(ROOT).parts))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def part_of(module: str) -> str:
    """The row entry of a module: wideangle.kernel.gram -> kernel; private top modules serve training."""
    name = module.split(".")[1] if "." in module else ""
    if name == "__main__":
        return "cli"
    return "training" if name.startswith("_") and name != "__version__" else name


def imports(tree: ast.AST, inside: bool = False) -> Iterator[tuple[str, bool, int]]:
    """Every imported module with whether the import stands inside a function; type-only ones count too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, inside, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            for alias in node.names:
                bare = node.module == "wideangle"
                yield (f"wideangle.{alias.name}" if bare else str(node.module)), inside, node.lineno
        else:
            function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            yield from imports(node, inside or function or typing_only)


def complaints(part: str, tree: ast.Module) -> Iterator[str]:
    """What is wrong with the imports of one file of `part`."""
    for module, inside, line in imports(tree):
        head = module.split(".")[0]
        if head == "wideangle":
            target = part_of(module)
            free = part in ANYTHING_INSIDE_FUNCTIONS and inside
            if target not in RANK and not hasattr(wideangle, target):
                yield f"line {line}: {module} is in no row of the import table"
            elif target in RANK and not free and not allowed(part, target):
                yield f"line {line}: {part} imports {module}, which is not below it"
        elif head not in sys.stdlib_module_names and head not in FOREIGN[part] and part != "papers":
            yield f"line {line}: {part} imports {module}, which is not among {sorted(FOREIGN[part])}"
        elif head in SLOW_TO_IMPORT and not inside:
            yield f"line {line}: {module} is slow to import; import it inside the function that needs it"


def allowed(part: str, target: str) -> bool:
    if part == target:
        return True
    if part in TOP:
        return target in TOP
    if part in SERVES_ALL or part in ANYTHING_INSIDE_FUNCTIONS:
        return target in TOP
    return target not in SERVES_ALL and RANK[target] < RANK[part]


SUBJECTS = [path for path in sources("src") if path != SOURCE / "__init__.py"]


@pytest.mark.parametrize("path", SUBJECTS, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path):
    part = part_of(f"wideangle.{path.relative_to(SOURCE).parts[0].removesuffix('.py')}")
    assert part in RANK, f"{part} is in no row of the import table"
    found = list(complaints(part, parse(path)))
    if part == "papers" and path.name not in ("__init__.py", "_frame.py"):
        # a paper's own modules are imported whole by a function of the frame, when that paper is run
        found = [line for line in found if "slow to import" in line]
    assert found == []


def test_listing_the_papers_imports_none_of_them():
    code = (
        "import sys, wideangle.papers; print([m for m in sys.modules if m.startswith('wideangle.papers.')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "['wideangle.papers._frame']"


@pytest.mark.parametrize(
    ("part", "code", "wrong"),
    [
        (
            "kernel",
            "import torch\nfrom wideangle import nets, seeds\nfrom wideangle.errors import InputError",
            0,
        ),
        ("kernel", "from wideangle.taylor import linear", 1),
        ("kernel", "def f():\n    from wideangle import checks", 1),
        ("data", "from wideangle.nets import MLP", 1),
        ("report", "from wideangle.document import Document\nimport numpy", 0),
        ("report", "def f():\n    import torch", 1),
        ("report", "from wideangle import kernel", 1),
        ("checks", "from wideangle import report", 1),
        ("testing", "import torch\nfrom wideangle import seeds", 0),
        ("testing", "import pytest", 1),
        ("testing", "from wideangle import optim", 1),
        ("checks", "from wideangle import testing", 1),
        ("cli", "def f():\n    from wideangle import checks", 0),
        ("cli", "from wideangle import checks", 1),
        ("result", "import matplotlib", 1),
        ("data", "import sklearn.datasets", 1),
        ("data", "def f():\n    import sklearn.datasets", 0),
        ("nets", "import flwr", 1),
        ("nets", "from wideangle.nowhere import x", 1),
    ],
)
def test_the_import_check_sees_what_it_should(part, code, wrong):
    assert len(list(complaints(part, ast.parse(code)))) == wrong


def loaded_by(statement: str) -> set[str]:
    program = f"{statement}; import sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_only_torch_numpy_and_its_own_top():
    extra = loaded_by("import wideangle") - loaded_by("import torch, numpy")
    assert extra <= {"wideangle", *(f"wideangle.{name}" for name in TOP)}


@pytest.fixture(scope="module")
def modules() -> dict[str, types.ModuleType]:
    """Every module of the package, imported."""
    names = [found.name for found in pkgutil.walk_packages(wideangle.__path__, "wideangle.")]
    return {"wideangle": wideangle} | {name: importlib.import_module(name) for name in names}


def public(modules: dict[str, types.ModuleType]) -> Iterator[tuple[types.ModuleType, str, object]]:
    """Every public name of every public module that lists them, once per module."""
    shown = [module for name, module in modules.items() if "._" not in name]
    for module in shown:
        for name in getattr(module, "__all__", ()):
            yield module, name, getattr(module, name)


def test_packages_list_their_public_names(modules):
    for name, module in modules.items():
        if hasattr(module, "__path__") and name != "wideangle.cli":
            listed = getattr(module, "__all__", None)
            assert listed, f"{name} has no __all__"
            assert len(set(listed)) == len(listed), f"{name}.__all__ repeats a name"


def test_no_public_function_shares_a_submodule_s_name(modules):
    for module, name, value in public(modules):
        submodule = f"{module.__name__}.{name}"
        if isinstance(value, types.ModuleType) and value.__name__ == submodule:
            continue  # a package may list its own sub-packages and modules
        assert submodule not in modules, f"{submodule} is both a module and a public name"
        assert not isinstance(value, types.ModuleType), f"{submodule} was rebound to a module"


def test_public_names_are_documented(modules):
    missing = []
    for module, name, value in public(modules):
        where = f"{module.__name__}.{name}"
        if isinstance(value, type):
            missing += [where] if undocumented_class(value) else []
            missing += [f"{where}.{method}" for method in undocumented_methods(value)]
        elif inspect.isroutine(value) or isinstance(value, types.ModuleType):
            missing += [] if (value.__doc__ or "").strip() else [where]
    assert sorted(set(missing)) == []


def undocumented_class(kind: type) -> bool:
    text = (vars(kind).get("__doc__") or "").strip()
    return not text or text.startswith(f"{kind.__name__}(")  # what a dataclass writes of itself


def undocumented_methods(kind: type) -> Iterator[str]:
    """The public methods and properties a class defines without documentation of its own or a base's."""
    for name, value in vars(kind).items():
        target = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        if name.startswith("_") or not (inspect.isfunction(target) or isinstance(target, property)):
            continue
        ours = [base for base in kind.__mro__ if base is kind or base.__module__.startswith("wideangle")]
        if not any(getattr(vars(base).get(name), "__doc__", None) for base in ours):
            yield name


def test_the_documentation_check_sees_what_it_should():
    class Bare:
        def method(self):
            return 1

        @property
        def number(self):
            return 1

        @classmethod
        def make(cls):
            """Say something."""

    assert undocumented_class(Bare)
    assert list(undocumented_methods(Bare)) == ["method", "number"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_file_is_over_400_lines(folder):
    long = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in sources(folder)}
    assert {path: lines for path, lines in long.items() if lines > 400} == {}


GLOBAL_SEEDS = {
    f"{owner}.{name}" for owner in ("torch", "torch.random", "torch.cuda") for name in ("manual_seed", "seed")
}
GLOBAL_SEEDS |= {"torch.cuda.manual_seed_all", "np.random.seed", "numpy.random.seed", "random.seed"}


def global_seeds(tree: ast.AST) -> list[int]:
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    found = [call.lineno for call in calls if ast.unparse(call.func) in GLOBAL_SEEDS]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found += [node.lineno for alias in node.names if f"{node.module}.{alias.name}" in GLOBAL_SEEDS]
    return found


def test_no_global_seed_is_set():
    assert {str(path): lines for path in sources(*FOLDERS) if (lines := global_seeds(parse(path)))} == {}


def test_the_seed_check_sees_what_it_should():
    assert global_seeds(ast.parse("import torch\ntorch.manual_seed(0)")) == [2]
    assert global_seeds(ast.parse("np.random.seed(0)")) == [1]
    assert global_seeds(ast.parse("from torch import manual_seed")) == [1]
    assert global_seeds(ast.parse("torch.Generator().manual_seed(0)")) == []


def test_reports_name_no_outside_address():
    files = [path for path in (SOURCE / "report").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert any(path.suffix == ".j2" for path in files)
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert "http://" not in text, path
        assert "https://" not in text, path


def test_one_version_everywhere():
    from importlib.metadata import version

    assert version("wideangle") == wideangle.__version__
    assert f"\nversion: {wideangle.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
