"""Small tables that come with scikit-learn."""

from __future__ import annotations

from typing import Literal

import numpy as np

from ssl_runner.datasets.table import Frame, Tabular

TARGET = "target"


class SklearnTable(Tabular):
    """One of the tables that scikit-learn ships: nothing is downloaded.

    name: breast_cancer (Wolberg et al., 569 rows of 30 numbers, 2 classes), wine (Forina et al., 178 rows of 13
    numbers, 3 classes), iris (Fisher, 150 rows of 4 numbers, 3 classes), digits (Alpaydin & Kaynak, 1,797 rows of 64
    counts of ink, 10 classes; the three that are always 0 are left out), diabetes (Efron et al., 442 rows of 9 numbers
    and a category; the target is a value, disease progression after a year).

    There is no official split: a fixed one is used, 60% train, 20% validation, 20% test, each class alike.
    """

    def __init__(self, *, name: Literal["breast_cancer", "wine", "iris", "digits", "diabetes"]):
        from sklearn import datasets

        valued = name == "diabetes"
        loaded = datasets.load_diabetes(scaled=False) if valued else getattr(datasets, f"load_{name}")()
        label = loaded.target if valued else loaded.target_names[loaded.target]
        moving = [n for n in range(loaded.data.shape[1]) if np.ptp(loaded.data[:, n])]
        frame: Frame = {str(loaded.feature_names[n]): [repr(float(v)) for v in loaded.data[:, n]] for n in moving}
        frame[TARGET] = [str(v) for v in label]
        categories = ("sex",) if valued else ()
        super().__init__(
            {"train": frame},
            where=name,
            target=TARGET,
            kind="regression" if valued else "classification",
            numeric=tuple(name for name in frame if name not in (*categories, TARGET)),
            categorical=categories,
            val=0.2,
            test=0.2,
        )
