"""One space for both inputs of pairs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ssl_runner.backbones.towers import Towers
from ssl_runner.types import Matching, View


class Space(Matching):
    """What objectives on two towers share: a linear map of each tower's embedding into a space of `dim` values, where
    rows have unit length, in fp32."""

    views = 2
    contrasts = True

    def __init__(self, backbone: Towers, dim: int):
        super().__init__()
        self.backbone: Towers = backbone
        self.first_map = nn.Linear(backbone.dim, dim, bias=False)
        self.second_map = nn.Linear(backbone.second.dim, dim, bias=False)

    def first(self, view: View) -> Tensor:
        return F.normalize(self.first_map(self.backbone(**view)).float(), dim=1)

    def second(self, view: View) -> Tensor:
        return F.normalize(self.second_map(self.backbone.other(**view)).float(), dim=1)
