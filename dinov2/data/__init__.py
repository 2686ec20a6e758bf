"""Tiles in, batches out: data sets, multi-crop augmentation, block masks, samplers and the loader."""
