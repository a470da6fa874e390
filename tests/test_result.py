"""Results: printing, JSON round trips, schema versions, atomic files, seeds."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wideangle.checks import Checkup
from wideangle.document import Document, Figure, Section, Series
from wideangle.errors import InputError
from wideangle.files import write_atomically
from wideangle.plan import Decision, Plan
from wideangle.result import Provenance, Result
from wideangle.seeds import derive_seed, generator

STORED = Path(__file__).parent / "stored"


@dataclass(frozen=True)
class Everything(Result):
    number: float = 0.0
    count: int = 0
    name: str = ""
    flag: bool | None = None
    values: list[Any] = field(default_factory=list)
    table: dict[str, Any] = field(default_factory=dict)
    array: np.ndarray = field(default_factory=lambda: np.zeros(0))
    inner: Decision | None = None


def test_every_kind_of_value_round_trips():
    one = Everything(
        number=math.inf,
        count=3,
        name='"quoted" <b>',
        flag=True,
        values=[1.5, None, -math.inf, [1, "a"], {"x": 2}],
        table={"k": 1.0},
        array=np.array([[1.0, np.nan], [np.inf, 2.0]]),
        inner=Decision(0.1, "a step", "measured"),
        provenance=Provenance.here(seed=3, seconds=1.5),
    )
    text = one.to_json()
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not strict JSON"))
    again = Everything.from_json(text)
    assert again.values == one.values
    assert again.number == math.inf
    assert again.inner == one.inner
    assert again.provenance == one.provenance
    assert np.array_equal(again.array, one.array, equal_nan=True)
    assert again.array.dtype == one.array.dtype
    assert math.isnan(Everything.from_json(Everything(number=math.nan).to_json()).number)


def test_printing_is_a_short_table():
    text = str(Everything(number=1 / 3, values=list(range(9)), flag=False))
    assert text.splitlines()[0] == "Everything"
    assert "number  0.3333" in text
    assert "[0, 1, 2, 3, 4, 5, ...]" in text
    assert "flag    no" in text
    plan = Plan(step_size=Decision(0.25, "a step", "1 / L"))
    assert "0.25 a step  (1 / L)" in str(plan)
    assert "momentum        not measured" in str(plan)


def test_what_cannot_be_stored_is_refused():
    with pytest.raises(TypeError, match="cannot hold a Tensor"):
        Everything(values=[torch.ones(1)]).to_json()


@dataclass(frozen=True)
class Grown(Result):
    schema_version = 2
    metres: float = 0.0

    @classmethod
    def upgrade(cls, data: dict[str, Any], version: int) -> dict[str, Any]:
        return {"metres": data["feet"] * 0.3048} if version == 1 else data


def test_an_older_schema_is_read_and_a_newer_one_refused():
    stored = json.loads(Grown(metres=1.0).to_json())
    stored["$result"]["schema_version"] = 1
    stored["feet"] = 10.0
    del stored["metres"]
    assert Grown.from_json(json.dumps(stored)).metres == pytest.approx(3.048)
    stored["$result"]["schema_version"] = 3
    with pytest.raises(InputError, match="schema 3, this wideangle reads up to 2"):
        Grown.from_json(json.dumps(stored))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "holds a list"),
        ('{"a": 1}', "holds a dict"),
        ('{"$result": {"type": "wideangle.nope:Nope"}}', "unknown kind of result"),
        ('{"$result": {"type": "os:system"}}', "unknown kind of result"),
        (Plan().to_json().replace('"samples"', '"sample_count"'), "does not hold the fields of a Plan"),
        (Plan().to_json(), "holds a Plan, but a Section was expected"),
    ],
)
def test_bad_json_is_a_typed_error(text: str, words: str):
    with pytest.raises(InputError, match=words):
        Section.from_json(text)


def test_missing_and_foreign_files(tmp_path: Path):
    with pytest.raises(InputError, match="no file at"):
        Plan.load(tmp_path / "none.json")
    other = Decision(1).save(tmp_path / "decision.json")
    with pytest.raises(InputError, match="holds a Decision, but a Plan was expected"):
        Plan.load(other)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"binary\.json"):
        Plan.load(tmp_path / "binary.json")


def test_stored_files_of_every_schema_are_still_read():
    """One file of each kind and version is kept here for ever."""
    plan = Plan.load(STORED / "plan-1.json")
    assert plan.step_size.value == 0.125
    assert plan.predicted_loss == [[0.0, 1.0], [1.0, 0.5]]
    checkup = Checkup.load(STORED / "checkup-1.json")
    assert checkup.section("kernel").values["condition number"] == math.inf
    assert checkup.section("kernel").figures[0].series[0].y == [2.0, None]
    assert checkup.plan == plan


def test_sections_are_found_by_name():
    document = Document(sections=[Section(name="a", figures=[Figure(series=[Series("s", [1.0], [2.0])])])])
    assert document.section("a").figures[0].series[0].x == [1.0]
    with pytest.raises(KeyError, match="there are a"):
        document.section("b")


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path):
    path = write_atomically(tmp_path / "new" / "a.txt", "old")

    def fail(file):
        file.write(b"half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_seeds_are_names():
    assert derive_seed(0, "client", 3) == derive_seed(0, "client", 3)
    seeds = {
        derive_seed(0, "client", 3),
        derive_seed(0, "client", "3"),
        derive_seed(0, "client", 4),
        derive_seed(1),
    }
    seeds |= {derive_seed(0, "a", "b"), derive_seed(0, "ab"), derive_seed(0, "b", "a")}
    assert len(seeds) == 7
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "init") == 9055703558391577090  # the same on every machine, for ever


def test_generators_leave_the_global_stream_alone():
    before = torch.get_rng_state()
    a = torch.rand(3, generator=generator(7, "x"))
    assert torch.equal(a, torch.rand(3, generator=generator(7, "x")))
    assert torch.equal(before, torch.get_rng_state())
