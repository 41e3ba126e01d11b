"""docs/sweeps.md: every command of it composes the jobs that it speaks of."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from hydra.core.utils import JobReturn, JobStatus

from longspan.config.messages import EXTRAS
from longspan.sweeps import launcher as launching

GUIDE = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text()
COMMANDS = re.findall(r"^    python train\.py (.*)$", GUIDE, flags=re.MULTILINE)


class Recorder:
    """Takes the jobs, and says that each reached a loss."""

    def __init__(self):
        self.jobs = []

    def launch(self, job_overrides, initial_job_idx):
        self.jobs += [list(overrides) for overrides in job_overrides]
        return [JobReturn(status=JobStatus.COMPLETED, _return_value=1.0) for _ in job_overrides]


def test_the_guide_was_read():
    assert len(COMMANDS) >= 10
    assert all(
        f"hydra/launcher={name}" in GUIDE for name in ("joblib", "submitit_slurm", "submitit_local", "ray")
    )
    assert all(f"longspan[{extra}]" in GUIDE for extra in ("joblib", "slurm", "ray", "optuna"))


def installed(message: str) -> bool:
    """Whether the package of an extra is there, which its message names: `… needs hydra-some-plugin: …`."""
    plugin = re.search(r" needs ([\w-]+):", message)[1].replace("-", "_")
    try:
        return importlib.util.find_spec(f"hydra_plugins.{plugin}") is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("line", dict.fromkeys(COMMANDS))
def test_command(command, monkeypatch, tmp_path, line):
    arguments = shlex.split(line)
    for option, message in EXTRAS.items():
        chosen = "experiment=search" if option == "hydra/sweeper=optuna" else option
        if chosen in arguments and not installed(message):
            pytest.skip(message)
    recorder = Recorder()
    monkeypatch.setattr(launching, "_hydras_method", lambda plugins, **parts: recorder)
    expected = 1
    for argument in arguments:
        values = argument.partition("=")[2].split(",")
        expected *= len(values) if argument.startswith(("sparsity", "seed")) else 1
    if "experiment=search" in arguments:
        arguments.append("hydra.sweeper.n_trials=2")
        expected = 2
    else:
        # Not all eighteen, where the guide means them.
        for key, value in (("sparsity", "dense"), ("seed", "0")):
            if not any(argument.startswith(f"{key}=") for argument in arguments):
                arguments.append(f"{key}={value}")
    status, _, err = command(*arguments)
    assert len(recorder.jobs) == expected, err
    assert "longspan:" not in err
    # Nothing was trained, which the closing table says.
    assert status in (0, 1)
