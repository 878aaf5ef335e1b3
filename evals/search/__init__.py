"""Search in a folder of photos: `python -m evals.search`."""
