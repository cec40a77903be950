"""What pretexts share whose question has a few answers: by how much was it turned, in which order, on which side?"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ssl_runner.types import Loss


def choice_loss(logits: Tensor, answer: Tensor) -> Loss:
    """(B, K) scores of the answers and the (B,) right ones -> the mean cross-entropy, in fp32.

    The log is "accuracy", the share of the batch whose highest score is the right answer's.
    """
    logits = logits.float()
    accuracy = (logits.detach().argmax(1) == answer).float().mean()
    return Loss(F.cross_entropy(logits, answer), {"accuracy": accuracy})
