"""Models of transformers as backbones: the library's own outputs by our steps; what is read of a folder, what not."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssl_runner.backbones.transformers import Transformers
from ssl_runner.errors import RequestError
from ssl_runner.objectives import barlow_twins, byol, clm, data2vec, electra, mlm, simclr
from ssl_runner.optim.rules import heights
from ssl_runner.types import Batch, Objective

VOCAB, LENGTH, PAD, END, MASK = 23, 12, 0, 1, 2
SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
OF_BERT = {**SIZE, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 20}
OF_GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
OF_LLAMA = {**SIZE, "num_key_value_heads": 1}
KINDS: dict[str, dict[str, Any]] = {
    "bert": OF_BERT,
    "roberta": OF_BERT,
    "electra": {**OF_BERT, "embedding_size": 8},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "dropout": 0.0, "attention_dropout": 0.0},
    "modernbert": {**SIZE, "local_attention": 6},  # a window of 3 ids to each side
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0},
    "gpt2": OF_GPT2,
    "llama": OF_LLAMA,
    "mistral": {**OF_LLAMA, "sliding_window": 4},
    "gemma2": {**OF_LLAMA, "head_dim": 8, "sliding_window": 4},
}
SINGLE = {**OF_LLAMA, "head_dim": 8, "vocab_size": 30}
PAIR = {"encoder": SINGLE, "decoder": SINGLE, "vocab_size": 30}  # two models, with a config each
CAUSAL = ("gpt2", "llama", "mistral", "gemma2")
kinds = pytest.mark.parametrize("kind", KINDS)


def made(kind: str, **given: Any) -> Transformers:
    torch.manual_seed(0)
    return Transformers(**{"name": kind, "vocab": VOCAB, "length": LENGTH, "config": KINDS.get(kind), **given}).eval()


def strong(kind: str) -> Transformers:
    """With weights of a size that most new models do not have, in which hardly anything depends on who is seen."""
    backbone = made(kind)
    for value in backbone.parameters():
        if value.ndim == 2 and value.std() < 0.1:
            value.data.mul_(20)
    return backbone


def sample(n: int = 5) -> tuple[Tensor, Tensor]:
    """Ids, none of them special, and which are padding: more of it from row to row."""
    ids = torch.randint(3, VOCAB, (n, LENGTH), generator=torch.Generator().manual_seed(3))
    pad = torch.arange(LENGTH) >= LENGTH - 2 * torch.arange(n)[:, None]
    return ids.masked_fill(pad, PAD), pad


def encoded(backbone: Transformers, ids: Tensor, *given: Any, **named: Any) -> Tensor:
    return backbone.encode(backbone.embed(backbone.patchify(ids)), *given, **named)


# -- what comes out ----------------------------------------------------------------------------------------------


@kinds
@torch.no_grad()
def test_outputs_are_the_librarys_own(kind: str) -> None:
    """Called as it is meant to be, with ids and its own mask of padding, windows and all."""
    backbone = strong(kind)
    ids, pad = sample()
    ids = ids.masked_fill(ids == backbone.model.config.pad_token_id, 3).masked_fill(pad, PAD)
    whole = backbone.model(input_ids=ids.masked_fill(pad, 3)).last_hidden_state
    torch.testing.assert_close(encoded(backbone, ids.masked_fill(pad, 3)), whole, rtol=0, atol=1e-5)
    wanted = backbone.model(input_ids=ids, attention_mask=(~pad).long()).last_hidden_state
    found = encoded(backbone, ids, pad)
    torch.testing.assert_close(found[~pad], wanted[~pad], rtol=0, atol=1e-5)
    each = torch.stack([row[~out].mean(0) for row, out in zip(wanted, pad, strict=True)])
    torch.testing.assert_close(backbone(ids, pad), each, rtol=0, atol=1e-5)


@kinds
@torch.no_grad()
def test_layers_are_the_librarys_hidden_states(kind: str) -> None:
    backbone = strong(kind)
    ids, _ = sample()
    ids = ids.clamp(min=3)
    wanted = backbone.model(input_ids=ids, output_hidden_states=True).hidden_states[1:]
    found = list(backbone.layers(backbone.embed(ids)))
    assert len(found) == 2
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert [len(heights_of(backbone))] == [4 if backbone.blocks is not None else 0]


def heights_of(backbone: Transformers) -> set[int]:
    """Above the blocks, each of two blocks, and below them."""
    holder = torch.nn.Module()
    holder.backbone = backbone
    found = heights(holder)
    return {found.get(p, 0) for p in holder.parameters()} | {0}


@kinds
@torch.no_grad()
def test_what_sees_what(kind: str) -> None:
    backbone = strong(kind)
    assert backbone.causal == (kind in CAUSAL)
    ids, _ = sample(1)
    ids = ids.clamp(min=3)
    part = (torch.arange(LENGTH) >= 7).long()[None]
    early, late = ids.clone(), ids.clone()
    early[0, 0] = late[0, -1] = 22 if ids[0, 0] != 22 and ids[0, -1] != 22 else 21

    def differs(other: Tensor, **how: Any) -> list[bool]:
        pairs = zip(encoded(backbone, ids, **how)[0], encoded(backbone, other, **how)[0], strict=True)
        return [not torch.allclose(a, b, atol=1e-7) for a, b in pairs]

    assert differs(late, causal=True) == [False] * 11 + [True]
    assert not any(differs(early, part=part)[7:])
    assert not any(differs(late, part=part)[:7])
    assert differs(late)[-2] == (kind not in CAUSAL)
    assert differs(early)[1]
    pad = torch.zeros(1, LENGTH, dtype=torch.bool)
    pad[0, 0] = True
    assert not any(differs(early, pad=pad)[1:])


@kinds
@torch.no_grad()
def test_order_counts(kind: str) -> None:
    """`embed` knows no positions; `encode` adds them."""
    backbone = strong(kind)
    ids = torch.tensor([[7, 8] + [5] * 10, [8, 7] + [5] * 10])
    assert torch.equal(backbone.embed(ids)[0, :2], backbone.embed(ids)[1, :2].flip(0))
    one, other = encoded(backbone, ids)
    assert (one[2:] - other[2:]).abs().max() > 1e-5, "as sets, what these tokens see is the same"


@kinds
def test_a_sample_of_nothing_but_padding_stays_finite(kind: str) -> None:
    backbone = made(kind).train()
    ids, pad = sample()
    pad[-1] = True
    backbone(ids, pad).square().sum().backward()
    assert backbone(ids, pad).isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


def test_the_first_token_that_is_not_padding_may_stand_for_all() -> None:
    backbone = made("bert", pool="first")
    ids, pad = sample()
    pad[:, 0] = True
    torch.testing.assert_close(backbone(ids, pad)[:4], encoded(backbone, ids, pad)[:4, 1])
    assert torch.equal(backbone(ids), encoded(backbone, ids)[:, 0])
    with pytest.raises(RequestError, match=r"pool=first: the first token of gpt2 sees no other"):
        made("gpt2", pool="first")


@torch.no_grad()
def test_a_model_whose_attention_takes_no_mask_of_pairs_says_so() -> None:
    backbone = made("deberta-v2", config=OF_BERT)
    ids, pad = sample()
    pad[-1] = True
    assert encoded(backbone, ids, pad).isfinite().all()
    with pytest.raises(RequestError, match="the attention of deberta-v2 can't keep documents in one sample apart"):
        encoded(backbone, ids, pad, part=ids)
    with pytest.raises(RequestError, match="can't hide what follows"):
        encoded(backbone, ids, causal=True)


@torch.no_grad()
def test_a_model_that_does_not_heed_padding_says_so() -> None:
    backbone = made("rwkv", config={"hidden_size": 16, "num_hidden_layers": 2})
    ids, pad = sample()
    assert backbone(ids).isfinite().all()
    with pytest.raises(RequestError, match="rwkv can't leave padding out"):
        backbone(ids, pad)


def test_every_id_learns_the_one_that_the_library_calls_padding_too() -> None:
    backbone = made("bert").train()
    backbone(torch.arange(LENGTH)[None]).square().sum().backward()
    grad = backbone.vocabulary().grad
    assert grad is not None
    assert (grad.abs().sum(1) > 0).tolist() == [n < LENGTH for n in range(VOCAB)]


# -- objectives --------------------------------------------------------------------------------------------------

FACTS = {"vocab": VOCAB, "mask": MASK, "special": (PAD,), "separator": END}
SMALL: dict[str, Callable[[Transformers], Objective]] = {
    "mlm": lambda b: mlm.MLM(b, **FACTS),  # type: ignore[arg-type]
    "clm": lambda b: clm.CLM(b, separator=END),
    "electra": lambda b: electra.ELECTRA(b, generator=made("bert"), **FACTS),  # type: ignore[arg-type]
    "simclr": lambda b: simclr.SimCLR(b, hidden=8, dim=4),
    "byol": lambda b: byol.BYOL(b, hidden=8, dim=4),
    "barlow_twins": lambda b: barlow_twins.BarlowTwins(b, hidden=8, dim=4),
    "data2vec": lambda b: data2vec.Data2Vec(b),
}
PAIRS = [(o, k) for o in SMALL for k in ("bert", "gpt2", "electra") if not (o in ("mlm", "electra") and k == "gpt2")]
PAIRS = [pair for pair in PAIRS if pair != ("clm", "electra")]  # its embeddings are narrower than what it makes


def batch(objective: Objective, n: int = 6) -> Batch:
    ids, pad = sample(n)
    ids[:, 4] = END
    drawn = torch.Generator().manual_seed(1)
    views = []
    for _ in range(objective.views or 2):
        view = torch.where(torch.rand(ids.shape, generator=drawn) < 0.1, MASK, ids).masked_fill(pad, PAD)
        views.append({"x": view, "pad": pad})
    return {"views": views, "index": torch.arange(n)}


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_objectives_train_it_whole_and_lower_their_loss(name: str, kind: str) -> None:
    torch.manual_seed(1)
    objective = SMALL[name](made(kind)).train()

    def loss() -> Tensor:
        torch.manual_seed(2)
        return objective(batch(objective)).value

    loss().backward()
    learns = {n: p for n, p in objective.named_parameters() if p.requires_grad}
    assert [n for n, p in learns.items() if p.grad is None or not p.grad.isfinite().all()] == []
    assert all(p.grad is None for p in objective.parameters() if not p.requires_grad)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(loss().float(), loss_of(objective), rtol=0.1, atol=0.05)
    before, optimizer = loss().item(), torch.optim.AdamW(learns.values(), lr=3e-3, weight_decay=0.0)
    for _ in range(8):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < before


def test_embeddings_that_are_narrower_than_tokens_do_not_score_them() -> None:
    with pytest.raises(
        RequestError, match="scores ids by their embeddings, which are 8 wide in this backbone, and its"
    ):
        SMALL["clm"](made("electra"))


def loss_of(objective: Objective) -> Tensor:
    torch.manual_seed(2)
    with torch.autocast("cpu", enabled=False):
        return objective(batch(objective)).value


# -- from a config -----------------------------------------------------------------------------------------------


def refused(**given: Any) -> str:
    with pytest.raises(RequestError) as error:
        made(given.pop("kind", "bert"), **given)
    return str(error.value)


def test_a_new_model_takes_the_datas_vocabulary() -> None:
    assert made("roberta").vocabulary().shape == (VOCAB, 16)
    assert made("bert", config={**OF_BERT, "vocab_size": 40}).vocabulary().shape == (40, 16)
    said = refused(config={**OF_BERT, "vocab_size": 22})
    assert "has embeddings of 22 ids, and the data has 23" in said


@pytest.mark.parametrize(("kind", "field"), [("bert", "max_position_embeddings"), ("gpt2", "n_positions")])
def test_samples_may_be_no_longer_than_positions(kind: str, field: str) -> None:
    said = refused(kind=kind, length=21, config={**KINDS[kind], field: 20})
    assert "has positions for 20 ids, and samples have 21" in said
    assert f"backbone.config.{field}" in said
    backbone = made(kind, length=20, config={**KINDS[kind], field: 20})
    assert backbone(torch.ones(1, 20, dtype=torch.long)).isfinite().all()
    with pytest.raises(RequestError, match=r"backbone.length=20: got a sample of 21 ids"):
        backbone(torch.ones(1, 21, dtype=torch.long))


def test_roberta_counts_positions_from_behind_padding() -> None:
    assert made("roberta", length=19)(torch.ones(1, 19, dtype=torch.long)).isfinite().all()
    assert "has positions for 19 ids, and samples have 20" in refused(kind="roberta", length=20)
    assert "has positions for 16" in refused(kind="roberta", length=19, config={**OF_BERT, "pad_token_id": 3})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"name": "bret"}, ["backbone.name", "'bret' is no architecture", "did you mean 'bert'"]),
        ({"config": {"hiden_size": 8}}, ["backbone.config.hiden_size: bert has no such field", "'hidden_size'"]),
        ({"config": {"hidden_size": "wide"}}, ["backbone.config: bert can't be so", "hidden_size"]),
        ({"config": {"hidden_size": 10}}, ["backbone.config: bert can't be built so", "multiple"]),
        ({"name": "vit", "config": None}, ["backbone.name: vit", "is no model of ids"]),
        ({"name": "t5gemma", "config": PAIR}, ["backbone.name: t5gemma", "is no model of ids"]),
        ({"config": {"model_type": "brt"}}, ["architecture 'brt', which transformers does not know"]),
        ({"config": {"auto_map": {"AutoModel": "evil.Model"}}}, ["auto_map: bert has no such field"]),
        ({"config": {"quantization_config": {}}}, ["quantization_config: bert has no such field"]),
        ({"config": {"attn_implementation": "a/kernel"}}, ["attn_implementation: bert has no such field"]),
        ({"config": {"_attn_implementation": "a/kernel"}}, ["_attn_implementation: bert has no such field"]),
        ({"config": {"dtype": "float16"}}, ["dtype: bert has no such field"]),
        ({"kind": "albert", "config": SIZE}, ["embeddings of albert are 128 wide, and the model 16"]),
    ],
    ids=lambda given: str(given)[:40],
)
def test_what_can_not_be_is_told(given: dict[str, Any], words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str, **_: Any) -> str:
        from huggingface_hub.errors import HFValidationError

        raise HFValidationError(name)

    monkeypatch.setattr("huggingface_hub.snapshot_download", unknown)
    said = refused(**given)
    assert all(word in said for word in words), said


@settings(max_examples=15, derandomize=True)
@given(
    heads=st.integers(1, 3),
    each=st.sampled_from([2, 4, 6]),
    layers=st.integers(1, 3),
    length=st.integers(1, 9),
    kind=st.sampled_from(["bert", "gpt2"]),
)
def test_any_size_gives_its_shapes(heads: int, each: int, layers: int, length: int, kind: str) -> None:
    dim = heads * each
    names = ("hidden_size", "num_attention_heads", "num_hidden_layers")  # GPT-2 knows these too
    backbone = made(kind, length=length, config=dict(zip(names, (dim, heads, layers), strict=True)))
    ids = torch.randint(VOCAB, (2, length))
    assert backbone.dim == dim
    assert backbone(ids).shape == (2, dim)
    assert [tuple(each.shape) for each in backbone.layers(backbone.embed(ids))] == [(2, length, dim)] * layers


# -- from a folder -----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What save_pretrained writes, heads and all."""
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(5)
    BertForMaskedLM(BertConfig(vocab_size=30, **OF_BERT)).half().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def rewrite(folder: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def loaded(folder: Path, **given: Any) -> Transformers:
    return made(str(folder), pretrained=True, **given)


def test_a_folders_weights_are_loaded_in_fp32_and_a_receipt_tells(folder: Path) -> None:
    backbone, stored = loaded(folder), weights(folder)
    assert len(backbone.vocabulary()) == 30, "the model's own, which may be more than the data's"
    for key, value in backbone.model.state_dict().items():
        assert value.dtype == torch.float32, key
        assert torch.equal(value, stored[f"bert.{key}"].float()), key
    assert backbone.advice is not None
    assert f"{len(backbone.model.state_dict())} tensors matched (100.0% of" in backbone.advice
    assert "unexpected in the file: cls.predictions" in backbone.advice
    new = made(str(folder))
    assert new.advice is None
    assert new.vocabulary().shape == (VOCAB, 16)
    assert loaded(folder, config={"hidden_dropout_prob": 0.3}).model.embeddings.dropout.p == 0.3


def test_old_names_of_weights_are_known(folder: Path) -> None:
    expected = loaded(folder).state_dict()
    old = {k.replace("LayerNorm.weight", "LayerNorm.gamma"): v for k, v in weights(folder).items()}
    rewrite(folder, {k.replace("LayerNorm.bias", "LayerNorm.beta"): v for k, v in old.items()})
    for key, value in loaded(folder).state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_weights_in_several_files_are_read_by_their_index(folder: Path) -> None:
    expected, tensors = loaded(folder).state_dict(), weights(folder)
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for file, keys in files.items():
        save_file({k: tensors[k] for k in keys}, folder / file)
    index = {"weight_map": {k: file for file, keys in files.items() for k in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for key, value in loaded(folder).state_dict().items():
        assert torch.equal(value, expected[key]), key
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(RequestError, match=r"holds no .*model-00002-of-00002.safetensors"):
        loaded(folder)


def test_weights_that_do_not_fit_are_refused_with_the_receipt(folder: Path) -> None:
    tensors = weights(folder)
    wrong = dict(tensors)
    wrong["bert.encoder.layer.0.elsewhere"] = wrong.pop("bert.encoder.layer.0.output.dense.weight")
    rewrite(folder, wrong)
    with pytest.raises(RequestError, match=r"1 missing in the file: .*output.dense.weight") as error:
        loaded(folder)
    assert "elsewhere" in str(error.value)
    rewrite(folder, {**tensors, "bert.embeddings.LayerNorm.weight": torch.ones(17)})
    with pytest.raises(RequestError, match=r"1 of another shape: embeddings.LayerNorm.weight \(17,\) for \(16,\)"):
        loaded(folder)
    rewrite(folder, {"something.else": torch.ones(3)})
    with pytest.raises(RequestError, match=r"0 tensors matched \(0.0%"):
        loaded(folder)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "config.json").unlink(), "holds no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json' can't be read"),
        (lambda f: (f / "config.json").write_text("[]"), "names no model_type"),
        (lambda f: (f / "model.safetensors").write_bytes(b"no weights"), "can't be read as safetensors"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no .*model.safetensors; weights are read from saf"),
    ],
)
def test_a_broken_folder_is_told(folder: Path, spoil: Callable[[Path], Any], words: str) -> None:
    spoil(folder)
    with pytest.raises(RequestError, match=words):
        loaded(folder)


