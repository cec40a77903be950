"""`check` finds every fault of a composed config at once, in words; and every recipe passes it."""

from __future__ import annotations

import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_module
from hydra.utils import get_class
from hypothesis import given
from hypothesis import strategies as st

from ssl_runner import cli, config
from ssl_runner.backbones.towers import Towers
from ssl_runner.build import fill
from ssl_runner.compose import overrides, quoted
from ssl_runner.config import check, plain
from ssl_runner.errors import RequestError
from ssl_runner.types import FrameBackbone, TokenBackbone

CONF = Path(__file__).parent.parent / "conf"


@pytest.fixture(scope="module", autouse=True)
def _hydra() -> Iterator[None]:
    with initialize_config_module("ssl_runner.conf", version_base="1.3"):
        yield


def composed(*args: str, verb: str = "pretrain") -> dict:
    named = [] if any(a.startswith(("name=", "task=")) for a in args) else ["++name=test"]
    return plain(compose(verb, [*cli._rewritten(verb, args), *named]))


def faults(*args: str) -> str:
    with pytest.raises(RequestError) as error:
        check(composed(*args))
    return str(error.value)


REFUSED = [("device", "deepspeed")]


def every_choice() -> list[tuple[str, str]]:
    groups = [group for group in cli.GROUPS if group not in ("task", "evaluators", "hparams_search")]
    found = [(g, p.stem) for g in groups for p in sorted((CONF / g).glob("[!_]*.yaml"))]
    return [choice for choice in found if choice not in REFUSED]


