"""The conventions that a machine can hold the tree to."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssl_runner.types import Evaluator, Objective, Transform

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "ssl_runner").rglob("*.py"))
PLAIN = [p for p in MODULES if p.parent.name in ("objectives", "parts", "views", "backbones")]


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(top-level package, whether it is imported when the module is)."""
    tree = ast.parse(path.read_text())
    inside = {n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node not in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0], node not in inside


@pytest.mark.parametrize("path", PLAIN, ids=lambda p: str(p.relative_to(ROOT)))
def test_models_and_views_are_plain_torch(path: Path) -> None:
    found = {name for name, _ in imports(path)}
    assert not found & {"pytorch_lightning", "lightning_fabric", "hydra", "omegaconf", "logging", "wandb", "rich"}
    calls = {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
    assert not calls & {"cuda", "synchronize", "current_device"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_importing_a_module_is_cheap(path: Path) -> None:
    needs_lightning = {"callbacks.py", "data.py", "learner.py", "stages.py", "strategies.py", "watch.py"}
    eager = {name for name, at_once in imports(path) if at_once}
    heavy = {"timm", "transformers", "torchvision", "torchmetrics", "sklearn", "PIL", "wandb"}
    assert not eager & heavy
    if path.name not in needs_lightning or path.parent.name != "ssl_runner":
        guarded = "TYPE_CHECKING" in path.read_text()
        assert guarded or not eager & {"pytorch_lightning", "lightning_fabric"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_says_what_it_is_for(path: Path) -> None:
    text = path.read_text()
    assert not text.strip() or ast.get_docstring(ast.parse(text))


def classes(package: str, base: type) -> list[type]:
    folder = ROOT / "ssl_runner" / package
    modules = [importlib.import_module(f"ssl_runner.{package}.{p.stem}") for p in folder.glob("[!_]*.py")]
    found = {c for m in modules for c in vars(m).values() if inspect.isclass(c) and issubclass(c, base)}
    return sorted((c for c in found if c.__module__.startswith(f"ssl_runner.{package}")), key=lambda c: c.__name__)


@pytest.mark.parametrize(
    "cls", [*classes("objectives", Objective), *classes("views", Transform), *classes("evaluators", Evaluator)]
)
def test_a_signature_is_a_schema(cls: type) -> None:
    parameters = list(inspect.signature(cls).parameters.values())
    for parameter in parameters:
        assert parameter.annotation is not parameter.empty, f"{parameter.name} has no type"
        assert parameter.kind is not parameter.VAR_KEYWORD, "no **kwargs"
        if parameter.name != "backbone":
            assert parameter.kind is parameter.KEYWORD_ONLY, f"{parameter.name} is not keyword-only"
    assert inspect.getdoc(cls)


@pytest.mark.parametrize("cls", classes("objectives", Objective))
def test_an_objective_is_one_file_with_one_paper(cls: type) -> None:
    others = [c for c in classes("objectives", Objective) if c.__module__ == cls.__module__]
    assert others == [cls]


def test_the_tests_that_the_docs_name_are_there() -> None:
    files = {path.stem: path.read_text() for path in Path(__file__).parent.glob("test_*.py")}
    defined = {name for text in files.values() for name in re.findall(r"^ *def (test_\w+)", text, flags=re.M)}
    named = set(re.findall(r"\btest_\w+", (ROOT / "docs" / "engine.md").read_text()))
    assert len(named) > 60
    assert not named - defined - set(files)
