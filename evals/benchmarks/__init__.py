"""The readers of published files, one file each; `evals.registry` has their table."""
