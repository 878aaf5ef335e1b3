"""The same sentence about another object, and without its negation: only where that is sure."""

import pytest

from negclip_jax.language.twins import affirmed, exchanged, of_scene, place_of

WRITTEN = {  # text, object: the same of an umbrella, and affirmed
    ("A cat on a sofa, with no dog in sight.", "dog"): (
        "A cat on a sofa, with no umbrella in sight.",
        "A cat on a sofa, with a dog in sight.",
    ),
    ("No dogs are visible in the image, where a cat sleeps.", "dog"): (
        "No umbrellas are visible in the image, where a cat sleeps.",
        "Dogs are visible in the image, where a cat sleeps.",
    ),
    ("A cat sleeps, but there isn't a dog in the picture", "dog"): (
        "A cat sleeps, but there isn't an umbrella in the picture",
        "A cat sleeps, and there is a dog in the picture",
    ),
    ("A dog is nowhere to be seen; a cat sleeps", "dog"): (
        "An umbrella is nowhere to be seen; a cat sleeps",
        "A dog is to be seen; a cat sleeps",
    ),
    ("A cat sleeps. The image does not include a dog.", "dog"): (
        "A cat sleeps. The image does not include an umbrella.",
        "A cat sleeps. The image includes a dog.",
    ),
    ("A cat sleeps, but you can't see any dogs", "dog"): (
        "A cat sleeps, but you can't see any umbrellas",
        "A cat sleeps, and you can see dogs",
    ),
    ("A cat sleeps, but a dog is noticeably absent from the scene.", "dog"): (
        "A cat sleeps, but an umbrella is noticeably absent from the scene.",
        "A cat sleeps, and a dog is noticeably present in the scene.",
    ),
    ("Without any dogs around, a cat sleeps", "dog"): (
        "Without any umbrellas around, a cat sleeps",
        "With dogs around, a cat sleeps",
    ),
}


@pytest.mark.parametrize(("text", "obj"), WRITTEN)
def test_twins_of_written_sentences(text, obj):
    other, there = WRITTEN[text, obj]
    assert exchanged(text, obj, "umbrella") == other
    assert affirmed(text, obj) == there


@pytest.mark.parametrize(
    "text",
    [
        "A cake with no dog",  # of the cake, not of the photo
        "A cat sleeps, with no dog nearby.",  # one may be at the other end
        "A cat sleeps, with no dog in the background.",
        "A cat sleeps, with no red dog in sight.",
        "A cat sleeps, with no dog on its bed.",
        "No dog is visible; instead, a cat sleeps.",  # and a dog instead of it?
        "No dog, just a cat",
        "A cat sleeps, with no dog and no bird in sight.",
        "A dogless room, with no dog in sight.",
        "A cat sleeps, but the dog does not bark.",
        "A dog sleeps on a sofa.",
    ],
)
def test_sentences_that_say_more_than_absence_have_none(text):
    assert exchanged(text, "dog", "umbrella") is None
    assert affirmed(text, "dog") is None


def test_number_must_fit_the_verb():
    assert exchanged("No dog is visible", "dog", "scissors") is None
    assert exchanged("No dogs are visible", "dog", "scissors") == "No scissors are visible"
    assert exchanged("No dogs are visible", "dog", "broccoli") is None
    assert exchanged("There isn't a dog", "dog", "broccoli") == "There isn't any broccoli"
    assert affirmed("There isn't any broccoli", "broccoli") == "There is broccoli"


@pytest.mark.parametrize(
    ("text", "scene"),
    [
        ("A man on a bench with no dog.", "A man on a bench with no dog in sight."),
        ("A man on a bench without a dog", "A man on a bench without a dog in sight"),
        ("A bench, a cat but no dogs.", "A bench, a cat but no dogs in sight."),
        ("A bench and no dog!", "A bench and no dog in sight!"),
    ],
)
def test_a_denial_of_one_thing_becomes_one_of_the_scene(text, scene):
    assert of_scene(text, "dog") == scene
    assert affirmed(scene, "dog") and exchanged(scene, "dog", "umbrella")


