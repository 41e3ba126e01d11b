"""Which folder of a sweep is whose, and that one process at a time trains in it and on a device."""

import gc
import json
import os
import threading
import weakref
from contextlib import nullcontext

import pytest
from hydra.conf import HydraConf
from omegaconf import OmegaConf

from longspan.config import machine
from longspan.errors import ConfigError
from longspan.sweeps import devices, job_folders
from longspan.sweeps import launcher as launching
from longspan.sweeps.job_folders import (
    JobFolders,
    finished_result,
    is_of_job,
    job_settings,
    locked,
    reserving,
)
from longspan.training.reports.results import write_result

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
    folders.give("12_a", config(seed=2))
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


def test_commands_started_at_once_give_different_folders(tmp_path):
    sweep = tmp_path / "it"
    with reserving(sweep) as first:
        assert first.is_free("0_a")
        first.give("0_a", config(seed=0))
    with reserving(sweep) as second:
        assert not second.is_free("0_b"), "given, though its job has not begun"
        second.give(f"{second.next_number()}_a", config(seed=1, optimizer__steps={2: 0.5}))
    assert not list(sweep.glob("*/")), "no folder is made of a job that has not begun"
    again = JobFolders(sweep)
    assert again.of(config(seed=1, optimizer__steps={2: 0.5})) == "1_a"
    assert again.of(config(seed=0)) == "0_a"


def test_what_was_given_is_believed_before_what_hydra_wrote(tmp_path):
    with reserving(tmp_path) as folders:
        folders.give("0_a", config(seed=3))
    job(tmp_path / "0_a", config(seed=4))
    assert JobFolders(tmp_path).of(config(seed=4)) is None
    assert JobFolders(tmp_path).of(config(seed=3)) == "0_a"


def test_a_command_waits_for_another_that_gives_folders(tmp_path, capsys):
    def give():
        with reserving(tmp_path) as folders:
            folders.give("0_a", config())

    assert runs_while(give, reserving(tmp_path))
    assert "Waiting for another process that gives its jobs folders in" in capsys.readouterr().out


def test_nothing_is_given_where_a_job_is_refused(tmp_path):
    def refuse():
        with reserving(tmp_path) as folders:
            folders.give("0_a", config())
            raise ConfigError("another job")

    with pytest.raises(ConfigError, match="another job"):
        refuse()
    assert JobFolders(tmp_path).is_free("0_a")


def test_folders_are_given_where_files_cannot_be_locked(tmp_path, monkeypatch, caplog):
    def refuse(self, **options):
        raise OSError("no locks here")

    monkeypatch.setattr(job_folders.FileLock, "acquire", refuse)
    with reserving(tmp_path) as folders:
        folders.give("0_a", config())
    assert "cannot be locked (no locks here)" in caplog.text
    assert not JobFolders(tmp_path).is_free("0_a")


def test_the_result_of_another_job_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(launching, "locked", lambda folder: nullcontext())
    mine = config(output_dir=str(tmp_path), model={"num_heads": 2})
    theirs = OmegaConf.to_container(mine, resolve=True) | {"logger": {}}
    reached = {"status": "finished", "metrics": {"val_loss": 2.0}, "config": theirs}
    write_result(reached, tmp_path)
    assert launching.train_job(mine, []) == 2.0
    write_result({**reached, "config": {**theirs, "seed": 1}}, tmp_path)
    with pytest.raises(ConfigError, match=f"{tmp_path} holds the run of another job"):
        launching.train_job(mine, [])
    assert not (tmp_path / "failure.json").exists(), "the other job did not fail"
    assert json.loads((tmp_path / "result.json").read_text())["config"]["seed"] == 1


def test_a_result_stays_its_job_s_where_the_sweep_is_moved():
    mine = config(output_dir="there", model={"num_heads": 2}, trainer={"run_dir": "${output_dir}"})
    theirs = OmegaConf.to_container(mine, resolve=True)
    OmegaConf.update(mine, "output_dir", "${hydra:runtime.output_dir}")
    OmegaConf.set_readonly(mine, True)
    assert is_of_job({"config": theirs}, mine)
    assert not is_of_job({"config": {**theirs, "trainer": {"run_dir": "elsewhere"}}}, mine)
    assert is_of_job({"status": "finished"}, mine), "an old result does not say"
    assert theirs["output_dir"] == "there"


def test_what_cannot_be_told_before_a_job_begins_is_not_taken():
    unknown = config(model={"num_heads": "${hydra:job.num}"})
    assert not launching._is_known_to_be_of_job({"config": {"seed": 0}}, unknown)


