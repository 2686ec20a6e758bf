"""Submitting training to a cluster."""
