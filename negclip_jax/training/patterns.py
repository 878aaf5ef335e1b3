"""Ordered regular-expression rules over parameter names.

A name is the path of a parameter joined by slashes. Parameters of a tower's blocks are stored
stacked, one leading axis for all layers, but named one by one (`text/blocks/3/mlp/fc1/kernel`), so
that a rule can treat layers differently.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from negclip_jax.common.errors import InputError

STACKED = "blocks"  # name of the subtree whose leaves have a leading layer axis

Path = tuple[str, ...]


def flatten(tree: dict) -> dict[Path, Any]:
    """Nested dict to `{path: leaf}`, in the order of `jax.tree`."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {tuple(key.key for key in path): leaf for path, leaf in leaves}


def unflatten(leaves: dict[Path, Any]) -> dict:
    """Inverse of `flatten`."""
    tree: dict = {}
    for path, leaf in leaves.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def names(path: Path, leaf: Any) -> list[str]:
    """Names of one parameter array: one, or one per layer where layers are stacked."""
    if STACKED not in path:
        return ["/".join(path)]
    at = path.index(STACKED) + 1
    return ["/".join((*path[:at], str(i), *path[at:])) for i in range(leaf.shape[0])]


def first_match(all_names: Iterable[str], rules: Sequence[tuple[str, Any]], what: str) -> dict:
    """Value of the first rule that matches each whole name.

    Raises InputError when a rule is no regular expression or matches no name at all, or when a
    name is not covered; `what` is the configuration key for the message.
    """
    malformed = [rule for rule in rules if not isinstance(rule, tuple | list) or len(rule) != 2]
    if malformed:
        raise InputError(f"{what}: a rule is a pair (regex, value), not {malformed[0]!r}")
    compiled = [(compile_rule(pattern, what), value) for pattern, value in rules]
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
        raise InputError(f"{what}: no parameter matches {unused}; names look like {_some(values)}")
    if uncovered:
        raise InputError(f"{what}: no rule covers {_some(uncovered)}; end the list with '.*'")
    return values


def resolve(tree: dict, rules: Sequence[tuple[str, Any]], what: str) -> dict:
    """Tree of the rules' values: a scalar per leaf, or `[layers, 1, ...]` where layers differ."""
    leaves = flatten(tree)
    values = first_match((n for p, x in leaves.items() for n in names(p, x)), rules, what)
    return unflatten(
        {path: _collapse([values[n] for n in names(path, x)], x) for path, x in leaves.items()}
    )


def trainable(tree: dict, freeze: Sequence[str]) -> dict:
    """Tree of booleans (or `[layers, 1, ...]` boolean arrays): which parameters are trained."""
    rules = [(pattern, False) for pattern in freeze]
    return resolve(tree, [*rules, (".*", True)], "optim.freeze") if rules else _all_true(tree)


def partition(tree: dict, trainable: dict) -> tuple[dict, dict]:
    """Splits a tree into the leaves that are trained, at least in part, and the frozen ones."""
    trained = flatten(trainable)
    leaves = flatten(tree)
    kept = {path: leaf for path, leaf in leaves.items() if np.any(trained[path])}
    return unflatten(kept), unflatten({p: leaf for p, leaf in leaves.items() if p not in kept})


def trained_part(tree: dict, trainable: dict) -> dict:
    """The first half of `partition`."""
    return partition(tree, trainable)[0]


def merge(a: dict, b: dict) -> dict:
    """Inverse of `partition`."""
    return unflatten(flatten(a) | flatten(b))


def compile_rule(pattern: str, what: str) -> re.Pattern:
    """Compiles one pattern; InputError names the configuration key `what` where it cannot."""
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as error:
        raise InputError(f"{what}: {pattern!r} is not a regular expression: {error}") from error


def _all_true(tree: dict) -> dict:
    return jax.tree.map(lambda _: True, tree)


def _collapse(values: list, leaf: Any) -> Any:
    if len(set(values)) == 1:
        return values[0]
    return np.asarray(values).reshape(-1, *[1] * (len(leaf.shape) - 1))


def _some(items: Iterable[str], n: int = 3) -> str:
    items = list(items)
    return ", ".join(items[:n]) + (f" and {len(items) - n} more" if len(items) > n else "")