def test_a_folder_s_name_has_no_folders_in_it():
    named = OmegaConf.create({"hydra": OmegaConf.structured(HydraConf)})
    named.hydra.sweep.subdir = "${hydra.job.num}_mine/one"
    assert launching._folder_name(named, 3) == "3_mine.one"


@pytest.fixture
def fresh_process(monkeypatch, tmp_path):
    """As a process that has used no device yet, on a machine of its own; its environment is set back."""
    monkeypatch.setattr(devices, "_taken_here", None)
    monkeypatch.setattr(devices, "_uuids", list)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")


@pytest.mark.usefixtures("fresh_process")
def test_each_job_has_a_device_of_its_own(tmp_path, monkeypatch):
    devices.offer(tmp_path, ["5", "MIG-3f/1"])
    with devices.taken(tmp_path) as first:
        assert (first, os.environ["CUDA_VISIBLE_DEVICES"]) == ("gpu-5", "5")
        monkeypatch.setattr(devices, "_taken_here", None)  # another process
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


@pytest.mark.usefixtures("fresh_process")
def test_sweeps_of_other_names_do_not_share_a_device(tmp_path, monkeypatch):
    devices.offer(tmp_path / "a", ["0", "1"])
    devices.offer(tmp_path / "b", ["0", "1"])
    with devices.taken(tmp_path / "a") as first:
        monkeypatch.setattr(devices, "_taken_here", None)  # another process
        with devices.taken(tmp_path / "b") as second:
            assert (first, second) == ("gpu-0", "gpu-1")


def test_a_gpu_has_one_lock_whatever_it_is_called():
    uuids = ["GPU-3f-1", "GPU-40-2"]
    assert devices._lock_name("gpu-1", uuids) == devices._lock_name("gpu-GPU-40", uuids) == "gpu-GPU-40-2"
    assert devices._lock_name("gpu-2", uuids) == "gpu-2"
    assert devices._lock_name("gpu-GPU", uuids) == "gpu-GPU", "it is not known which"
    assert devices._lock_name("cpu-0", uuids) == "cpu-0"


def launcher(name):
    """As Hydra makes one of this class."""
    given = OmegaConf.create({"trainer": {"accelerator": "auto"}})
    return launching.ContinuingLauncher(type(name, (), {})(), None, given)


def test_a_plain_command_leaves_alone_what_another_offers(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "visible_gpus", lambda accelerator: ["0"])
    launcher("JoblibLauncher")._offer_devices(tmp_path)
    offered = (tmp_path / devices.FOLDER / "offered.json").read_text()
    launcher("BasicLauncher")._offer_devices(tmp_path)
    assert (tmp_path / devices.FOLDER / "offered.json").read_text() == offered


@pytest.mark.usefixtures("fresh_process")
@pytest.mark.parametrize(("name", "expected"), [("JoblibLauncher", "gpu-7"), ("BasicLauncher", None)])
def test_only_jobs_beside_each_other_take_a_device(tmp_path, monkeypatch, name, expected):
    devices.offer(tmp_path, ["7"])
    hydra_config = OmegaConf.create(
        {"launcher": {"_target_": f"a.b.{name}"}, "sweep": {"dir": str(tmp_path)}}
    )
    monkeypatch.setattr(launching.HydraConfig, "get", lambda: hydra_config)
    with launching._device() as device:
        assert device == expected


def test_a_job_begins_without_the_memory_of_the_one_before(tmp_path, monkeypatch):
    class Trainer:
        def __init__(self):
            self.loop = self

    before = weakref.ref(Trainer())
    assert before() is not None, "its parts refer to each other"
    alive = []

    def train(config, overrides, resume, sweep):
        alive.append(before())
        return {"metrics": {"val_loss": 1.0}}

    monkeypatch.setattr("longspan.training.run.train", train)
    monkeypatch.setattr(launching, "_device", nullcontext)
    gc.disable()
    try:
        assert launching.train_job(config(output_dir=str(tmp_path)), []) == 1.0
    finally:
        gc.enable()
    assert alive == [None]


def test_which_gpus_there_are(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.visible_gpus() == ["0", "1", "2"]
    assert machine.visible_gpus("cpu") == []
    assert machine.jobs_at_once("auto") == 3
    assert machine.jobs_at_once("cpu") == machine.cores() >= 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, GPU-a,7")
    assert machine.visible_gpus("cuda") == ["4", "GPU-a", "7"]
