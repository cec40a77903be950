"""Batched augmentations. Each is one nn.Module over a whole batch, with parameters drawn per sample."""
