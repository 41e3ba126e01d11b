"""longspan.config.signatures: what is read from the source is what Python says of the imported object."""

import re
import subprocess
import sys

import pytest

from longspan.config import source
from longspan.config.folders import config_dir
from longspan.config.instantiate import locate
from longspan.config.schemas import config_type
from longspan.config.signatures import imported_signature, signature_of
from longspan.config.source import NO_DEFAULT, read_signature

TARGETS = sorted(
    {
        target
        for file in config_dir().glob("*/*.yaml")
        for target in re.findall(r"_target_: (longspan\.\S+)", file.read_text())
    }
)
FURTHER = [
    "longspan.BigBirdSparsityConfig",
    "longspan.sparsify",
    "longspan.training.export.export",
    "longspan.training.optim.adamw.AdamW",
]


def known(parameter):
    """A parameter as a schema sees it; of a default that no file can hold only that there is one."""
    default = parameter.default
    plain = default is NO_DEFAULT or isinstance(default, bool | int | float | str | tuple | list | None)
    return parameter.name, config_type(parameter.annotation), default if plain else "a default"


@pytest.mark.parametrize("target", [*TARGETS, *FURTHER])
def test_the_source_says_what_the_object_says(target):
    read, imported = read_signature(target), imported_signature(locate(target))
    assert read is not None, f"{target} would be imported to check a key"
    assert [known(one) for one in read.parameters] == [known(one) for one in imported.parameters]
    assert read[1:] == imported[1:]


def test_every_target_of_the_package_is_among_them():
    assert len(TARGETS) > 40


@pytest.mark.parametrize(
    "target", ["torch.optim.AdamW", "longspan.nothing", "longspan.sparsity.base.nothing", "longspan.sparsity"]
)
def test_what_the_source_does_not_show_is_imported(target):
    assert read_signature(target) is None


def test_a_run_says_what_it_supplies_and_what_it_reads():
    data = signature_of("longspan.training.data_module.DataModule")
    assert data.supplied_by_run == ("tokenizer", "objective")
    model = signature_of("longspan.models.build.build_model")
    assert model.supplied_by_run[:2] == ("objective", "vocab_size")
    assert signature_of("longspan.sparsity.BigBirdSparsityConfig").read_by_run == {"layers": str | None}


SOURCE = '''
from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from foreign import Base, thing

if TYPE_CHECKING:
    from torch import Tensor

SIZES = (1, 2)
Kind = Literal["a", "b"]


@dataclass
class First:
    size: int = SIZES[1]
    shared: ClassVar[int] = 3
    hidden: int = field(default=1, init=False)
    dropped: int = 0
    items: list[int] = field(default_factory=lambda: list(SIZES))


@dataclass(frozen=True)
class Second(First):
    kind: Kind = "a"
    dropped: int = field(default=1, init=False)
    first: bool = field(default=True, kw_only=True)
    size: float | Tensor = 1.5
    last: int = 0


class Third(Second):
    """Adds nothing."""

    supplied_by_run = ("size",)


class Foreign(Base):
    """Takes what its base takes."""


class Meta(First, metaclass=thing):
    """Another package makes its signature."""


@thing
def decorated(a): ...


def function(a, /, b: "int | None" = None, *args, c: unheard_of = thing.value, d, **kwargs): ...


function.supplied_by_run = ("c",)
'''


@pytest.fixture
def written(tmp_path, monkeypatch):
    (tmp_path / "longspan").mkdir()
    (tmp_path / "longspan" / "__init__.py").write_text("from longspan.parts import First as Renamed\n")
    (tmp_path / "longspan" / "parts.py").write_text(SOURCE)
    monkeypatch.setattr(source, "_ROOT", tmp_path)
    source._module.cache_clear()
    yield
    source._module.cache_clear()


def test_fields_of_dataclasses_and_their_bases(written):
    third = read_signature("longspan.parts.Third")
    assert [one[::2] for one in third.parameters] == [
        ("size", 1.5),
        ("items", [1, 2]),
        ("kind", "a"),
        ("last", 0),
        ("first", True),
    ]
    assert [config_type(one.annotation) for one in third.parameters] == [float, list[int], str, int, bool]
    assert third.supplied_by_run == ("size",)
    assert read_signature("longspan.Renamed").parameters[0] == ("size", int, 2)


def test_parameters_of_a_function(written):
    signature = read_signature("longspan.parts.function")
    assert [one.name for one in signature.parameters] == ["b", "c", "d"]
    assert signature.parameters[0][1:] == (int | None, None)
    assert signature.parameters[2].default is NO_DEFAULT
    assert (signature.takes_any_key, signature.supplied_by_run) == (True, ("c",))


@pytest.mark.parametrize("name", ["Foreign", "Meta", "decorated", "thing", "SIZES", "First.size"])
def test_what_another_package_makes_is_not_read(written, name):
    assert read_signature(f"longspan.parts.{name}") is None


LIGHT = """
import sys
sys.argv = ["train.py", *{arguments}]
from longspan.cli.train import main
try:
    main()
except SystemExit as stop:
    print("status", stop.code)
heavy = {{"torch", "lightning", "transformers", "datasets", "wandb", "numpy"}}
print("heavy", sorted(heavy & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--help"], "sparsity: a_shape"),
        (["--cfg", "job"], "BigBirdSparsityConfig"),
        (["sparsity.blok=32"], "unknown key 'sparsity.blok'"),
        (["trainr=cpu"], "did you mean trainer?"),
        (["optimizer.lrr=1"], "did you mean lr?"),
        (["+sparsity.foo=1"], "unknown key 'sparsity.foo'"),
        (["trainer.max_steps=many"], "expected int"),
        (["sparsity=bigbrd"], "did you mean bigbird?"),
        (["-m", "sparsity=dense,fixed", "sparsity.blok=32"], "unknown key 'sparsity.blok'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_and_help_import_nothing_heavy(tmp_path, arguments, said):
    """What takes seconds to import is not needed to refuse a key or to print the help."""
    code = LIGHT.format(arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert said in " ".join((done.stdout + done.stderr).split())
    assert done.stdout.splitlines()[-1] == "heavy []"