@pytest.mark.parametrize(("group", "choice"), every_choice())
def test_every_choice_of_every_group_passes(group: str, choice: str) -> None:
    args = [f"{group}={choice}"]
    args += {
        "folder": ["data.root=/x"],
        "text": ["data.root=/x"],
        "table": ["data.root=/x"],
        "hub": ["data.name=x"],
        "interactions": ["data.file=/x", "evaluators=ranking", "objective=clm", "views=ids", "backbone=encoder_ids"],
        "movielens_100k": ["evaluators=ranking", "objective=clm", "views=ids", "backbone=encoder_ids"],
        "pairs": ["data.root=/x", "data.first.column=a", "data.second.column=b"],
        **{each: ["data.root=/x"] for each in ("memmap", "parquet", "shards", "tar", "tar_audio")},
        "text_pairs": ["data.root=/x", "data.tokenizer=/y", "evaluators=similarity"],
        "timm": ["backbone.name=resnet18"],
        "hf": ["backbone.name=bert"],
        "hf_speech": ["backbone.name=wav2vec2"],
        "hf_vision": ["backbone.name=videomae"],
        "audio": ["data.root=/x"],
        "video": ["data.root=/x"],
        "multi-node": ["device.num_nodes=2"],
    }.get(choice, [])
    if (group, choice) == ("data", "series"):  # views are called so too
        args.append("data.root=/x")
    if group == "views":
        args.append("objective=supervised")
    if group == "objective":
        cls = get_class(yaml.safe_load((CONF / group / f"{choice}.yaml").read_text())["_target_"])
        args += ["views=plain"] if cls.views in (None, 1) else []  # type: ignore[attr-defined]
        wanted = typing.get_type_hints(cls.__init__)["backbone"]  # type: ignore[misc]
        args += ["backbone=encoder"] if wanted is TokenBackbone else []
        args += ["backbone=encoder_frames"] if wanted is FrameBackbone else []
        args += ["backbone=towers_image_text", "views=image_text"] if wanted is Towers else []
    check(composed(*args))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["sed=1"], ["sed: no such key; did you mean 'seed'?"]),
        (["epochs=3"], ["epochs: no such key; say duration=60ep"]),
        (
            ["objective.temprature=0.2"],
            ["objective.temprature: SimCLR takes no such argument; did you mean 'temperature'?"],
        ),
        (["objective.temperature=warm"], ["objective.temperature: must be a number, got 'warm'"]),
        (["optim.lr=abc", "optim.lrr=1"], ["optim.lr: must be a number", "optim.lrr: ", "did you mean 'lr'"]),
        (["seed=1.5"], ["seed: must be a"]),
        (["batch_size=0"], ["batch_size: must be greater than 0"]),
        (["batch_size='64'"], ["batch_size: must be a"]),
        (["duration=soon"], ["duration: 'soon' is no duration; write '60 epochs'"]),
        (["schedule.warmup=10"], ["schedule.warmup: must be a string"]),
        (["clip=-1"], ["clip: must be greater than 0"]),
        (["precision.mode=bf16"], ["precision.mode: must be 'auto', '32'"]),
        (["device.accelerator=gpuu"], ["device.accelerator: ", "did you mean 'gpu'"]),
        (["objective.backbone=x"], ["objective.backbone: is handed over by the runner"]),
        (["data=folder"], ["data.root: must be given"]),
        (["backbone=timm"], ["backbone.name: must be given"]),
        (["views.branches.both.copies=3"], ["views: SimCLR needs 2 views, and these are 3"]),
        (
            ["views.branches.both.transforms.crop.scale=[0.2,big]"],
            ["views.branches.both.transforms.crop.scale[1]: must be a number"],
        ),
        (["views.fit._target_=ssl_runner.views.Normalize"], ["views.fit: Normalize is no Sizer"]),
        (["objective._target_=ssl_runner.objectives.simclr.SimCLRR"], ["objective._target_: can't import"]),
        (["objective._target_=no.such.module.X"], ["objective._target_: can't import 'no.such.module.X'"]),
        (["batch_size=100", "accumulate=3"], ["batch_size: 100 does not divide"]),
        (["precision=16-mixed", "device=cpu"], ["precision.mode: 16-mixed needs a GPU"]),
        (["backbone._target_=torch.nn.Linear"], ["backbone"]),
        (["precision=fp8", "device=cpu"], ["precision.mode: fp8 needs a GPU from compute capability 8.9 on"]),
        (["device=deepspeed"], ["device.strategy: deepspeed writes a checkpoint as a folder of pickles"]),
        (["device=fsdp", "precision=16-mixed"], ["precision.mode: fsdp would scale the loss of each rank by itself"]),
        (["device=fsdp", "precision=bf16-true"], ["precision.mode: fsdp cuts weights of one kind only"]),
        (["device=fsdp", "engine.compile=true"], ["engine.compile: does not go with fsdp"]),
        (["device=tpu", "device.strategy=ddp"], ["device.strategy: ddp is not for TPUs"]),
        (["device=tpu", "precision=bf16-mixed"], ["precision.mode: TPUs compute in bf16-true or 32"]),
        (["device=tpu", "engine.compile=true"], ["engine.compile: torch_xla compiles for TPUs by itself"]),
        (["engine.find_lr=true", "device=ddp"], ["engine.find_lr: tries on one device", "then give optim.lr"]),
        (["engine.find_accumulate=true", "device=cpu"], ["engine.find_accumulate: goes by the error of a GPU"]),
        (
            ["engine.average=1.5", "engine.averaged=1"],
            ["engine.average: must be less than 1", "engine.averaged: Engine"],
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_fault_is_said_with_its_path_and_the_nearest_name(args: list[str], words: list[str]) -> None:
    told = faults(*args)
    for word in words:
        assert word in told


def test_all_faults_are_said_at_once() -> None:
    told = faults("sed=1", "objective.temprature=2", "optim.lr=abc", "backbone.nam=x", "duration=soon")
    assert told.startswith("5 faults in the composed config:")


def test_finetuning_takes_an_objective_that_can_be_scored() -> None:
    given = ["from=null", "data=digits", "views=grey", "backbone=encoder"]
    check(composed(*given, verb="finetune"))
    with pytest.raises(RequestError, match="objective: SimCLR makes no predictions to score; supervised"):
        check(composed(*given, "objective=simclr", verb="finetune"))


def test_a_fact_may_be_left_out_and_is_filled_from_the_data() -> None:
    node = {"_target_": "ssl_runner.views.Views", "last": [{"n": {"_target_": "ssl_runner.views.Normalize"}}]}
    node["_target_"] = "ssl_runner.views.base.Views"
    filled = fill(node, {"mean": (0.5,), "std": (0.2,), "size": 8})
    assert filled["last"][0]["n"] == {"_target_": "ssl_runner.views.Normalize", "mean": [0.5], "std": [0.2]}
    stated = fill({"_target_": "ssl_runner.views.Normalize", "mean": [0.1], "std": [1.0]}, {"mean": (0.5,)})
    assert stated["mean"] == [0.1]


def test_check_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from tests.test_config import *\n"
        "with initialize_config_module('ssl_runner.conf', version_base='1.3'):\n"
        "    check(composed('task=simclr'))\n"
        "heavy = {'pytorch_lightning', 'timm', 'transformers', 'torchvision', 'torchmetrics', 'sklearn', 'PIL'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    root = Path(__file__).parent.parent
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@given(
    st.recursive(
        st.none() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(min_size=1), x),
    )
)
def test_any_value_anywhere_is_accepted_or_refused_in_words(value: object) -> None:
    found = dict(BASE)
    found["objective"] = {**found["objective"], "temperature": value}
    found["duration"] = value
    try:
        check(found)
    except RequestError as error:
        assert "objective.temperature" in str(error) or "duration" in str(error)


