"""One paper, one file. Plain torch: an objective knows no trainer, config or device."""
