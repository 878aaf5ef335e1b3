"""The paper in small: a rendered world, a tiny CLIP, and the word "no", all offline.

`python -m quickstart --out=runs/quickstart` tells the whole story. Every step it takes is a
command of its own (`quickstart.world`, `quickstart.tiny_clip`, `launch.py`, `data_gen.*`,
`negclip_jax.interop.export`, `quickstart.evaluate`, `quickstart.report`).
"""