with initialize_config_module("ssl_runner.conf", version_base="1.3"):
    BASE = composed()


@pytest.mark.parametrize(
    ("typed", "taken"),
    [
        ("task=simclr", "+task=simclr"),
        ("+task=simclr", "+task=simclr"),
        ("seed=1,2", "++seed=1,2"),
        ("optim=sgd", "optim=sgd"),
        ("+optim=sgd", "optim=sgd"),
        ("optim.lr=0.1", "++optim.lr=0.1"),
        ("++optim.lr=0.1", "++optim.lr=0.1"),
        ("hydra.run.dir=x", "hydra.run.dir=x"),
        ("hydra/launcher=joblib", "hydra/launcher=joblib"),
        ("finetune.optim=sgd", "++finetune.optim._name_=sgd"),
        ("finetune.optim.lr=0.1", "++finetune.optim.lr=0.1"),
        ("~views.branches.both.transforms.blur", "~views.branches.both.transforms.blur"),
        ("-m", "-m"),
    ],
)
def test_what_a_person_types_becomes_what_hydra_takes(typed: str, taken: str) -> None:
    assert cli._rewritten("pretrain", [typed]) == [taken]
    assert cli._rewritten("pretrain", [taken]) == [taken]  # another rank is started with the rewritten words


def test_the_finetune_mapping_becomes_overrides() -> None:
    mapping = {"optim": {"lr": 0.1, "_name_": "sgd"}, "duration": "20 epochs", "clip": None}
    assert overrides(mapping, "x") == ["optim=sgd", "++optim.lr=0.1", '++duration="20 epochs"', "++clip=null"]


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.text(st.characters(codec="ascii", exclude_characters="$\n\t\r"), min_size=1).filter(str.isprintable),
        lambda x: st.lists(x, max_size=3),
    )
)
def test_quoted_values_survive_hydras_grammar(value: object) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_override(f"++x={quoted(value)}").value()

    def text(each: object) -> object:
        return [text(e) for e in each] if isinstance(each, list) else getattr(each, "text", each)

    assert text(parsed) == value


def test_the_skeleton_and_the_defaults_name_the_same_keys() -> None:
    assert set(config.Config.__dataclass_fields__) == set(BASE)


def test_task_files_repeat_no_paper_constant(ssl_run: Callable[..., tuple[int, str, str]]) -> None:
    for path in (CONF / "objective").glob("*.yaml"):
        found = yaml.safe_load(path.read_text())
        models = {key for key, value in found.items() if isinstance(value, dict) and "_target_" in value}
        assert set(found) - models == {"_target_", "_partial_"}, path
