"""Slides and patches to embeddings: `python -m eval.embed`."""
