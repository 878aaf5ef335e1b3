"""One file per benchmark, listed in `evals.registry`."""
