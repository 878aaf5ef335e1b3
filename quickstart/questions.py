"""The questions asked of held-out scenes: choices between captions, built from instances alone.

Every question is one scene and one or more choices; the first caption of a choice is the true one
(scoring never looks at the position). Questions depend on the instance file and the seed only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from negclip_jax.common import coco
from negclip_jax.language.grammar import TEMPLATES, held_out
from negclip_jax.language.inflection import Noun, noun
from negclip_jax.language.negation import ALONE
from quickstart.world import UNANNOTATED

# Kept out of the fine-tuning set, to be asked about afterwards. A new word never occurs in a
# fine-tuning caption at all; a new order is a known word at a place where it never stood.
NEW_WORDS = ("hasn't", "lacking", "nowhere", "cannot", "minus")
NEW_ORDERS = ("without-before", "without-there", "no-visible-before", "picture-no", "missing-alone")
HOLD_OUT = NEW_WORDS + NEW_ORDERS

# The rows of the table: key, what is asked, and what a scorer that knows nothing gets.
ROWS = {
    "affirmative": ("true caption or one of another scene or with a wrong object", 1 / 2),
    "existence": ("“there is no X” (absent) or “there is no Z” (present)", 1 / 2),
    "with_no": ("“a Y with no X” or “a Y with no Z”, Z present", 1 / 2),
    "unseen_cues": ("the same choices in words and orders kept out of fine-tuning", 1 / 2),
    "seen_cues": ("the same choices in the words and orders of fine-tuning", 1 / 2),
    "absent_polarity": ("“there is no X” or “there is an X”, X absent", 1 / 2),
    "present_polarity": ("“there is a Z” or “there is no Z”, Z present", 1 / 2),
    "both_polarities": ("the two rows above, both right", 1 / 4),
    "hybrid": ("“a Z but no X” among it, “an X but no Z”, “an X” and “there is no Z”", 1 / 4),
    "mcq": ("“there is no X” among it, “an X” and “a Y but no Z”, Z present", 1 / 3),
    "never_existence": ("existence, X of a kind that no scene denied in training", 1 / 2),
    "never_both": ("both polarities of two such kinds", 1 / 4),
    "image_to_text": ("the affirmative caption of a scene among those of 200", 1 / 200),
    "text_to_image": ("the scene of an affirmative caption among 200", 1 / 200),
}
RETRIEVED = 200  # scenes
REQUIRED = ("affirmative", "existence", "with_no", "unseen_cues")


@dataclass(frozen=True)
class Question:
    """One question of a row: right only if every choice's first caption scores highest.

    `image` is the scene's file name, `group` a sub-row such as the cue asked about.
    """

    row: str
    image: str
    choices: tuple[tuple[str, ...], ...]
    group: str = ""


@dataclass(frozen=True)
class Scene:
    """A scene's file name, its objects with their colours, and the kinds that are not in it.

    `objects` are (colour, kind). Both tuples are in random order, but those kinds that nobody
    annotated come last.
    """

    image: str
    objects: tuple[tuple[str, str], ...]
    absent: tuple[str, ...]

    @property
    def present(self) -> tuple[str, ...]:
        """The kinds in the scene."""
        return tuple(kind for _, kind in self.objects)

    @property
    def is_annotated(self) -> bool:
        """Whether an object is of an annotated kind."""
        return any(kind not in UNANNOTATED for kind in self.present)


def describe(objects: Sequence[tuple[str, str]]) -> str:
    """'a red star and a blue moon'."""
    return " and ".join(noun(f"{colour} {kind}").a for colour, kind in objects)


def read_scenes(instances: Path, seed: int) -> list[Scene]:
    """Scenes of an instance file; objects of a scene are shuffled by the seed."""
    content = coco.read_lists(instances, ("images", "categories", "annotations"))
    names = {category["id"]: category["name"] for category in content["categories"]}
    objects: dict[int, list[tuple[str, str]]] = {image["id"]: [] for image in content["images"]}
    for row in content["annotations"]:
        thing = (row["attributes"]["colour"], names[row["category_id"]])
        objects[row["image_id"]].append(thing)
    scenes = []
    for image in content["images"]:
        rng = np.random.default_rng([seed, image["id"]])
        inside = sorted(objects[image["id"]])
        inside = [inside[i] for i in rng.permutation(len(inside))]
        inside.sort(key=lambda thing: thing[1] in UNANNOTATED)
        outside = sorted(set(names.values()) - {kind for _, kind in inside})
        outside = [outside[i] for i in rng.permutation(len(outside))]
        outside.sort(key=UNANNOTATED.__contains__)
        scenes.append(Scene(image["file_name"], tuple(inside), tuple(outside)))
    return scenes


# Of the grammar that the pairs are written with; "nobody" and its like say nothing about shapes.
_PLAIN = [t for t in TEMPLATES if t.style != "natural" and not t.people]
_TEMPLATES = {
    "unseen_cues": [t for t in _PLAIN if t in held_out(HOLD_OUT)],
    "seen_cues": [t for t in _PLAIN if t not in held_out(HOLD_OUT)],
}


def build(scenes: Sequence[Scene]) -> list[Question]:
    """All questions, one per row and scene. Each scene needs two objects and two absent ones.

    Rows about negation deny annotated kinds, in scenes that hold one; the `never_` rows deny the
    others. Retrieval has no questions, see `distinct`.
    """
    questions = []

    def ask(row: str, scene: Scene, *choices: tuple[str, ...], group: str = "") -> None:
        questions.append(Question(row, scene.image, choices, group))

    for i, scene in enumerate(scenes):
        other = scenes[(i + 1) % len(scenes)]
        wrong, group = describe(other.objects), "other scene"
        if i % 2 == 0 or set(other.objects) <= set(scene.objects):
            *most, (colour, _) = scene.objects
            wrong, group = describe([*most, (colour, scene.absent[0])]), "wrong object"
        ask("affirmative", scene, (describe(scene.objects), wrong), group=group)
        # X is absent, Z and Y are there; Y is only said to be, not denied.
        never_x, never_z = noun(scene.absent[-1]), noun(scene.present[-1])
        x, (z, y) = noun(scene.absent[0]), (noun(name) for name in scene.present[:2])
        if scene.absent[-1] in UNANNOTATED:
            ask("never_existence", scene, (f"there is no {never_x.one}", f"there is no {z.one}"))
            if scene.present[-1] in UNANNOTATED:
                ask("never_both", scene, *_polarities(never_x, never_z))
        if not scene.is_annotated:
            continue
        absent, present = _polarities(x, z)
        ask("existence", scene, (f"there is no {x.one}", f"there is no {z.one}"))
        ask("with_no", scene, (f"{y.a} with no {x.one}", f"{y.a} with no {z.one}"))
        ask("absent_polarity", scene, absent)
        ask("present_polarity", scene, present)
        ask("both_polarities", scene, absent, present)
        swapped = f"{x.a} but no {z.one}"
        ask("hybrid", scene, (f"{z.a} but no {x.one}", swapped, x.a, f"there is no {z.one}"))
        ask("mcq", scene, (f"there is no {x.one}", x.a, f"{y.a} but no {z.one}"))
        for row, templates in _TEMPLATES.items():
            template = templates[i % len(templates)]
            base = "" if template.position == ALONE else y.a
            choice = (template.fill(base, x), template.fill(base, z))
            group = template.cue
            if row == "unseen_cues":
                kind = "new word" if template.cue in NEW_WORDS else "new order"
                group = f"{kind}: {template.cue}, {template.position}"
            ask(row, scene, choice, group=group)
    return questions


def _polarities(x: Noun, z: Noun) -> tuple[tuple[str, str], tuple[str, str]]:
    """Both questions of X, which is absent, and of Z, which is there."""
    return (f"there is no {x.one}", f"there is {x.a}"), (f"there is {z.a}", f"there is no {z.one}")


def distinct(scenes: Sequence[Scene]) -> list[list[Scene]]:
    """Groups of RETRIEVED scenes, no two of a group with the same objects: for retrieval.

    What is left over is a group where there is no other.
    """
    first = list({frozenset(scene.objects): scene for scene in reversed(scenes)}.values())[::-1]
    groups = [first[i : i + RETRIEVED] for i in range(0, len(first), RETRIEVED)]
    return groups[:-1] if len(groups) > 1 and len(groups[-1]) < RETRIEVED else groups