@pytest.mark.parametrize(
    "text",
    [
        "A man on a bench, with no dog in sight.",
        "A man with no dog on a bench.",
        "A dog on a bench with no collar.",
        "A man on a bench with no red dog.",
        "No dog, no cat.",
        "A man does not walk his dog.",
    ],
)
def test_other_texts_stay(text):
    assert of_scene(text, "dog") == text


def test_what_a_picture_is_of_is_no_part_of_the_denial():
    text = "There is no dog in this picture of a man on a bench."
    assert exchanged(text, "dog", "cat") == "There is no cat in this picture of a man on a bench."
    assert affirmed(text, "dog") == "There is a dog in this picture of a man on a bench."


@pytest.mark.parametrize(
    ("name", "caption", "place"),
    [
        ("giraffe", "A giraffe standing in tall grass near a tree.", "in tall grass near a tree"),
        ("cat", "A cat is sleeping on a couch", "on a couch"),
        ("boat", "Two boats on the water", "on the water"),
        ("person", "A man throwing a frisbee in a park", ""),  # it is the frisbee that is there
        ("frisbee", "A man throwing a frisbee in a park", "in a park"),
        ("dog", "A dog with a toy in its mouth", ""),
        ("dog", "A dog in its basket", ""),
        ("bus", "A bus, on a street", ""),
        ("bus", "A bus on", ""),
        ("cat", "A dog on a street", ""),
        ("pizza", "A pizza on a plate with a fork", ""),  # who has the fork is not sure
        ("pizza", "A pizza on a plate and a fork", "on a plate"),
        ("toothbrush", "A boy with a toothbrush sitting on a toilet", ""),  # the boy sits
        ("umbrella", "A girl with an umbrella on a train", "on a train"),
        ("dog", "A man and a dog sitting on a bench", "on a bench"),
    ],
)
def test_where_a_caption_says_that_a_thing_is(name, caption, place):
    assert place_of(name, caption) == place


@pytest.mark.parametrize(
    ("text", "other", "there"),
    [
        ("A cat, not a dog in sight.", "A cat, not a bird in sight.", "A cat, a dog in sight."),
        ("Not a dog in sight, a cat naps.", "Not a bird in sight, a cat naps.",
         "A dog in sight, a cat naps."),
        ("A cat naps, and not a single dog is around.",
         "A cat naps, and not a single bird is around.", "A cat naps, and a dog is around."),
        ("A cat naps, but a dog is missing.", "A cat naps, but a bird is missing.",
         "A cat naps, and a dog is present."),
        ("A dog is absent as a cat naps.", "A bird is absent as a cat naps.",
         "A dog is present as a cat naps."),
        ("A cat naps, with no sign of a dog.", "A cat naps, with no sign of a bird.",
         "A cat naps, with a dog in sight."),
        ("A cat naps, and you won't find a dog there.",
         "A cat naps, and you won't find a bird there.",
         "A cat naps, and you will find a dog there."),
        ("A cat naps, free of any dogs.", "A cat naps, free of any birds.",
         "A cat naps, with dogs."),
        ("A cat naps, lacking a dog.", "A cat naps, lacking a bird.", "A cat naps, with a dog."),
        ("No visible dog, a cat naps.", "No visible bird, a cat naps.", "A dog, a cat naps."),
        ("A cat and other pets nap, but there isn't a dog in view.",
         "A cat and other pets nap, but there isn't a bird in view.",
         "A cat and other pets nap, and there is a dog in view."),
    ],
)  # fmt: skip
def test_sentences_as_models_of_several_styles_write_them(text, other, there):
    assert exchanged(text, "dog", "bird") == other
    assert affirmed(text, "dog") == there


def test_what_is_not_nearby_becomes_not_in_sight():
    assert of_scene("A cat naps, with no dog nearby.", "dog") == "A cat naps, with no dog in sight."
    assert affirmed("A dog is not in view, just a cat.", "dog") is None
