"""Processes, collectives and checkpoints."""
