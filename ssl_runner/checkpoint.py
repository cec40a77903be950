"""Weights and training state on disk: replaced atomically, loaded strictly, never unpickled as code."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_runner import runs
from ssl_runner.errors import RequestError

AVERAGED = "/"
"""Stands for the dots in the names of averaged weights, which are buffers of the learner's `average`."""


def save_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Written beside the target, brought to the disk, then renamed: see ssl_runner.runs.replacing."""
    with runs.replacing(path) as file:
        torch.save(dict(content), file)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A .ckpt as plain tensors and containers. Raises RequestError naming it if it is corrupt or would run code, and
    where it would take more memory than it has bytes."""
    try:
        _as_large_as_it_says(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RequestError(f"{path}: no such checkpoint") from None
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "Unsupported" in line or "GLOBAL" in line), "")
        raise RequestError(
            f"{path}: is corrupt, or holds more than tensors and plain values; nothing of it was run. {reason}".strip()
        ) from None
    except Exception as error:  # random bytes make torch's reader fail in any way; all of them mean this
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise RequestError(f"{path}: can't be read as a checkpoint ({reason})") from None
    if not isinstance(content, dict):
        raise RequestError(f"{path}: no checkpoint, for it holds a {type(content).__name__}")
    return content


def _as_large_as_it_says(path: Path) -> None:
    """Raises ValueError for an archive that unpacks to more than it is. torch.save packs nothing, and torch.load would
    unpack; what it reads of the format before 2020 is allocated by what the file claims."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(each.compress_type != zipfile.ZIP_STORED for each in members):
        raise ValueError("it is compressed, as no checkpoint is")
    if sum(each.file_size for each in members) > path.stat().st_size:
        raise ValueError("its parts are larger than the file")


def save_backbone(backbone: nn.Module, path: Path, config: Mapping[str, Any]) -> None:
    """backbone.safetensors: the weights, with the run's whole config as metadata."""
    from safetensors.torch import save

    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in backbone.state_dict().items()}
    content = save(tensors, metadata={"config": json.dumps(config), "format": "pt"})
    with runs.replacing(path) as file:
        file.write(content)


def read_backbone(path: Path) -> dict[str, Tensor]:
    """A backbone's state_dict, from a .safetensors or out of a .ckpt."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(str(path))
        except (SafetensorError, OSError) as error:
            raise RequestError(f"{path}: can't be read as safetensors ({error})") from None
    state = load_checkpoint(path).get("state_dict")
    if not isinstance(state, dict):
        raise RequestError(f"{path}: holds no state_dict")
    prefix = "backbone."
    return {k.removeprefix(prefix): v for k, v in objective_weights(state).items() if k.startswith(prefix)}


def objective_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An objective's state_dict out of its learner's: with averaged weights in place of the last ones, where there are
    some. They are what is evaluated and kept."""
    found = {k.removeprefix("objective."): v for k, v in state.items() if k.startswith("objective.")}
    averaged = {k.removeprefix("average."): v for k, v in state.items() if k.startswith("average.")}
    # a weight may have several names
    instead = {found[k.replace(AVERAGED, ".")].data_ptr(): value for k, value in averaged.items()}
    return {name: instead.get(value.data_ptr(), value) for name, value in found.items()}


@dataclass(frozen=True)
class Receipt:
    """What loading did: names in the model and in the file, and the share of parameters that were filled."""

    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    misshapen: list[str]
    percent: float

    def __str__(self) -> str:
        lines = [f"{len(self.matched)} tensors matched ({self.percent:.1f}% of the backbone's parameters)"]
        for kind, names in (
            ("missing in the file", self.missing),
            ("unexpected in the file", self.unexpected),
            ("of another shape", self.misshapen),
        ):
            if names:
                lines.append(f"{len(names)} {kind}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}")
        return "; ".join(lines)


def load_backbone(backbone: nn.Module, path: Path) -> Receipt:
    """Fills a backbone strictly. Raises RequestError with the receipt when anything does not fit."""
    state, own = read_backbone(path), backbone.state_dict()
    misshapen = [
        f"{k} {tuple(state[k].shape)} for {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    matched = [k for k in own if k in state and state[k].shape == own[k].shape]
    parameters = {k: p.numel() for k, p in backbone.named_parameters()}
    filled = sum(n for k, n in parameters.items() if k in set(matched))
    receipt = Receipt(
        matched=matched,
        missing=[k for k in own if k not in state],
        unexpected=[k for k in state if k not in own],
        misshapen=misshapen,
        percent=100 * filled / max(1, sum(parameters.values())),
    )
    if receipt.missing or receipt.unexpected or receipt.misshapen:
        what = "nothing of it fits this backbone" if not matched else "does not fit this backbone"
        raise RequestError(f"{path}: {what}. {receipt}")
    backbone.load_state_dict(state)
    return receipt
