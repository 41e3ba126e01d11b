"""Which folder of a sweep is whose, and that one process at a time trains in it and on a device."""

import os
import threading

import pytest
from omegaconf import OmegaConf

from longspan.training import devices
from longspan.training.job_folders import JobFolders, finished_result, job_settings, locked
from longspan.training.results import write_result

SETTINGS = {
    "seed": 0,
    "sweep": None,
    "output_dir": "${hydra:runtime.output_dir}",
    "sparsity": {"_target_": "a.Pattern", "num_heads": "${model.num_heads}", "block": 16},
    "optimizer": {"_target_": "a.AdamW", "lr": 1e-3},
    "callbacks": {"last": {"every_n_minutes": 2.0}, "other": {"steps": (1, 2)}},
    "logger": {"csv": {"run_dir": "${output_dir}"}},
    "data": {"pin_memory": False, "seq_len": 8},
}


def config(**changes):
    made = OmegaConf.create(SETTINGS)
    for key, value in changes.items():
        OmegaConf.update(made, key.replace("__", "."), value)
    return made


def job(folder, settings, overrides="[]"):
    """What Hydra leaves in a job's folder."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(settings))
    if overrides is not None:
        (folder / ".hydra" / "overrides.yaml").write_text(overrides)


def test_a_folder_is_found_by_its_settings_whatever_its_number(tmp_path):
    job(tmp_path / "0_a", config(seed=1))
    job(tmp_path / "1_a", config(sparsity__block=32))
    job(tmp_path / "11_a", config())
    folders = JobFolders(tmp_path)
    assert folders.next_number() == 12
    assert folders.of(config(optimizer__lr=0.002)) is None
    assert folders.of(config()) == "11_a"
    assert folders.of(config(sparsity__block=32)) == "1_a"
    assert folders.of(config(seed=1)) == "0_a"
    assert folders.of(config()) is None, "a folder is given away once"
    assert not folders.is_free("0_a")
    assert folders.is_free("2_a")
    folders.give("12_a")
    assert (folders.is_free("12_a"), folders.next_number()) == (False, 13)


@pytest.mark.parametrize(
    "ignored",
    [
        {"sweep": "name"},
        {"output_dir": "there"},
        {"logger": {}},
        {"data__pin_memory": True},
        {"callbacks__last__every_n_minutes": 5.0},
    ],
)
def test_what_makes_no_other_job(tmp_path, ignored):
    job(tmp_path / "0_a", config(**ignored))
    assert JobFolders(tmp_path).of(config()) == "0_a"


@pytest.mark.parametrize(
    "other",
    [
        {"data__seq_len": 16},
        {"callbacks__other__steps": [1, 3]},
        {"sparsity__num_heads": 2},
        {"optimizer__lr": 1},
    ],
)
def test_what_makes_another_job(tmp_path, other):
    job(tmp_path / "0_a", config(**other))
    assert JobFolders(tmp_path).of(config()) is None


def test_a_job_that_had_hardly_begun_has_no_folder(tmp_path):
    job(tmp_path / "0_a", config(), overrides=None)
    job(tmp_path / "1_a", config())
    (tmp_path / "1_a" / ".hydra" / "config.yaml").write_text("a: [1,")
    (tmp_path / "multirun.yaml").write_text("{}")
    folders = JobFolders(tmp_path)
    assert folders.of(config()) is None
    assert folders.is_free("0_a")
    assert JobFolders(tmp_path / "nowhere").next_number() == 0


def test_settings_do_not_change_with_what_is_ignored():
    before = config()
    settings = job_settings(before)
    assert before == config()
    assert settings["callbacks"] == {"other": {"steps": [1, 2]}}
    assert "logger" not in settings
    assert settings["sparsity"]["num_heads"] == "${model.num_heads}", "as it is written"


def test_which_jobs_are_finished(tmp_path):
    assert finished_result(tmp_path) is None
    write_result({"status": "interrupted"}, tmp_path)
    assert finished_result(tmp_path) is None
    write_result({"status": "finished"}, tmp_path)
    assert finished_result(tmp_path) == {"status": "finished"}
    (tmp_path / "failure.json").write_text("{}")
    assert finished_result(tmp_path) is None


def runs_while(action, held) -> bool:
    """Whether `action`, in another thread, waits for `held` to be left, and then comes to its end."""
    done = threading.Event()
    thread = threading.Thread(target=lambda: (action(), done.set()), daemon=True)
    with held:
        thread.start()
        waited = not done.wait(0.5)
    return waited and done.wait(5.0)


def test_two_processes_do_not_train_in_one_folder(tmp_path, capsys):
    def train():
        with locked(tmp_path / "0_a"):
            pass

    assert runs_while(train, locked(tmp_path / "0_a"))
    assert "Waiting for another process that trains in" in capsys.readouterr().out


@pytest.fixture
def fresh_process(monkeypatch):
    """As a process that has used no device yet; its environment is set back."""
    monkeypatch.setattr(devices, "_mine", None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")


@pytest.mark.usefixtures("fresh_process")
def test_each_job_has_a_device_of_its_own(tmp_path, monkeypatch):
    devices.offer(tmp_path, ["5", "MIG-3f/1"])
    with devices.taken(tmp_path) as first:
        assert (first, os.environ["CUDA_VISIBLE_DEVICES"]) == ("gpu-5", "5")
        monkeypatch.setattr(devices, "_mine", None)  # another process
        with devices.taken(tmp_path) as second:
            assert (second, os.environ["CUDA_VISIBLE_DEVICES"]) == ("gpu-MIG-3f/1", "MIG-3f/1")
    # The same process keeps the device that CUDA was first used on.
    with devices.taken(tmp_path) as third:
        assert third == "gpu-MIG-3f/1"


@pytest.mark.usefixtures("fresh_process")
def test_a_job_waits_for_a_device(tmp_path):
    def train():
        with devices.taken(tmp_path) as taken:
            assert taken == "gpu-0"

    devices.offer(tmp_path, ["0"])
    assert runs_while(train, devices.taken(tmp_path))


@pytest.mark.usefixtures("fresh_process")
def test_places_without_a_gpu_leave_cuda_alone(tmp_path):
    devices.offer(tmp_path, [], places=2)
    with devices.taken(tmp_path) as first, devices.taken(tmp_path) as second:
        assert (first, second) == ("cpu-0", "cpu-1")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1,2"
    devices.offer(tmp_path, [])
    with devices.taken(tmp_path) as none:
        assert none is None, "what was offered before is gone"


def test_which_gpus_there_are(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert devices.visible_gpus() == ["0", "1", "2"]
    assert devices.visible_gpus("cpu") == []
    assert devices.jobs_at_once("auto") == 3
    assert devices.jobs_at_once("cpu") == devices.cores() >= 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, GPU-a,7")
    assert devices.visible_gpus("cuda") == ["4", "GPU-a", "7"]
