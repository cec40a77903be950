"""Weights and training state on disk: replaced atomically, loaded strictly, never unpickled as code."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_runner.errors import RequestError


def save_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Writes beside the target, then renames: whoever is killed here leaves the old file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A .ckpt as plain tensors and containers. Raises RequestError naming it if it is corrupt or would run code."""
    try:
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


def save_backbone(backbone: nn.Module, path: Path, config: Mapping[str, Any]) -> None:
    """backbone.safetensors: the weights, with the run's whole config as metadata."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in backbone.state_dict().items()}
    try:
        save_file(tensors, str(temporary), metadata={"config": json.dumps(config), "format": "pt"})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
    prefix = "objective.backbone."
    if not isinstance(state, dict):
        raise RequestError(f"{path}: holds no state_dict")
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


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
