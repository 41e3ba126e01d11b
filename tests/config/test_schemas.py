"""longspan.config.schemas: dataclasses from signatures, and files read through them."""

import dataclasses
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Union

import pytest
import torch
from hydra.errors import ConfigCompositionException
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import ConfigKeyError, ValidationError

from longspan.config import schemas
from longspan.config.signatures import signature_of

ADAMW = "longspan.training.optim.AdamW"
BUILD = "longspan.models.build.build_model"


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (int, int),
        (bool, bool),
        (str | None, str | None),
        (int | str, int | str),
        (Union[int, float, None], Union[int, float, None]),  # noqa: UP007
        (tuple[int, ...], list[int]),
        (tuple[float, float], list[float]),
        (Sequence[int], list[int]),
        (Sequence[int] | None, list[int] | None),
        (list[int] | str, Any),
        (dict[str, Any], dict[str, Any]),
        (dict[str, Any] | None, dict[str, Any] | None),
        (Literal["a", "b"], str),
        (float | torch.Tensor, float),
        (str | Path, str | Path),
        (torch.Tensor, Any),
        (torch.nn.Module, Any),
        (Any, Any),
    ],
)
def test_types(annotation, expected):
    assert schemas.config_type(annotation) == expected


def test_a_schema_has_the_parameters_of_the_signature():
    schema = schemas.schema_of(ADAMW)
    fields = {field.name: field for field in dataclasses.fields(schema)}
    assert list(fields)[:3] == ["_target_", "lr", "beta1"]
    assert fields["lr"].type is float
    assert fields["fused"].type == bool | None
    assert OmegaConf.structured(schema)["_target_"] == ADAMW


def test_parameters_without_default_are_missing_and_typed_though_others_cannot_be_read():
    schema = schemas.schema_of(BUILD)
    fields = {field.name: field for field in dataclasses.fields(schema)}
    assert fields["hidden_size"].type is int
    assert fields["hidden_size"].default == MISSING
    assert fields["config_overrides"].type == dict[str, Any] | None


@pytest.mark.parametrize(
    "target",
    [
        "lightning.Trainer",
        "lightning.pytorch.callbacks.ModelCheckpoint",
        "lightning.pytorch.callbacks.EarlyStopping",
        "torch.optim.AdamW",
        "torch.optim.lr_scheduler.OneCycleLR",
        "torch.nn.Linear",
        "longspan.training.trainer.make_trainer",
    ],
)
def test_schemas_of_classes_of_others(target):
    OmegaConf.structured(schemas.schema_of(target))


def test_defaults_of_dataclass_factories_are_called():
    schema = OmegaConf.structured(schemas.schema_of("longspan.sparsity.VariableSparsityConfig"))
    assert schema.local_window_blocks == [4]


def typed(**keys):
    return schemas.typed(OmegaConf.create({"_target_": ADAMW, **keys}), "optimizer/mine")


def test_values_are_checked():
    assert typed(lr=1).lr == 1.0
    with pytest.raises(ConfigCompositionException, match=r"In 'optimizer/mine': lr: .*'abc'.*expected float"):
        typed(lr="abc")


def test_an_unknown_key_names_the_allowed_ones():
    with pytest.raises(ConfigCompositionException, match=r"unknown key 'lrr'; allowed: lr, beta1.*mean lr\?"):
        typed(lrr=1)


def test_a_target_that_is_not_allowed():
    with pytest.raises(ConfigCompositionException, match=r"os\.system"):
        schemas.typed(OmegaConf.create({"_target_": "os.system"}), "data/evil")


def test_nested_targets_are_typed_and_presets_are_checked_against_them():
    config = schemas.typed(
        OmegaConf.create({"a": {"b": [{"_target_": ADAMW}], "c": {"_target_": ADAMW}}}), "x"
    )
    config.a.c.merge_with({"lr": 3})
    assert config.a.c.lr == 3.0
    with pytest.raises(ConfigKeyError):
        config.a.c.merge_with({"lrr": 3})
    with pytest.raises(ValidationError):
        config.a.b[0].lr = "abc"


def test_interpolations_and_missing_values_pass():
    linear = {"_target_": "torch.nn.Linear", "in_features": "${other}", "out_features": "???"}
    config = schemas.typed(OmegaConf.create(linear), "model/x")
    assert OmegaConf.is_missing(config, "out_features")
    assert OmegaConf.is_interpolation(config, "in_features")


def test_the_defaults_list_stays_for_hydra():
    config = typed(defaults=["base"])
    assert config.defaults == ["base"]


def test_keys_of_a_target_with_kwargs_are_open():
    target = "lightning.pytorch.loggers.WandbLogger"
    assert signature_of(target).takes_any_key
    assert not signature_of(ADAMW).takes_any_key
    config = schemas.typed(OmegaConf.create({"_target_": target, "tags": ["a"]}), "logger/x")
    assert config.tags == ["a"]


def test_partial_is_kept():
    config = typed(_partial_=True)
    assert config["_partial_"] is True


def test_a_configuration_keeps_its_types_when_it_is_sent_to_another_process():
    target = "longspan.sparsity.BigBirdSparsityConfig"
    node = OmegaConf.structured(schemas.schema_of(target))
    again = pickle.loads(pickle.dumps(node))
    assert OmegaConf.get_type(again) is schemas.schema_of(target)
    assert again == node
    assert pickle.loads(pickle.dumps(schemas.schema_of(target))) is schemas.schema_of(target)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = schemas.nothing
