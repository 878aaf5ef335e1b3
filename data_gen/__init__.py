"""Writes negation pairs: captions that say, truly, what is not in the picture.

`python -m data_gen` (see `cli`) runs with any OpenAI-compatible servers, or with no model at all,
and never needs jax.

A run is `generate`: `stages.ingest` reads captions, `pipeline` takes each image through the other
stages (propose, verify, assign, rewrite), `runner` keeps many images in work and writes their rows
(`records`) in shards. `build` chooses who does what; `engines` answer, through a `cache`.
"""
