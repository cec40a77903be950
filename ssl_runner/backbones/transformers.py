"""Any text model of transformers (https://github.com/huggingface/transformers), token by token, on ids.

Its code is the library's and its weights are safetensors. Code that comes with a model, and pickles, are never loaded.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor, nn

from ssl_runner.checkpoint import Receipt
from ssl_runner.errors import RequestError, RunError, nearest
from ssl_runner.parts.attention import visible
from ssl_runner.parts.pooling import mean_token
from ssl_runner.types import TokenBackbone

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
FAILURES = (ValueError, RuntimeError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError)
"""By what the library says that sizes of a model do not go together, for it has no error of its own."""


class Transformers(TokenBackbone):
    """An encoder, a decoder, or the encoder of a pair, without any head: (B, L) ids -> (B, dim), and each step between.

    name: an architecture as transformers names it (bert, gpt2, t5), a folder with config.json and model.safetensors,
    or a model of the hub. vocab: ids are 0 .. vocab - 1; a new model gets an embedding for each, one with weights must
    have as many. length: the most ids in a sample. pretrained: start from the folder's or the hub's weights.
    pool: the embedding is the mean over the tokens that are not padding, or the first of these.
    config: fields of the architecture's config that differ from its defaults, or from config.json. With model_type
    among them nothing else is asked what the architecture is: so a run keeps it, and needs neither folder nor hub.

    causal: whether a token sees only those before it, whatever `encode` is asked. So it is with decoders: they learn by
    what follows. Dropout is as the config has it, which is 0.1 in most. Padding is told by `pad` alone: no id is
    special here, and a new model's pad_token_id, which some count positions from, is 0 unless config says otherwise.

    Raises RequestError for a name, field or size that can't be, for weights that do not fit, and for a model that is
    not of text; RunError when the hub does not answer.
    """

    def __init__(
        self,
        *,
        name: str,
        vocab: Annotated[int, Gt(1)],
        length: Annotated[int, Gt(0)],
        pretrained: bool = False,
        pool: Literal["mean", "first"] = "mean",
        config: dict[str, Any] | None = None,
    ):
        super().__init__()
        need_library()
        self.name, self.vocab, self.length, self.pool = name, vocab, length, pool
        with silence():
            described = described_by(name, config or {}, {} if pretrained else {"vocab_size": vocab, "pad_token_id": 0})
            self.model, self.receipt = model_of(
                described, name, pretrained, {"input_ids", "inputs_embeds", "attention_mask"}
            )
        self.model.config.use_cache = False  # keys and values are never asked for again
        self._fields = own_fields(described)
        self._must_hold(vocab, length)
        table = self.model.get_input_embeddings()
        table.padding_idx = None  # of the library's: the id's embedding would learn nothing
        self.width = table.weight.shape[1]
        self._try()
        if self.causal and pool == "first":
            raise RequestError(f"backbone.pool=first: the first token of {name} sees no other; use backbone.pool=mean")

    def patchify(self, x: Tensor) -> Tensor:
        """(B, L) ids, as they are."""
        return x

    def unpatchify(self, patches: Tensor) -> Tensor:
        """(B, L) ids, as they are."""
        return patches

    def embed(self, patches: Tensor) -> Tensor:
        """(B, L) ids -> (B, L, dim): their embeddings, WITHOUT positions, which the model adds in `encode`. Where these
        are narrower than the model (ALBERT, ELECTRA), zeros follow, which `encode` leaves out.

        Raises RequestError when L exceeds `length`.
        """
        if patches.shape[1] > self.length:
            raise RequestError(
                f"backbone.length={self.length}: got a sample of {patches.shape[1]} ids; raise it or cut samples"
            )
        return F.pad(self.model.get_input_embeddings()(patches), (0, self.dim - self.width))

    def encode(
        self, tokens: Tensor, pad: Tensor | None = None, causal: bool = False, part: Tensor | None = None
    ) -> Tensor:
        """(B, L, dim) -> (B, L, dim), positions added. What sees what: see ssl_runner.parts.attention.visible.

        Raises RequestError for a causal or part that this model's attention can't be told.
        """
        return self._run(tokens, pad, causal, part).last_hidden_state

    def layers(
        self, tokens: Tensor, pad: Tensor | None = None, causal: bool = False, part: Tensor | None = None
    ) -> Iterator[Tensor]:
        """(B, L, dim) -> the (B, L, dim) behind each block; the last is normalised where the model does so at its end.
        As `encode`."""
        found = self._run(tokens, pad, causal, part, output_hidden_states=True)
        yield from found.hidden_states[1:]

    def vocabulary(self) -> Tensor:
        """(V, width): V may exceed `vocab`, and width is not dim where embeddings are narrower than the model."""
        return self.model.get_input_embeddings().weight

    def forward(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
        """(B, L) ids -> (B, dim). pad: (B, L), True at padding."""
        tokens = self.tokens(x, pad)
        if self.pool == "mean":
            return mean_token(tokens, pad)
        first = 0 if pad is None else pad.long().argmin(1)
        return tokens[torch.arange(len(x), device=x.device), first]

    @property
    def blocks(self) -> nn.ModuleList | None:
        """The model's layers, by which a learning rate may decay; None where they are not one row."""
        return blocks_of(self.model)

    @property
    def advice(self) -> str | None:
        """What loading the weights did; None for a new model."""
        return None if self.receipt is None else f"{self.name}: {self.receipt}"

    def pinned(self) -> dict[str, Any]:
        """The whole of the architecture, for a run to keep: folder, hub and the library's defaults may change."""
        return {"config": self._fields}

    def _must_hold(self, vocab: int, length: int) -> None:
        """Raises RequestError for a model with fewer ids or positions than the data may have."""
        ids, most = len(self.model.get_input_embeddings().weight), _positions(self.model)
        if ids < vocab:
            raise RequestError(
                f"backbone.name: {self.name} has embeddings of {ids} ids, and the data has {vocab}; give "
                "data.tokenizer the model's own tokenizer.json, or a smaller data.vocab_size"
            )
        if most is not None and most < length:
            field = self.model.config.attribute_map.get("max_position_embeddings", "max_position_embeddings")
            raise RequestError(
                f"backbone.name: {self.name} has positions for {most} ids, and samples have {length}; set "
                f"data.length to {most} or less, or, without weights, backbone.config.{field}"
            )

    @torch.no_grad()
    def _try(self) -> None:
        """Finds dim, whether the model is causal by itself, and which masks it heeds: of who sees whom (`masked`), of
        padding (`padded`). Four tokens are passed, and some of them changed: no two architectures say these alike."""
        count = min(self.length, 4)
        one = torch.arange(count * self.width, dtype=torch.float32).sin().view(1, count, -1).to(self.vocabulary())
        last, first = one.clone(), one.clone()
        last[:, -1], first[:, 0] = one[:, -1].cos(), one[:, 0].cos()
        self.model.eval()
        try:
            made, changed = (self.model(inputs_embeds=x).last_hidden_state for x in (one, last))
        except FAILURES as error:
            raise RequestError(f"backbone.config: {self.name} can't be run on {count} ids: {error}") from error
        self.dim, self.causal = made.shape[-1], count > 1 and torch.equal(made[:, 0], changed[:, 0])
        if self.dim < self.width:
            raise RequestError(
                f"backbone.config: embeddings of {self.name} are {self.width} wide, and the model {self.dim}; set "
                f"backbone.config.embedding_size to {self.dim} or less"
            )

        def same(mask: Any, other: Tensor, place: int) -> bool:
            try:
                found = [self.model(inputs_embeds=x, attention_mask=mask).last_hidden_state for x in (one, other)]
            except FAILURES:  # made for masks of another form
                return False
            return torch.equal(found[0][:, place], found[1][:, place])

        halves = visible(one, None, False, torch.arange(count)[None].to(one.device) * 2 // count)
        apart = self._told(cast(Tensor, halves), one)
        self.masked = same(apart, last, 0) and same(apart, first, -1)
        self.padded = self.masked or same((torch.arange(count) > 0).long()[None].to(one.device), first, -1)
        self.model.train()

    def _run(self, tokens: Tensor, pad: Tensor | None, causal: bool, part: Tensor | None, **how: bool) -> Any:
        mask: Any = None
        if self.masked and (pad is not None or part is not None or causal > self.causal):
            mask = self._told(cast(Tensor, visible(tokens, pad, causal or self.causal, part)), tokens)
        elif part is not None or causal > self.causal:
            what = "keep documents in one sample apart" if part is not None else "hide what follows"
            raise RequestError(
                f"backbone.name: the attention of {self.name} can't {what}; use backbone=encoder_ids, or another model"
            )
        elif pad is not None:
            if not self.padded:
                raise RequestError(
                    f"backbone.name: {self.name} can't leave padding out; use backbone=encoder_ids, or another model"
                )
            mask = (~pad).long()
        return self.model(inputs_embeds=tokens[..., : self.width], attention_mask=mask, **how)

    def _told(self, seen: Tensor, tokens: Tensor) -> Tensor | dict[str, Tensor]:
        """(B, 1, L, L) bool -> the same as the model's attention takes it: of each kind of layer, where some or all see
        only what is near."""
        reach, kinds = (getattr(self.model.config, key, None) for key in ("sliding_window", "layer_types"))
        if reach is None or (kinds and "sliding_attention" not in kinds):
            return _additive(seen, tokens)
        place = torch.arange(tokens.shape[1], device=tokens.device)
        # the library counts the token itself where order is causal, and not where it isn't
        near = (place[:, None] - place).abs() < reach + (not self.causal)
        if not kinds:
            return _additive(seen & near, tokens)
        return {"full_attention": _additive(seen, tokens), "sliding_attention": _additive(seen & near, tokens)}


def _additive(seen: Tensor, tokens: Tensor) -> Tensor:
    """(B, 1, L, L) bool -> what is added to scores: every kind of attention in the library takes this form."""
    return torch.zeros_like(seen, dtype=tokens.dtype).masked_fill_(~seen, torch.finfo(tokens.dtype).min)


# -- which architecture ------------------------------------------------------------------------------------------


def described_by(name: str, config: Mapping[str, Any], usual: Mapping[str, Any]) -> Any:
    """transformers' config: what `name` says, and over it the fields that are given. usual: fields of a new model,
    where it has them, unless others are given."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    known = sorted(CONFIG_MAPPING)
    stated: dict[str, Any] = {}
    if "model_type" in config:
        kind = str(config["model_type"])
    elif name in known and not Path(name).is_dir():
        kind = name
    else:
        stated = _stated(name)
        kind = str(stated["model_type"])
    if kind not in known:
        raise RequestError(
            f"backbone.name: {name!r} is of architecture {kind!r}, which transformers does not know"
            f"{nearest(kind, known)}; code that comes with a model is not loaded"
        )
    cls = CONFIG_MAPPING[kind]
    own = {each.name for each in _fields(cls)}
    for field in config:
        if field not in own | {*cls.attribute_map, "model_type"}:
            raise RequestError(f"backbone.config.{field}: {kind} has no such field{nearest(field, own)}")
    try:
        # old spellings in a file are read by the library; only the fields of the architecture are kept
        file = cls(**stated) if stated else None
        found = {each.name: getattr(file, each.name) for each in _fields(cls)} if stated else {}
        given = {cls.attribute_map.get(key, key): value for key, value in config.items() if key != "model_type"}
        if "model_type" not in config:
            found |= {key: value for key, value in usual.items() if key in own}
        return cls(**{**found, **given})
    except Exception as error:  # the library checks fields by what errors it likes
        raise RequestError(f"backbone.config: {kind} can't be so: {' '.join(str(error).split())}") from error


def _fields(cls: Any) -> list[Any]:
    """The fields of an architecture's config, without those that all have: nothing in these makes the model another,
    and some name files and code to load."""
    from transformers import PretrainedConfig

    common = {each.name for each in fields(PretrainedConfig)} | {"use_cache"}
    return [each for each in fields(cls) if each.name not in common]


def own_fields(described: Any) -> dict[str, Any]:
    """A config as plain values."""
    plain = described.to_dict()
    found = {each.name: plain[each.name] for each in _fields(type(described)) if each.name in plain}
    return {"model_type": described.model_type, **json.loads(json.dumps(found))}


def _stated(name: str) -> dict[str, Any]:
    """config.json of a folder or of the hub."""
    path = _folder(name, [CONFIG]) / CONFIG
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(f"backbone.name: {name!r} holds no {CONFIG}") from None
    except (OSError, ValueError) as error:
        raise RequestError(f"backbone.name: {str(path)!r} can't be read: {error}") from error
    if not isinstance(found, dict) or "model_type" not in found:
        raise RequestError(f"backbone.name: {str(path)!r} names no model_type")
    return found


def _folder(name: str, files: list[str]) -> Path:
    """Where a model's files are: its own folder, or the hub's cache, which gets those of the files that it lacks."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=files))
    except (HFValidationError, RepositoryNotFoundError) as error:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        raise RequestError(
            f"backbone.name: {name!r} is no architecture, folder or model of the hub{nearest(name, CONFIG_MAPPING)}"
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise RunError(
            f"backbone.name: {name!r} is no folder or architecture, and the hub could not be asked for it: {error} "
            "Connect to the network once, or name a folder"
        ) from error


# -- the model ---------------------------------------------------------------------------------------------------


def model_of(described: Any, name: str, pretrained: bool, inputs: set[str]) -> tuple[Any, Receipt | None]:
    """The bare model in fp32, with or without weights: of a pair, the encoder. inputs: what it must take.

    Raises RequestError for a model of other inputs.
    """
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    kind: Any = MODEL_MAPPING.get(type(described), None)
    kind = kind[0] if isinstance(kind, tuple) else kind
    asked = set() if kind is None else set(inspect.signature(kind.forward).parameters)
    takes = inputs <= asked and kind.main_input_name in inputs
    # of several models with a config each, what is asked for in these goes past the checks of the fields
    if not takes or described.sub_configs:
        kinds = {"input_ids": "ids", "input_values": "waveforms", "pixel_values": "pictures or clips"}
        what = next(told for name, told in kinds.items() if name in inputs)
        raise RequestError(
            f"backbone.name: {name} ({described.model_type}) is no model of {what} that can be taken apart"
        )
    # what pools the first token has no part in any token
    extra = {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(kind).parameters else {}
    described._attn_implementation = "sdpa" if kind._supports_sdpa else "eager"
    receipt = None
    try:
        if pretrained:
            model, receipt = _filled(kind, described, name, extra)
        else:
            model = kind(described, **extra)
    except FAILURES as error:
        raise RequestError(f"backbone.config: {described.model_type} can't be built so: {error}") from error
    return (model.get_encoder() if described.is_encoder_decoder else model), receipt


def _filled(kind: Any, described: Any, name: str, extra: Mapping[str, Any]) -> tuple[Any, Receipt]:
    """A model with the weights of a folder or of the hub, by the names that the library gives them.

    Raises RequestError with the receipt where the model lacks any. What the file has beyond it, such as heads, is told.
    """
    model, told = kind.from_pretrained(
        None,
        config=described,
        state_dict=_weights(name),
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **extra,
    )
    missing = sorted(told["missing_keys"])
    misshapen = {key: f"{key} {tuple(theirs)} for {tuple(ours)}" for key, theirs, ours in told["mismatched_keys"]}
    parameters = {key: value.numel() for key, value in model.named_parameters()}
    matched = [key for key in model.state_dict() if key not in misshapen and key not in told["missing_keys"]]
    receipt = Receipt(
        matched=matched,
        missing=[key for key in missing if key not in misshapen],
        unexpected=sorted(told["unexpected_keys"]),
        misshapen=sorted(misshapen.values()),
        percent=100 * sum(parameters.get(key, 0) for key in matched) / max(1, sum(parameters.values())),
    )
    if receipt.missing or receipt.misshapen:
        raise RequestError(f"backbone.pretrained: the weights of {name} do not fit its architecture. {receipt}")
    return model, receipt


def _weights(name: str) -> dict[str, Tensor]:
    """The tensors of model.safetensors, or of the files that its index names."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = _folder(name, [CONFIG, WEIGHTS, INDEX, "model-*.safetensors"])
    files = [WEIGHTS]
    try:
        if not (folder / WEIGHTS).is_file() and (folder / INDEX).is_file():
            named = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
            files = sorted({Path(str(each)).name for each in named.values()})
        lacking = [file for file in files if not (folder / file).is_file()]
        if lacking:
            raise RequestError(
                f"backbone.pretrained: {name} holds no {lacking[0]}; weights are read from safetensors alone, "
                "for other files may run code"
            )
        found: dict[str, Tensor] = {}
        for file in files:
            found |= load_file(str(folder / file))
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
        raise RequestError(
            f"backbone.pretrained: the weights of {name} can't be read as safetensors ({error})"
        ) from error
    return found


def _positions(model: Any) -> int | None:
    """The most ids that the model has positions for; None where it has no such limit."""
    found = [getattr(model.config, "max_position_embeddings", None)]
    for path, part in model.named_modules():
        if isinstance(part, nn.Embedding) and part.padding_idx is not None and "position" in path:
            found.append(part.num_embeddings - part.padding_idx - 1)  # RoBERTa counts from behind this one
    return min((each for each in found if each is not None and each > 0), default=None)  # XLNet says -1: any number


def blocks_of(model: Any) -> nn.ModuleList | None:
    """A model's layers; None where they are not one row."""
    count = getattr(model.config, "num_hidden_layers", None)
    rows = (m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count)
    return next(rows, None)


@contextmanager
def silence() -> Iterator[None]:
    """The library prints bars and a report of its own while it loads; a receipt tells the same."""
    from transformers.utils import logging as told

    level, bars = told.get_verbosity(), told.is_progress_bar_enabled()
    told.set_verbosity_error()
    told.disable_progress_bar()
    try:
        yield
    finally:
        told.set_verbosity(level)
        if bars:
            told.enable_progress_bar()


def need_library() -> None:
    try:
        import transformers
    except ImportError as error:
        raise RequestError("backbone: needs the package transformers; run `pip install 'ssl-runner[text]'`") from error
    if cast(str, transformers.__version__).partition(".")[0] < "5":
        raise RequestError(
            f"backbone: transformers {transformers.__version__} describes models otherwise; run "
            "`pip install 'transformers>=5'`"
        )
