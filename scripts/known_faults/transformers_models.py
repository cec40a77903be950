"""Of models that transformers builds."""

from __future__ import annotations

from known_faults.fault import Fault, fault

HF, T = "ssl_runner/backbones/transformers.py", "test_hf.py::"

PATCHES = "ssl_runner/backbones/transformers_patches.py"

FAULTS: dict[int, list[Fault]] = {
    32: [
        fault(
            "a transformers model is not told what is padding",
            T + "test_outputs_are_the_librarys_own[bert]\n" + T + "test_outputs_are_the_librarys_own[t5]",
            HF,
            "visible(tokens, pad, causal or self.causal, part)), tokens)",
            "visible(tokens, torch.zeros_like(tokens[..., 0], dtype=torch.bool), causal or self.causal, "
            "part)), tokens)",
        ),
        fault(
            "documents in one sample see each other in a transformers model",
            T + "test_what_sees_what[bert]",
            HF,
            "visible(tokens, pad, causal or self.causal, part)), tokens)",
            "visible(tokens, torch.zeros_like(tokens[..., 0]).bool() if pad is None else pad, "
            "causal or self.causal, None)), tokens)",
        ),
        fault(
            "a model of windows sees a whole sample once it gets a mask",
            T + "test_outputs_are_the_librarys_own[mistral]\n" + T + "test_outputs_are_the_librarys_own[modernbert]",
            HF,
            "near = (place[:, None] - place).abs() < reach + (not self.causal)",
            "near = (place[:, None] - place).abs() < len(place)",
        ),
        fault(
            "a window reaches one id too few where order is not causal",
            T + "test_outputs_are_the_librarys_own[modernbert]",
            HF,
            "< reach + (not self.causal)",
            "< reach",
        ),
        fault(
            "the id that transformers takes for padding learns nothing",
            T + "test_every_id_learns_the_one_that_the_library_calls_padding_too",
            HF,
            "        table.padding_idx = None  # of the library's: the id's embedding would learn nothing\n",
            "",
        ),
        fault(
            "a model that passes over padding is taken for samples that have some",
            T + "test_a_model_that_does_not_heed_padding_says_so",
            HF,
            "            if not self.padded:\n",
            "            if False:\n",
        ),
        fault(
            "a decoder's first token may stand for the whole",
            T + "test_the_first_token_that_is_not_padding_may_stand_for_all",
            HF,
            'if self.causal and pool == "first":',
            "if False:",
        ),
    ],
    41: [
        fault(
            "transformers' weights that do not fit are passed over",
            T + "test_weights_that_do_not_fit_are_refused_with_the_receipt",
            HF,
            "    if receipt.missing or receipt.misshapen:\n",
            "    if False:\n",
        ),
        fault(
            "weights stored in half precision are trained in it",
            T + "test_a_folders_weights_are_loaded_in_fp32_and_a_receipt_tells",
            HF,
            "        dtype=torch.float32,\n",
            '        dtype="auto",\n',
        ),
        fault(
            "a run does not keep the architecture that its backbone read from a folder",
            T + "test_a_run_needs_neither_folder_nor_hub_to_be_gone_on_with",
            "ssl_runner/build.py",
            'merged(filled["backbone"], pinned)',
            'filled["backbone"]',
        ),
        fault(
            "what a stranger's config.json says beyond the architecture is heeded",
            T + "test_a_strangers_folder_runs_nothing",
            HF,
            "        return cls(**{**found, **given})\n",
            "        return cls(**{**stated, **found, **given})\n",
        ),
        fault(
            "a config of several models is built, whose fields nobody looked at",
            T + "test_what_can_not_be_is_told",
            HF,
            "    if not takes or described.sub_configs:\n",
            "    if not takes:\n",
        ),
        fault(
            "a pretrained model with too few embeddings is taken",
            T + "test_a_folder_with_fewer_ids_or_positions_than_the_data_is_refused",
            HF,
            "        if ids < vocab:\n",
            "        if False:\n",
        ),
        fault(
            "positions that RoBERTa leaves free are counted",
            T + "test_roberta_counts_positions_from_behind_padding",
            HF,
            "part.num_embeddings - part.padding_idx - 1",
            "part.num_embeddings",
        ),
        fault(
            "a transformer of other steps is taken for a plain one",
            "test_hf_vision.py::test_what_can_not_be_is_told",
            PATCHES,
            "or not torch.allclose(theirs[:, -ours.shape[1] :], ours, atol=1e-4)",
            "or False",
        ),
    ],
    42: [
        fault(
            "an unknown field of a transformers config is passed over",
            T + "test_what_can_not_be_is_told",
            HF,
            '        if field not in own | {*cls.attribute_map, "model_type"}:\n',
            "        if False:\n",
        ),
        fault(
            "what the data decides of a new model is left at the library's default",
            "test_hf_vision.py::test_what_the_data_decides_may_be_given_otherwise_and_is_then_held_to",
            PATCHES,
            "{} if pretrained else _sizes(self.shape)",
            "{}",
        ),
        fault(
            "a mask is passed over",
            "test_hf_vision.py::test_what_it_cannot_hide_is_refused",
            PATCHES,
            "        if pad is not None or causal or part is not None:",
            "        if False:",
        ),
    ],
    30: [
        fault(
            "a patch's variance is divided by all its values, unlike the authors' code",
            "test_mae_reference.py::test_the_loss_is_that_of_transformers",
            "ssl_runner/parts/patches.py",
            "    patches = patches.float()\n    var, mean = torch.var_mean(patches, dim=2, keepdim=True)",
            "    patches = patches.float()\n    var, mean = torch.var_mean(patches, dim=2, keepdim=True, correction=0)",
        ),
        fault(
            "visible tokens come back to other places than they had",
            "test_mae_reference.py::test_the_loss_is_that_of_transformers",
            "ssl_runner/parts/masking.py",
            "    full[~mask] = visible.flatten(0, 1)",
            "    full[~mask] = visible.flip(1).flatten(0, 1)",
        ),
        fault(
            "the decoder gets no positions",
            "test_mae_reference.py::test_the_loss_is_that_of_transformers",
            "ssl_runner/parts/decoder.py",
            "        return patches + self.pos_embed",
            "        return patches + 0 * self.pos_embed",
        ),
        fault(
            "a class token's position is given to the first patch",
            "test_hf_vision.py::test_steps_one_by_one_give_what_the_library_gives_at_once",
            PATCHES,
            "        return tokens + self._positions(tokens)[:, -tokens.shape[1] :]",
            "        return tokens + self._positions(tokens)[:, : tokens.shape[1]]",
        ),
        fault(
            "blocks of a clip have time in front of channels",
            "test_hf_vision.py::test_patches_are_blocks_in_row_major_order_and_come_together_again[videomae]",
            "ssl_runner/parts/blocks.py",
            "permute(0, *grid, 1, *inner)",
            "permute(0, *grid, *inner, 1)",
        ),
    ],
}
