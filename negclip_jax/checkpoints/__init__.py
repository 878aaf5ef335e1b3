"""Checkpoints of a run, below both training and interop."""
