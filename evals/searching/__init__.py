"""Search in a folder of photos; the door is `python -m evals.search`."""