def test_a_folder_with_fewer_ids_or_positions_than_the_data_is_refused(folder: Path) -> None:
    with pytest.raises(RequestError, match=r"embeddings of 30 ids, and the data has 31; give data.tokenizer"):
        loaded(folder, vocab=31)
    with pytest.raises(RequestError, match=r"positions for 20 ids, and samples have 21; set data.length to 20"):
        loaded(folder, length=21)


class Evil:
    """A pickle that leaves a trace."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def test_a_strangers_folder_runs_nothing(folder: Path, tmp_path: Path) -> None:
    """Code beside the weights, pickles in place of them, and an index that names pickles."""
    trace = tmp_path / "ran"
    code = f"from pathlib import Path\nPath({str(trace)!r}).touch()\nclass Config: ...\nclass Model: ...\n"
    (folder / "evil.py").write_text(code)
    stated = json.loads((folder / "config.json").read_text())
    stated["auto_map"] = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    stated |= {"attn_implementation": "evil/kernel", "_attn_implementation": "evil/kernel"}
    stated |= {"quantization_config": {"quant_method": "evil"}, "transformers_weights": "evil.bin"}
    (folder / "config.json").write_text(json.dumps(stated))
    backbone = loaded(folder)
    assert type(backbone.model).__module__ == "transformers.models.bert.modeling_bert"
    assert backbone.model.config._attn_implementation == "sdpa"
    assert made(str(folder)).dim == 16
    (folder / "config.json").write_text(json.dumps({**stated, "model_type": "evil"}))
    with pytest.raises(RequestError, match="code that comes with a model is not loaded"):
        loaded(folder)

    (folder / "config.json").write_text(json.dumps(stated))
    (folder / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "evil.bin", "adapter_model.bin"):
        (folder / name).write_bytes(pickle.dumps(Evil(trace)))
    with pytest.raises(RequestError, match="read from safetensors alone"):
        loaded(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "evil.bin"}}))
    with pytest.raises(RequestError, match="can't be read as safetensors"):
        loaded(folder)
    assert not trace.exists()


def test_the_hub_is_asked_for_safetensors_alone_and_its_silence_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    backbone = made("someone/model", pretrained=True)
    assert torch.equal(backbone.vocabulary(), loaded(folder).vocabulary())
    assert {name for name, _ in asked} == {"someone/model"}
    assert all(
        p == "config.json" or p.endswith((".safetensors", ".safetensors.index.json")) for _, f in asked for p in f
    )

    def offline(name: str, allow_patterns: list[str]) -> str:
        raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(Exception, match="the hub could not be asked for it: no route") as error:
        made("someone/model", pretrained=True)
    assert type(error.value).__name__ == "RunError"


# -- runs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_pinned_builds_the_same_without_the_folder(kind: str) -> None:
    backbone = made(kind)
    pinned = yaml.safe_load(yaml.safe_dump(backbone.pinned()))
    again = made("/gone", **pinned)
    assert again.pinned() == pinned
    again.load_state_dict(copy.deepcopy(backbone.state_dict()))
    ids, pad = sample()
    assert torch.equal(again(ids, pad), backbone(ids, pad))


def test_a_run_needs_neither_folder_nor_hub_to_be_gone_on_with(ssl_run: Callable, folder: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    rows = [{"text": f"{'ab' if n % 2 else 'xy'} " * 9 + str(n), "label": "ab" if n % 2 else "xy"} for n in range(60)]
    (texts / "all.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    common = ["precision=32", "workers=0", "log_every=1", "evaluators=knn", "evaluators.knn.k=3"]
    data = ["data=text", "data.root=texts", "data.tokenizer=bytes", "data.length=16", "data.cache=cache"]
    small = ["duration=2 steps", "batch_size=4", "validate_every=2 steps"]
    model = ["backbone=hf", f"backbone.name={folder}", "objective=mlm", "views=ids", "++name=hf"]

    code, _, err = ssl_run("pretrain", *data, *model, "backbone.pretrained=true", *common, *small)
    assert code == 2
    assert "has embeddings of 30 ids, and the data has 259" in err

    from transformers import BertConfig, BertModel

    torch.manual_seed(5)
    BertModel(BertConfig(vocab_size=259, **OF_BERT)).save_pretrained(folder)
    code, out, err = ssl_run(
        "pretrain", *data, *model, "backbone.pretrained=true", *common, *small, "hydra.run.dir=run"
    )
    assert code == 0, err
    assert "tensors matched (100.0%" in out
    kept = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["backbone"]
    assert kept["config"]["model_type"] == "bert"
    assert kept["config"]["vocab_size"] == 259
    assert kept["vocab"] == 259

    shutil.rmtree(folder)
    code, _, err = ssl_run("evaluate", "from=run", *common, "batch_size=4")
    assert code == 0, err
    code, out, err = ssl_run("finetune", "from=run", "duration=2 steps", "batch_size=4", "precision=32", "log_every=1")
    assert code == 0, err
    assert "(100.0% of the backbone's parameters)" in out
