"""Scores of frozen features. An evaluator knows nothing of training: it sees features and labels, no more."""
