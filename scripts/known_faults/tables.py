"""Of tables."""

from __future__ import annotations

from known_faults.fault import Fault, fault

TABLES = "test_tables.py::"

FAULTS: dict[int, list[Fault]] = {
    44: [
        fault(
            "a table's means and deviations are those of all rows",
            TABLES + "test_numbers_are_standardised_and_categories_known_by_the_train_part_alone",
            "ssl_runner/datasets/table.py",
            "known = read[rows][~np.isnan(read[rows])]",
            "known = read[~np.isnan(read)]",
        ),
        fault(
            "a table's categories are those of all rows",
            TABLES + "test_numbers_are_standardised_and_categories_known_by_the_train_part_alone",
            "ssl_runner/datasets/table.py",
            "learned.append((name, sorted(set(mine))))",
            "learned.append((name, sorted({cell for cell in column if cell is not None})))",
        ),
        fault(
            "the target is among a table's features",
            TABLES + "test_numbers_are_standardised_and_categories_known_by_the_train_part_alone",
            "ssl_runner/datasets/table.py",
            "name for name in names if name != target and name not in ignore",
            "name for name in names if name not in ignore",
        ),
        fault(
            "a category that train has not is taken for the first",
            TABLES + "test_numbers_are_standardised_and_categories_known_by_the_train_part_alone",
            "ssl_runner/datasets/table.py",
            "code.get(cell, np.nan) if cell",
            "code.get(cell, 0.0) if cell",
        ),
        fault(
            "another table is standardised anew under a run that knows its own",
            TABLES + "test_a_run_keeps_what_columns_mean",
            "ssl_runner/datasets/table.py",
            "        if known is None:\n            known = self._learn(",
            "        if True:\n            known = self._learn(",
        ),
        fault(
            "rows without a target are trained on with a made-up one",
            TABLES + "test_one_file_is_divided_and_rows_without_a_target_are_for_pretraining_alone",
            "ssl_runner/datasets/table.py",
            'rows["train"][has[rows["train"]]] if has.any()',
            'rows["train"] if has.any()',
        ),
        fault(
            "a missing number is the column's mean and nothing tells",
            TABLES + "test_an_embedding_knows_a_missing_value_from_the_mean",
            "ssl_runner/parts/columns.py",
            "torch.stack([number, missing.to(x.dtype)], 2)",
            "torch.stack([number, torch.zeros_like(number)], 2)",
        ),
        fault(
            "a missing value reaches the network as NaN",
            TABLES + "test_missing_values_reach_no_loss_and_no_gradient[mae]",
            "ssl_runner/parts/columns.py",
            "number = x.masked_fill(missing | category, 0.0)",
            "number = x.masked_fill(category, 0.0)",
        ),
        fault(
            "a value is drawn from the whole batch, its own row among it",
            TABLES + "test_a_new_value_is_another_rows_of_the_same_column_drawn_for_it_alone",
            "ssl_runner/parts/columns.py",
            "step = torch.randint(1, max(2, len(among)), x.shape)",
            "step = torch.randint(0, len(among), x.shape)",
        ),
        fault(
            "all new values of a row come from one other row",
            TABLES + "test_a_new_value_is_another_rows_of_the_same_column_drawn_for_it_alone",
            "ssl_runner/parts/columns.py",
            "max(2, len(among)), x.shape)",
            "max(2, len(among)), (len(x), 1)).expand(x.shape)",
        ),
        fault(
            "a value is drawn from another column",
            TABLES + "test_a_new_value_is_another_rows_of_the_same_column_drawn_for_it_alone",
            "ssl_runner/parts/columns.py",
            "return among.gather(0, ",
            "return among.roll(1, 1).gather(0, ",
        ),
        fault(
            "SCARF corrupts the same columns in every row",
            TABLES + "test_so_many_columns_of_every_row_are_corrupted",
            "ssl_runner/views/columns.py",
            "torch.rand(x.shape).argsort(1)",
            "torch.rand(1, x.shape[1]).expand(x.shape).argsort(1)",
        ),
        fault(
            "VIME's mask counts exchanges for an equal value",
            TABLES + "test_vime_is_what_the_paper_writes",
            "ssl_runner/objectives/vime.py",
            "changed = differs(corrupted, x)",
            "changed = exchanged",
        ),
        fault(
            "VIME rebuilds what the network was shown",
            TABLES + "test_vime_is_what_the_paper_writes",
            "ssl_runner/objectives/vime.py",
            "reconstruction(guess, x, self.counts)",
            "reconstruction(guess, corrupted, self.counts)",
        ),
        fault(
            "VIME rebuilds missing values as zeros",
            TABLES + "test_vime_is_what_the_paper_writes",
            "ssl_runner/objectives/vime.py",
            "torch.where(category, crossed, squared), there)",
            "torch.where(category, crossed, squared), torch.ones_like(there))",
        ),
        fault(
            "VIME's cross-entropy runs over categories that a column has not",
            TABLES + "test_vime_is_what_the_paper_writes",
            "ssl_runner/objectives/vime.py",
            'guess.masked_fill(~exists, float("-inf")).log_softmax(2)',
            "guess.log_softmax(2)",
        ),
        fault(
            "VIME exchanges within a rank's rows alone",
            "test_contract.py::test_two_ranks_learn_what_one_learns_from_the_joined_batch[vime-columns]",
            "ssl_runner/objectives/vime.py",
            "of_others(x, gather(x), rank() * len(x))",
            "of_others(x, x)",
        ),
        fault(
            "the ridge penalty is chosen on the test part",
            TABLES + "test_the_penalty_is_chosen_on_validation_and_scores_are_in_the_labels_units",
            "ssl_runner/evaluators/regression.py",
            'features(embed, data, "val")',
            'features(embed, data, "test")',
        ),
        fault(
            "finetuning on values keeps the epoch of the highest loss",
            TABLES + "test_the_best_epoch_of_values_is_that_of_the_smallest_loss",
            "ssl_runner/objectives/regression.py",
            'monitor = "-val/loss"',
            'monitor = "val/loss"',
        ),
    ],
}
