"""Ordered regular-expression rules over parameter names, and what they divide.

A name is the path of a parameter joined by slashes. Parameters of a tower's blocks are stored
stacked, one leading axis for all layers, but named one by one (`text/blocks/3/mlp/fc1/kernel`), so
that a rule can treat layers differently.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from negclip_jax.common.errors import InputError
from negclip_jax.common.problems import first

STACKED = "blocks"  # name of the subtree whose leaves have a leading layer axis
# What is frozen where `optim.freeze` is not set: the vision tower, and the final text LayerNorm as
# in the released recipe. Not every family has each of these parts.
FROZEN = ("vision/.*", "visual_projection", "text/ln_final/.*")

Path = tuple[str, ...]


def names(path: Path, leaf: Any) -> list[str]:
    """Names of one parameter array: one, or one per layer where layers are stacked."""
    if STACKED not in path:
        return ["/".join(path)]
    layer = path.index(STACKED) + 1
    return ["/".join((*path[:layer], str(i), *path[layer:])) for i in range(leaf.shape[0])]


def first_match(all_names: Iterable[str], rules: Sequence[tuple[str, Any]], what: str) -> dict:
    """Value of the first rule that matches each whole name.

    Raises InputError when a rule is no regular expression or matches no name at all, or when a
    name is not covered; `what` is the configuration key for the message.
    """
    malformed = [rule for rule in rules if not isinstance(rule, tuple | list) or len(rule) != 2]
    if malformed:
        raise InputError(f"{what}: a rule is a pair (regex, value), not {malformed[0]!r}")
    compiled = []
    for pattern, value in rules:
        try:
            compiled.append((re.compile(pattern), value))
        except (re.error, TypeError) as error:
            message = f"{what}: {pattern!r} is not a regular expression: {error}"
            raise InputError(message) from error
    values, used, uncovered = {}, set(), []
    for name in all_names:
        hits = [i for i, (pattern, _) in enumerate(compiled) if pattern.fullmatch(name)]
        used.update(hits)
        if hits:
            values[name] = compiled[hits[0]][1]
        else:
            uncovered.append(name)
    unused = [rules[i][0] for i in range(len(rules)) if i not in used]
    if unused:
        raise InputError(
            f"{what}: no parameter matches {unused}; names look like {first(list(values), 3)}"
        )
    if uncovered:
        raise InputError(f"{what}: no rule covers {first(uncovered, 3)}; end the list with '.*'")
    return values


def resolve(tree: dict, rules: Sequence[tuple[str, Any]], what: str) -> dict:
    """Tree of the rules' values: a scalar per leaf, or `[layers, 1, ...]` where layers differ."""
    leaves = dict(sorted(flatten_dict(tree).items()))
    values = first_match((n for p, x in leaves.items() for n in names(p, x)), rules, what)

    def of_leaf(path: Path, leaf: Any) -> Any:
        each = [values[name] for name in names(path, leaf)]
        if len(set(each)) == 1:
            return each[0]
        return np.asarray(each).reshape(-1, *[1] * (len(leaf.shape) - 1))  # broadcasts over a layer

    return unflatten_dict({path: of_leaf(path, leaf) for path, leaf in leaves.items()})


def freeze_of(tree: dict, freeze: Sequence[str] | None) -> tuple[str, ...]:
    """`optim.freeze`; where it is not set, those of `FROZEN` that match a parameter of the tree."""
    if freeze is not None:
        return tuple(freeze)
    found = {name for path, leaf in flatten_dict(tree).items() for name in names(path, leaf)}
    return tuple(p for p in FROZEN if any(re.fullmatch(p, name) for name in found))


def trainable(tree: dict, freeze: Sequence[str] | None) -> dict:
    """Tree of booleans (or `[layers, 1, ...]` boolean arrays): which parameters are trained."""
    freeze = freeze_of(tree, freeze)
    return resolve(tree, [*((pattern, False) for pattern in freeze), (".*", True)], "optim.freeze")


def partition(tree: dict, trainable: dict) -> tuple[dict, dict]:
    """Splits a tree into the leaves that are trained, at least in part, and the frozen ones."""
    is_trained = flatten_dict(trainable)
    parts: tuple[dict, dict] = {}, {}
    for path, leaf in flatten_dict(tree).items():
        parts[0 if np.any(is_trained[path]) else 1][path] = leaf
    return unflatten_dict(parts[0]), unflatten_dict(parts[1])


def merge(a: dict, b: dict) -> dict:
    """Inverse of `partition`."""
    return unflatten_dict(flatten_dict(a) | flatten_dict(b))
