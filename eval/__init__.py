"""Measures pretrained encoders on downstream pathology tasks; knows checkpoints, not training."""
