"""Captions and foils of examples, tokenized once."""

import dataclasses

import numpy as np
import pytest

from negclip_jax.common.errors import InputError
from negclip_jax.data.examples import tokenize_pairs, without_truncated
from negclip_jax.data.pairs import Pair


def test_captions_of_each_kind(make_loader, pairs, tokenizer):
    for captions, wanted in (
        ("negated", [[p.negated for p in pairs]]),
        ("original", [[p.caption for p in pairs]]),
        ("mix", [[p.negated for p in pairs], [p.caption for p in pairs]]),
    ):
        examples = make_loader(captions, foils=0).examples
        assert len(examples.captions) == len(wanted)
        for place, texts in zip(examples.captions, wanted, strict=True):
            column = examples.first_text + place
            np.testing.assert_array_equal(examples.tokens.padded(column, 24), tokenizer(texts))


def test_captions_and_foils_of_examples_lie_side_by_side(make_loader, pairs, tokenizer):
    examples = make_loader("mix", foils=2).examples
    shown = examples.shown(np.array([1, 0, 1]), np.array([0, 1, 1]), None)
    assert shown.truth_BxM.tolist() == [[1, -1, 0], [1, 0, 0], [1, -1, 0]]
    assert shown.holds_caption_BxM.tolist() == 3 * [[True, False, False]]
    assert shown.is_affirmative_BxM[:, 0].tolist() == [False, True, True]
    texts = shown.index_BxM.ravel()
    foil = pairs[1].foils[0]
    expected = [pairs[1].negated, foil, "", pairs[0].caption, "", "", pairs[1].caption, foil, ""]
    np.testing.assert_array_equal(examples.tokens.padded(texts, 24), tokenizer(expected))
    longest = int(
        (tokenizer([t for p in pairs for t in (p.caption, p.negated, *p.foils)]) > 0)
        .sum(axis=1)
        .max()
    )
    assert examples.longest == examples.lengths_of(np.arange(80)).max() == longest


def test_room_takes_a_few_short_pairs_anywhere(pairs, tokenizer, monkeypatch):
    words = ["a" * (3 + i % 15) for i in range(len(pairs))]
    changed = [
        dataclasses.replace(p, negated=w, caption=w[1:], foils=(w,) if i % 3 else ())
        for i, (p, w) in enumerate(zip(pairs, words, strict=True))
    ]
    names = sorted({pair.image for pair in pairs})
    examples = tokenize_pairs(changed, names, tokenizer, caption_mode="mix", foils=1)
    lengths, reserved = (
        of(np.arange(80)) for of in (examples.lengths_of, examples.reserved_lengths_of)
    )
    assert lengths.shape == reserved.shape == (80, 3)
    np.testing.assert_array_equal(lengths[4], [3 + 4 + 2, 2 + 4 + 2, 3 + 4 + 2])
    assert (reserved >= lengths).all()
    fits = (lengths[:, None] <= reserved[None]).all(axis=2)
    assert (fits.all(axis=1)).sum() >= 8, "so many fit everywhere"
    # Little is given away for it, where captions are not short themselves.
    assert (reserved > lengths).any(axis=1).mean() < 0.5
    # The shortest by a stable sort of their sums, in whatever blocks they are looked at.
    shortest = np.argsort(lengths.sum(axis=1), kind="stable")[:8]
    np.testing.assert_array_equal(reserved, np.maximum(lengths, lengths[shortest].max(axis=0)))
    monkeypatch.setattr("negclip_jax.data.examples._BLOCK", 7)
    in_blocks = dataclasses.replace(examples)
    np.testing.assert_array_equal(in_blocks.reserved_lengths_of(np.arange(80)), reserved)
    np.testing.assert_array_equal(in_blocks.planned_lengths, reserved.ravel())
    some = np.array([4, 79]), np.array([1, 0])
    taken = examples.reserved_of(*some, examples.shown(*some, None))
    expected = reserved[[4, 4, 79, 79], [1, 2, 0, 2]].reshape(2, 2)
    assert taken.tolist() == expected.tolist()


def test_unknown_captions(pairs, tokenizer):
    with pytest.raises(
        InputError, match=r"data\.caption_mode: 'both' is none of negated, original"
    ):
        tokenize_pairs(pairs, [], tokenizer, caption_mode="both", foils=0)


LONG = "a dog and " * 12  # 3 words of few tokens each


def cut_pair(negated: str, caption: str = "a dog", foils: tuple = ()) -> Pair:
    return Pair("a.jpg", caption, negated, foils, image_id="a.jpg")


CUT = {  # pairs, and whether a negation or a difference is lost
    "short": (cut_pair("no cat"), False),
    "cut": (cut_pair(f"no cat, {LONG}"), False),
    "lost": (cut_pair(f"{LONG} no cat"), True),
    "one of two lost": (cut_pair(f"no hat, {LONG} no cat"), True),
    "equal to its foil": (cut_pair(f"no cat, {LONG} left", foils=(f"no cat, {LONG} right",)), True),
    "equal before": (cut_pair(f"no cat, {LONG}", foils=(f"no cat, {LONG}",)), False),
    "lost by its foil": (cut_pair("no cat", foils=(f"{LONG} without a dog",)), True),
}


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("truncated", ["drop_lost", "drop", "keep"])
def test_captions_that_lose_their_negation_are_left_out(tokenizer, caplog, name, truncated):
    pair, is_lost = CUT[name]
    options = {"caption_mode": "negated", "foils": 1, "truncated": truncated}
    kept = without_truncated([pair, CUT["short"][0]], tokenizer, **options)
    is_cut = name != "short"
    dropped = {"drop_lost": is_lost, "drop": is_cut, "keep": False}[truncated]
    assert kept == ([] if dropped else [pair]) + [CUT["short"][0]]
    if is_cut:
        assert f"1 of 2 pairs have a caption that is cut at 24 tokens, and {int(is_lost)} of" in (
            caplog.text
        )
        assert f"data.truncated={truncated} leaves out {int(dropped)} pairs" in caplog.text
    else:
        assert not caplog.text


def test_only_captions_that_are_shown_count(tokenizer):
    pair = cut_pair(f"{LONG} no cat", caption=f"{LONG} or two", foils=("no dog", f"{LONG} no cat"))
    for mode, foils, dropped in (("original", 1, 0), ("original", 2, 1), ("mix", 0, 1)):
        options = {"caption_mode": mode, "foils": foils, "truncated": "drop_lost"}
        kept = without_truncated([pair, cut_pair("no cat")], tokenizer, **options)
        assert len(kept) == 2 - dropped, (mode, foils)


def test_what_the_model_reads_is_what_is_compared(tokenizer):
    """The last word whose tokens all fit is the last one that counts."""
    room = tokenizer.context_length - tokenizer.special_tokens
    fits = "a " * (room - len(tokenizer.encode("no"))) + "no"
    assert len(tokenizer.encode(fits)) == room
    options = {"caption_mode": "negated", "foils": 0, "truncated": "drop_lost"}
    pairs = [cut_pair(fits), cut_pair(f"{fits} a"), cut_pair(f"a {fits}")]
    assert without_truncated(pairs, tokenizer, **options) == pairs[:2]


def test_nothing_left_is_an_error(tokenizer):
    options = {"caption_mode": "negated", "foils": 0, "truncated": "drop_lost"}
    with pytest.raises(InputError, match=r"data\.truncated=drop_lost leaves out all 1 pairs"):
        without_truncated([CUT["lost"][0]], tokenizer, **options)
