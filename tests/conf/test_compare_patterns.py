"""experiment=compare_patterns: what its runs share, and what the launchers' files hold."""

import hashlib
import importlib

import pytest
from omegaconf import OmegaConf

from longspan.config.folders import config_dir
from longspan.training.build import build

FILE = OmegaConf.load(config_dir() / "experiment" / "compare_patterns.yaml")
PATTERNS = FILE.hydra.sweeper.params.sparsity.split(",")
LAUNCHERS = sorted((config_dir() / "hydra" / "launcher").glob("*.yaml"))
# A small model, and three batches of data.
TINY = [
    "data.seq_len=128",
    "data.batch_size=2",
    "model.hidden_size=32",
    "model.num_layers=2",
    "model.num_heads=2",
    "sparsity.block=16",
    "logger=none",
]


def start_of_a_run(config) -> tuple[str, list[str], str]:
    """What it begins with, as hashes: its weights, its first batches, its layout."""
    run = build(config)
    data, module, pattern = run.data, run.module, run.patterns
    weights = hashlib.sha256()
    for name, value in module.model.state_dict().items():
        weights.update(name.encode() + value.numpy().tobytes())
    batches = []
    for batch, _ in zip(data.train_dataloader(), range(4), strict=False):
        content = b"".join(batch[key].numpy().tobytes() for key in ("input_ids", "labels"))
        batches.append(hashlib.sha256(content).hexdigest())
    layout = hashlib.sha256(pattern.layout(data.seq_len).to_dense().numpy().tobytes()).hexdigest()
    return weights.hexdigest(), batches, layout


@pytest.mark.parametrize(
    "objective", [["objective=clm"], ["objective=mlm", "model=bert"]], ids=["clm", "mlm"]
)
def test_patterns_of_one_seed_begin_alike(compose, text_data, objective):
    def start(pattern, seed):
        overrides = ["experiment=compare_patterns", *text_data, *objective, *TINY]
        return start_of_a_run(compose(*overrides, f"sparsity={pattern}", f"seed={seed}"))

    first = {pattern: start(pattern, 0) for pattern in PATTERNS}
    assert len({weights for weights, _, _ in first.values()}) == 1
    assert len({tuple(batches) for _, batches, _ in first.values()}) == 1
    assert len({layout for _, _, layout in first.values()}) > 3, "the patterns themselves differ"
    # A seed changes both; the random blocks of a pattern have a seed of their own.
    weights, batches, layout = start("bigbird", 1)
    assert weights != first["bigbird"][0]
    assert not set(batches) & set(first["bigbird"][1])
    assert layout == first["bigbird"][2]


def test_patterns_have_the_same_budget(compose):
    budgets = []
    for pattern in PATTERNS:
        config = compose("experiment=compare_patterns", f"sparsity={pattern}")
        budgets.append(
            OmegaConf.to_container(OmegaConf.masked_copy(config, ["budget", "trainer", "scheduler"]))
        )
    assert all(budget == budgets[0] for budget in budgets)
    assert budgets[0]["budget"] == {
        "_target_": "longspan.training.callbacks.budget.TokenBudget",
        "tokens": 1e7,
    }
    assert budgets[0]["trainer"]["max_steps"] == -1


@pytest.mark.parametrize("file", LAUNCHERS, ids=lambda file: file.stem)
def test_a_launcher_s_file_holds_what_its_plugin_takes(file):
    text = OmegaConf.load(file)
    module = text["_target_"].rpartition(".")[0]
    plugin = ".".join(module.split(".")[:2])
    try:
        importlib.import_module(plugin)
    except ModuleNotFoundError:
        pytest.skip(f"{plugin} is not installed")
    importlib.import_module(module)
    schema = schema_of(plugin, file.stem)
    assert set(text) == set(schema)
    assert text["_target_"] == schema["_target_"]
    assert file.read_text().startswith("# ")


def schema_of(plugin: str, option: str):
    """The plugin's own configuration, which it registers when its configuration's module is imported."""
    from hydra.core.config_store import ConfigStore

    for name in ("config", "_config"):
        try:
            importlib.import_module(f"{plugin}.{name}")
        except ModuleNotFoundError:
            continue
    return ConfigStore.instance().load(f"hydra/launcher/{option}.yaml").node
