"""Decides whether image features can be cached, and fills the cache over all devices."""

import dataclasses
import logging
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util
from jax.sharding import Mesh
from ml_collections import ConfigDict

from negclip_jax.common import storage
from negclip_jax.common.errors import InputError
from negclip_jax.data.loader import CachedFeatures, PairLoader
from negclip_jax.embeddings import features
from negclip_jax.runtime import console, multihost, sharding
from negclip_jax.training.step import Objective

_PARAMETERS = ("vision", "visual_projection")
_IMAGES_PER_DEVICE = 32


def are_constant(trainable: dict) -> bool:
    """Whether nothing that an image passes through is trained."""
    leaves = jax.tree.leaves(_of_images(trainable))
    return not any(np.any(leaf) for leaf in leaves)


def _of_images(tree: dict) -> dict:
    """What an image passes through. SigLIP's vision tower has no projection after it."""
    return {name: tree[name] for name in _PARAMETERS if name in tree}


def use_cache(
    data: ConfigDict,
    workdir: epath.Path,
    loaders: list[PairLoader | None],
    objective: Objective,
    params: dict,
    numerics: str,
    mesh: Mesh,
) -> list[PairLoader | None]:
    """The loaders, reading cached features; builds what is missing. Unchanged where it is off.

    Args:
      data: section of the configuration.
      workdir: of the run.
      loaders: of training and validation pairs, over the same images.
      objective: knows how to encode images.
      params: all parameters.
      numerics: states what else than parameters the image tower computes with.
      mesh: over which images are encoded.
    """
    if not data.cache_features:
        return loaders
    loader = loaders[0]
    root = storage.path(data.cache_dir.format(workdir=workdir))
    names = loader.examples.images
    tower = traverse_util.flatten_dict(_of_images(params), sep="/")
    weights = {name: sharding.to_host(leaf) for name, leaf in tower.items()}
    digests = _digests(loader, root)
    name = features.fingerprint(weights, numerics, loader.preprocess, digests)
    last = params.get("visual_projection", params["vision"]["ln_post"]["scale"])
    cache = features.FeatureCache(root / name, names, last.shape[-1])
    if sharding.is_main_process():
        cache.mend()
    multihost.barrier("image features checked")
    multihost.require_same("feature cache", {"name": name, "complete": cache.is_complete})
    if not cache.is_complete:
        _build(cache, loader, objective, params, mesh)
    array, unreadable = cache.open()
    _check(unreadable, loader)
    logging.info("image features of %s images come from %s", f"{len(names):,}", cache.directory)
    cached = CachedFeatures(array, unreadable)
    return [x and dataclasses.replace(x, cached=cached) for x in loaders]


def _digests(loader: PairLoader, root: epath.Path) -> list[str]:
    """SHA-256 of each image; every process reads its share of them."""
    names = loader.examples.images
    if multihost.is_single_process():
        return features.image_digests(loader.images, names, root)
    index, count = sharding.process_place()

    def gather(mine: list[str]) -> list[str]:
        own = np.zeros((-(-len(names) // count), 32), np.uint8)
        own[: len(mine)] = np.frombuffer(bytes.fromhex("".join(mine)), np.uint8).reshape(-1, 32)
        # Image i was read by process i modulo `count`.
        every = sharding.from_all(own).swapaxes(0, 1).reshape(-1, 32)
        return [row.tobytes().hex() for row in every[: len(names)]]

    share = slice(index, None, count)
    return features.image_digests(
        loader.images, names, root, share=share, gather=gather, writes=index == 0
    )


def _build(
    cache: features.FeatureCache,
    loader: PairLoader,
    objective: Objective,
    params: dict,
    mesh: Mesh,
) -> None:
    size = mesh.size * _IMAGES_PER_DEVICE
    encode = encoder(objective, mesh)
    waited = multihost.within_time("the next images of the feature cache")
    with console.Bar("image features", len(cache.names)) as bar, waited as keep_alive:

        def encoded(*batch: np.ndarray) -> jax.Array:
            keep_alive()
            return encode(params, *sharding.to_global(mesh, batch))

        cache.build(
            encoded,
            loader.images,
            loader.preprocess,
            batch_size=size,
            rows=sharding.local_rows(mesh, size),
            threads=loader.threads,
            writes=sharding.is_main_process(),
            progress=bar.advance,
        )
    multihost.barrier("image features written")
    if sharding.is_main_process():
        cache.merge()
    multihost.barrier("image features merged")


def encoder(objective: Objective, mesh: Mesh) -> Callable[..., jax.Array]:
    """Compiled `(params, pixels, bad)` to features float32 `[B, D]` on every device.

    `pixels` are uint8 `[B, H, W, 3]`; where `bad`, bool `[B]`, the feature is NaN. The parameters
    are an argument: closed over, they would be copied into the program as constants.
    """

    def encode(params: dict, pixels: jax.Array, bad: jax.Array) -> jax.Array:
        encoded = objective.encode_image(params, pixels)
        return jnp.where(bad[:, None], jnp.nan, encoded)

    return jax.jit(encode, out_shardings=sharding.replicated(mesh))


def _check(unreadable: np.ndarray, loader: PairLoader) -> None:
    names = [loader.examples.images[i] for i in np.flatnonzero(unreadable)]
    if len(names) > loader.max_bad_images * len(unreadable):
        raise InputError(
            f"{len(names)} of {len(unreadable)} images could not be read, more than "
            f"data.max_bad_images={loader.max_bad_images} allows: {', '.join(names[:5])}"
        )
