"""A wheel holds everything: built from a copy, installed elsewhere, and run. Needs no network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.conftest import TINY

ROOT = Path(__file__).parent.parent
SOURCES = ("ssl_runner", "hydra_plugins", "conf", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the installed setuptools from a copy, so that nothing built before can slip in."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    succeed(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(copy / "dist"), cwd=copy)
    (found,) = (copy / "dist").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a new virtual environment: it holds the wheel, and sees what is installed here."""
    home = tmp_path_factory.mktemp("elsewhere") / "venv"
    venv.create(home, with_pip=False)
    scripts = home / ("Scripts" if os.name == "nt" else "bin")
    install = ("install", "--no-deps", "--no-index", "--no-cache-dir", str(wheel))
    succeed(sys.executable, "-m", "pip", "--python", str(scripts / "python"), *install, cwd=home)
    # A .pth line adds a folder without reading the .pth files in it, so an editable install stays out. It
    # comes after pip, which would otherwise find that install and replace it.
    (place,) = home.glob("**/site-packages")
    shared = [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
    (place / "shared.pth").write_text("\n".join(shared))
    return scripts


def succeed(*command: str, cwd: Path) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env["OMP_NUM_THREADS"] = "1"
    found = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-2000:]
    return found.stdout


def test_the_wheel_holds_every_module_and_every_config(wheel: Path) -> None:
    packages = ("ssl_runner", "hydra_plugins")
    modules = {str(p.relative_to(ROOT)) for package in packages for p in (ROOT / package).rglob("*.py")}
    configs = {f"ssl_runner/{p.relative_to(ROOT)}" for p in (ROOT / "conf").rglob("*.yaml")}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == modules | configs | {"ssl_runner/conf/__init__.py"}


def test_the_installed_package_is_the_wheels(scripts: Path, tmp_path: Path) -> None:
    code = "from ssl_runner import cli, conf; print(cli.__file__, cli._conf(), *conf.__path__)"
    for path in succeed(str(scripts / "python"), "-c", code, cwd=tmp_path).split():
        assert Path(path).is_relative_to(scripts.parent)
        assert Path(path).exists()


def test_it_lists_and_pretrains_in_an_empty_folder(scripts: Path, tmp_path: Path) -> None:
    listed = succeed(str(scripts / "ssl-run"), "list", cwd=tmp_path)
    for path in (ROOT / "conf" / "task").glob("[!_]*.yaml"):
        assert f"  {path.stem} " in listed
    run = [*TINY, "evaluators=none", "hydra.run.dir=r"]
    succeed(str(scripts / "ssl-run"), "pretrain", "task=simclr", *run, cwd=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["r"]
    assert (tmp_path / "r" / "metrics.json").is_file()
    assert (tmp_path / "r" / "backbone.safetensors").is_file()


def test_own_tasks_build_on_the_wheels(scripts: Path, tmp_path: Path) -> None:
    (tmp_path / "own" / "task").mkdir(parents=True)
    (tmp_path / "own" / "task" / "mine.yaml").write_text(
        "# @package _global_\n# mine: SimCLR in two steps\n"
        "defaults:\n  - simclr\n  - _self_\n\nname: mine\nobjective: {temperature: 0.5}\n"
    )
    own = ["--config-dir", "own"]
    assert "SimCLR in two steps" in succeed(str(scripts / "ssl-run"), "list", "task", *own, cwd=tmp_path)
    sizes = [*TINY, "duration=2 steps", "evaluators=none"]
    succeed(str(scripts / "ssl-run"), "pretrain", *own, "task=mine", *sizes, cwd=tmp_path)
    (config,) = (tmp_path / "outputs" / "pretrain" / "mine").glob("*/config.yaml")
    assert "temperature: 0.5" in config.read_text()
