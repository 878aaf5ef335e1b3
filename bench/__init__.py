"""Speed, measured side by side with a PyTorch implementation of the published recipe.

Each command measures both sides in one run, in turns, so that a busy machine slows both; results
are ratios first and rates second. `make bench` runs the small set. `bench.scaling` alone runs
nothing: it reads programs compiled for devices that are not there.
"""
