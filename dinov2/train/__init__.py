"""The pretraining program: `python -m dinov2.train`."""
