"""Every negation benchmark by its own rules, with error bars and controls: `python -m evals`."""
