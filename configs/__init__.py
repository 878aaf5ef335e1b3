"""Experiment configurations: `launch.py --config=configs/NAME.py[:VARIANT]`."""
