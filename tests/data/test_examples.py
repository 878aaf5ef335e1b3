"""Captions and foils of examples, tokenized once."""

import dataclasses

import numpy as np
import pytest

from negclip_jax.common.errors import InputError
from negclip_jax.data.examples import tokenize_pairs


def test_captions_of_each_kind(make_loader, pairs, tokenizer):
    for captions, wanted in (
        ("negated", [[p.negated for p in pairs]]),
        ("original", [[p.caption for p in pairs]]),
        ("mix", [[p.negated for p in pairs], [p.caption for p in pairs]]),
    ):
        examples = make_loader(captions, foils=0).examples
        assert len(examples.caption_index_CxN) == len(wanted)
        for column, texts in zip(examples.caption_index_CxN, wanted, strict=True):
            np.testing.assert_array_equal(examples.tokens.padded(column, 24), tokenizer(texts))


def test_captions_and_foils_of_examples_lie_side_by_side(make_loader, pairs, tokenizer):
    examples = make_loader("mix", foils=2).examples
    texts = examples.token_index(np.array([1, 0, 1]), np.array([0, 1, 1]))
    assert examples.foil_mask_NxK[[1, 0]].tolist() == [[True, False], [False, False]]
    foil = pairs[1].foils[0]
    expected = [pairs[1].negated, foil, "", pairs[0].caption, "", "", pairs[1].caption, foil, ""]
    np.testing.assert_array_equal(examples.tokens.padded(texts, 24), tokenizer(expected))
    longest = int(
        (tokenizer([t for p in pairs for t in (p.caption, p.negated, *p.foils)]) > 0)
        .sum(axis=1)
        .max()
    )
    assert examples.lengths.max() == longest


def test_room_takes_a_few_short_pairs_anywhere(make_loader, pairs, tokenizer):
    words = ["a" * (3 + i % 15) for i in range(len(pairs))]
    changed = [
        dataclasses.replace(p, negated=w, caption=w[1:], foils=(w,) if i % 3 else ())
        for i, (p, w) in enumerate(zip(pairs, words, strict=True))
    ]
    names = sorted({pair.image for pair in pairs})
    examples = tokenize_pairs(changed, names, tokenizer, caption_mode="mix", foils=1)
    assert examples.lengths.shape == examples.reserved_lengths.shape == (80, 3)
    np.testing.assert_array_equal(examples.lengths[4], [3 + 4 + 2, 2 + 4 + 2, 3 + 4 + 2])
    assert (examples.reserved_lengths >= examples.lengths).all()
    fits = (examples.lengths[:, None] <= examples.reserved_lengths[None]).all(axis=2)
    assert (fits.all(axis=1)).sum() >= 8, "so many fit everywhere"
    # Little is given away for it, where captions are not short themselves.
    assert (examples.reserved_lengths > examples.lengths).any(axis=1).mean() < 0.5
    taken = examples.reserved_of(np.array([4, 79]), np.array([1, 0]))
    assert taken.tolist() == examples.reserved_lengths[[4, 4, 79, 79], [1, 2, 0, 2]].tolist()


def test_unknown_captions(pairs, tokenizer):
    with pytest.raises(
        InputError, match=r"data\.caption_mode: 'both' is none of negated, original"
    ):
        tokenize_pairs(pairs, [], tokenizer, caption_mode="both", foils=0)
