"""longspan.config.instantiate: the allow-list, building objects, and errors that name the key."""

import pytest
import torch
from omegaconf import OmegaConf

from longspan.config.folders import config_dir
from longspan.config.instantiate import instantiate, locate
from longspan.errors import ConfigError
from longspan.training.optim import AdamW

ADAMW = "longspan.training.optim.AdamW"


def test_the_configuration_is_found():
    assert (config_dir() / "train.yaml").is_file()
    assert (config_dir() / "sparsity" / "bigbird.yaml").is_file()


@pytest.mark.parametrize("target", ["os.system", "subprocess.run", "builtins.eval", "", "numpy.zeros"])
def test_targets_outside_the_allowed_packages_are_refused(target):
    with pytest.raises(ConfigError, match="lies in one of longspan, torch"):
        locate(target)


def test_an_allowed_name_does_not_lead_to_a_foreign_function():
    with pytest.raises(ConfigError, match="comes from"):
        locate("torch.os.system")


@pytest.mark.parametrize("target", ["longspan.nothing", "torch.nn.Lineer", "longspan.training.nothing.X"])
def test_a_target_that_is_not_there(target):
    with pytest.raises(ConfigError, match=target):
        locate(target)


def test_a_target_that_cannot_be_called():
    with pytest.raises(ConfigError, match="cannot be called"):
        locate("torch.__version__")


def test_builds_inner_objects_first_and_resolves_interpolations():
    config = OmegaConf.create(
        {
            "width": 3,
            "net": {
                "_target_": "torch.nn.ModuleList",
                "modules": [
                    {"_target_": "torch.nn.Linear", "in_features": "${width}", "out_features": 2},
                    {"_target_": "torch.nn.ReLU"},
                ],
            },
        }
    )
    net = instantiate(config.net)
    assert isinstance(net[0], torch.nn.Linear)
    assert net[0].in_features == 3
    assert isinstance(net[1], torch.nn.ReLU)


def test_arguments_of_the_call_win():
    assert instantiate({"_target_": ADAMW, "lr": 0.1}, lr=0.2) == AdamW(lr=0.2)


def test_missing_values_are_left_to_the_target():
    assert instantiate(OmegaConf.create({"_target_": ADAMW, "lr": "???"})) == AdamW()
    with pytest.raises(ConfigError, match=r"net: .*out_features"):
        instantiate(
            OmegaConf.create(
                {"net": {"_target_": "torch.nn.Linear", "in_features": 3, "out_features": "???"}}
            ).net
        )


def test_partial_waits_for_the_rest():
    factory = instantiate({"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.5})
    optimizer = factory([torch.nn.Parameter(torch.zeros(1))])
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_errors_of_the_target_name_the_key():
    config = OmegaConf.create({"optimizer": {"_target_": ADAMW, "lr": -1.0}})
    with pytest.raises(ConfigError, match=r"^optimizer: lr must be positive, got -1.0$"):
        instantiate(config.optimizer)


def test_none_and_containers():
    assert instantiate(None) is None
    made = instantiate({"first": {"_target_": ADAMW}, "second": [1, None]})
    assert made == {"first": AdamW(), "second": [1, None]}


def test_an_interpolation_that_leads_nowhere():
    with pytest.raises(ConfigError, match="nowhere"):
        instantiate(OmegaConf.create({"optimizer": {"_target_": ADAMW, "lr": "${nowhere}"}}).optimizer)
