"""ssl-runner: pretrain, finetune and evaluate self-supervised models from the command line."""

__version__ = "0.1.0"
