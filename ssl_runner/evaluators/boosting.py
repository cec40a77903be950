"""Boosted trees: the baseline that is hard to beat on tables."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from annotated_types import Gt

from ssl_runner.evaluators.regression import figures
from ssl_runner.evaluators.scores import classification, features
from ssl_runner.types import Embed, Evaluator


class Boosting(Evaluator):
    """Scores of the test part by scikit-learn's histogram gradient boosting, fitted to the train part.

    rounds: the most trees, for each class. learning_rate: of each.

    How many trees are used is chosen on the validation part, by accuracy or squared error, the fewer of equals. Its
    figure of the raw input is the one to hold features against: boosting on features themselves is seldom the best
    use of them. Gives ``classification``'s figures, or ``evaluators.regression.figures`` of values. Deterministic.
    """

    parts = ("val", "test")

    def __init__(self, *, rounds: Annotated[int, Gt(0)] = 100, learning_rate: Annotated[float, Gt(0)] = 0.1):
        self.rounds, self.learning_rate = rounds, learning_rate

    def __call__(self, embed: Embed, data: Any) -> dict[str, float]:
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        parts = {name: [t.cpu() for t in features(embed, data, name)] for name in ("train", "val", "test")}
        valued = bool(data.source.valued)
        kind = HistGradientBoostingRegressor if valued else HistGradientBoostingClassifier
        model = kind(max_iter=self.rounds, learning_rate=self.learning_rate, early_stopping=False, random_state=0)
        model.fit(*(t.numpy() for t in parts["train"]))
        x, label = parts["val"]
        staged = model.staged_predict(x.numpy())
        off = [torch.as_tensor(each - label.numpy() if valued else each != label.numpy()) for each in staged]
        best = min(range(len(off)), key=lambda n: float(off[n].double().square().mean()))
        x, label = parts["test"]
        if valued:
            predicted = list(model.staged_predict(x.numpy()))[best]
            return figures(torch.from_numpy(predicted), label)
        chances = torch.from_numpy(list(model.staged_predict_proba(x.numpy()))[best])
        scores = torch.zeros(len(x), data.num_classes, dtype=chances.dtype)
        scores[:, torch.from_numpy(model.classes_)] = chances  # a class may have no row in train
        return classification(scores, label, data.num_classes)

    def refusal(self, source: Any) -> str | None:
        if not source.valued and not source.classes:
            return "needs labels, and this data has none; use evaluators=none"
        return None
