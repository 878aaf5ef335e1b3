"""Writes negation pairs: captions that say, truly, what is not in the picture.

`data_gen.from_annotations` needs no model. This package runs on a machine without jax.
"""
