"""The wheel, installed without the checkout: the configuration comes along and the commands run."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("longspan-*.whl")
    return path


def test_the_wheel_holds_both_packages_and_the_whole_configuration(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"longspan/__init__.py", "longspan_kernels/__init__.py", "longspan/conf/train.yaml"} <= names
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert f"longspan/conf/{path.relative_to(ROOT / 'conf').as_posix()}" in names
    assert not [name for name in names if name.startswith("tests/")]


def test_the_installed_command_trains(wheel, tmp_path):
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python = venv / "bin" / "python"
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run([*install, str(wheel)], check=True)
    # The dependencies are those of this environment. Its own longspan, an editable one, is not on the path:
    # .pth files of a folder that another .pth file names are not read.
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = venv / "lib" / version / "site-packages"
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    environment = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")
    }

    where = (
        "import longspan; from longspan.config.folders import config_dir as c; print(longspan.__file__, c())"
    )
    found = subprocess.run(
        [python, "-c", where], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    assert all(path.startswith(str(site)) for path in found.stdout.split())

    options = {"cwd": folder, "env": environment, "capture_output": True, "text": True}
    for longspan in ([venv / "bin" / "longspan"], [python, "-m", "longspan"]):
        done = subprocess.run([*longspan, "--help"], check=True, **options)
        assert "usage: longspan COMMAND" in done.stdout
        # Refused by the signature in the installed source.
        done = subprocess.run([*longspan, "train", "sparsity.blok=32"], **options)
        assert done.returncode == 1
        assert "unknown key 'sparsity.blok'; allowed: num_heads, block" in done.stderr

    command = [venv / "bin" / "longspan-train", "experiment=smoke"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (result,) = folder.glob("logs/runs/*/result.json")
    assert json.loads(result.read_text())["steps"] > 0
