"""Pairs, images and tokens: what training and the benchmarks read. Nothing here knows jax."""
