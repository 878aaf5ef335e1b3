"""Regular-expression rules over parameter names, layers of stacked blocks included."""

import jax
import numpy as np
import pytest
from flax import traverse_util

from negclip_jax.common.errors import InputError
from negclip_jax.training import patterns


@pytest.fixture
def tree() -> dict:
    return {
        "logit_scale": np.zeros(()),
        "text": {
            "blocks": {"mlp": {"kernel": np.zeros((3, 4, 5)), "bias": np.zeros((3, 5))}},
            "ln_final": {"scale": np.ones(4)},
        },
        "vision": {"blocks": {"mlp": {"kernel": np.zeros((2, 4, 4))}}},
    }


def all_names(tree) -> list[str]:
    leaves = sorted(traverse_util.flatten_dict(tree).items())
    return [name for path, leaf in leaves for name in patterns.names(path, leaf)]


def test_layers_of_stacked_blocks_have_names_of_their_own(tree):
    assert all_names(tree) == [
        "logit_scale",
        "text/blocks/0/mlp/bias",
        "text/blocks/1/mlp/bias",
        "text/blocks/2/mlp/bias",
        "text/blocks/0/mlp/kernel",
        "text/blocks/1/mlp/kernel",
        "text/blocks/2/mlp/kernel",
        "text/ln_final/scale",
        "vision/blocks/0/mlp/kernel",
        "vision/blocks/1/mlp/kernel",
    ]


def test_the_first_rule_that_matches_wins():
    rules = [("a/.*", 1), (".*/x", 2), (".*", 3)]
    assert patterns.first_match(["a/x", "b/x", "b/y"], rules, "key") == {
        "a/x": 1,
        "b/x": 2,
        "b/y": 3,
    }


def test_a_rule_must_match_the_whole_name():
    with pytest.raises(InputError, match=r"key: no parameter matches \['text'\]"):
        patterns.first_match(["text/ln_final/scale"], [("text", 1), (".*", 2)], "key")


def test_a_typo_is_an_error_that_shows_names(tree):
    rules = [("txet/.*", 0.0), (".*", 1.0)]
    with pytest.raises(InputError, match=r"optim\.lr_rules: .*'txet/\.\*'.*names look like logit"):
        patterns.resolve(tree, rules, "optim.lr_rules")


def test_a_name_without_a_rule_is_an_error(tree):
    message = r"optim\.lr_rules: no rule covers logit_scale.* and \d more; end the list"
    with pytest.raises(InputError, match=message):
        patterns.resolve(tree, [("vision/.*", 1.0)], "optim.lr_rules")


def test_an_invalid_expression_is_an_error(tree):
    with pytest.raises(InputError, match=r"optim\.freeze: '\(vision' is not a regular expression"):
        patterns.trainable(tree, ["(vision"])
    with pytest.raises(InputError, match=r"optim\.freeze: 3 is not a regular expression"):
        patterns.trainable(tree, [3])


@pytest.mark.parametrize("rule", [("vision/.*",), "vision/.*", (".*", 1.0, 2.0)])
def test_a_rule_is_a_pair(tree, rule):
    with pytest.raises(InputError, match=r"key: a rule is a pair \(regex, value\), not "):
        patterns.resolve(tree, [rule, (".*", 1.0)], "key")


def test_values_are_scalars_unless_layers_differ(tree):
    rules = [("text/blocks/[01]/.*", 0.5), (".*", 1.0)]
    values = patterns.resolve(tree, rules, "key")
    assert values["vision"]["blocks"]["mlp"]["kernel"] == 1.0
    np.testing.assert_array_equal(
        values["text"]["blocks"]["mlp"]["kernel"], np.reshape([0.5, 0.5, 1.0], (3, 1, 1))
    )
    np.testing.assert_array_equal(
        values["text"]["blocks"]["mlp"]["bias"], np.reshape([0.5, 0.5, 1.0], (3, 1))
    )


def test_partition_keeps_an_array_of_which_a_layer_is_trained(tree):
    mask = patterns.trainable(tree, ["vision/.*", "text/blocks/0/.*", "text/ln_final/scale"])
    trained, frozen = patterns.partition(tree, mask)
    assert set(all_names(trained)) == {
        "logit_scale",
        *(f"text/blocks/{i}/mlp/{part}" for i in range(3) for part in ("kernel", "bias")),
    }
    assert set(traverse_util.flatten_dict(frozen)) == {
        ("text", "ln_final", "scale"),
        ("vision", "blocks", "mlp", "kernel"),
    }
    merged = patterns.merge(frozen, trained)
    assert set(all_names(merged)) == set(all_names(tree))


def test_nothing_frozen_means_everything_trained(tree):
    trained, frozen = patterns.partition(tree, patterns.trainable(tree, []))
    assert len(jax.tree.leaves(trained)) == len(jax.tree.leaves(tree)) and frozen == {}


def test_what_is_frozen_where_nothing_is_said_is_what_the_model_has_of_it(tree):
    assert patterns.freeze_of(tree, None) == ("vision/.*", "text/ln_final/.*")
    whole = tree | {"visual_projection": np.zeros((4, 3))}
    assert patterns.freeze_of(whole, None) == patterns.FROZEN
    assert patterns.freeze_of({"text": tree["text"]}, None) == ("text/ln_final/.*",)
    assert patterns.freeze_of(tree, ()) == () and patterns.freeze_of(tree, ["a"]) == ("a",)
    assert patterns.trainable(tree, None) == patterns.trainable(tree, ("vision/.*", "text/ln.*"))
    assert not traverse_util.flatten_dict(patterns.trainable(tree, None))[
        "vision", "blocks", "mlp", "kernel"
    ]
