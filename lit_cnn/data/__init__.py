"""From files to batches: sources, decoding, splits, augmentation, the data module; and what is wrong with a set."""
