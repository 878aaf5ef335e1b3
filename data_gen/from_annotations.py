"""Negation pairs without any model, from captions and instance annotations in COCO's format.

For each caption: an absent object is proposed by how often it co-occurs with the image's
objects, its absence is verified from the image's instances and from all its captions, and the
caption is rewritten by a grammar of templates. Foils are the same templates said of an object
that is there. The output is the captions' JSON with these keys on each kept annotation:
`updated_caption`, `object`, `foils`, `provenance`, and for statistics `cue` and `position`.
"""

import argparse
import collections
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_gen.annotations import Scene, read_coco, read_scenes
from data_gen.cooccurrence import Cooccurrence
from negclip_jax.common.errors import InputError
from negclip_jax.language.nouns import mention, noun
from negclip_jax.language.templates import AFTER, ALONE, BEFORE, NEGATION, Template, fitting, select

AFFIRMED = ("{c} with {a}", "{c} and {a}", "{c}, and there is {a}", "there is {a}", "{a}")
AFFIRMED_ALONE = ("there is {a}", "{a}", "a picture of {a}")
TRIES = 20  # proposals for one caption before it is given up


@dataclass(frozen=True)
class Settings:
    """How to write: shares are between 0 and 1."""

    seed: int = 0
    before: float = 0.3  # share of captions whose negation comes first
    statements: float = 0.0  # share of captions replaced by a statement about the object alone
    foils: int = 2
    affirm: bool = False  # the second foil affirms the absent object
    random_objects: float = 0.0  # share of objects drawn evenly from all that are absent
    hold_out: tuple[str, ...] = ()


def write_pairs(
    captions: Mapping[str, Any], instances: Mapping[str, Any], settings: Settings
) -> tuple[dict[str, Any], collections.Counter]:
    """Returns the pairs file's content and how many captions ended how.

    A caption's pair depends on the seed, its id and the annotations, not on other captions' ids.
    Raises InputError for annotations that contradict themselves, ValueError for unknown names
    in `settings.hold_out`.
    """
    scenes = read_scenes(captions, instances)
    names = [category["name"] for category in instances["categories"]]
    proposer = Cooccurrence([s.present for s in scenes.values()], names, settings.random_objects)
    templates = select(settings.hold_out)
    kept, counts = [], collections.Counter()
    for row in captions["annotations"]:
        outcome, extra = rewrite(row, scenes.get(row["image_id"]), proposer, templates, settings)
        counts[outcome] += 1
        if extra:
            kept.append({**row, **extra})
    info = {
        "description": "negation pairs written from annotations by data_gen.from_annotations",
        "seed": settings.seed,
        "hold_out": list(settings.hold_out),
        "counts": dict(counts),
    }
    return {**captions, "info": info, "annotations": kept}, counts


def rewrite(
    row: Mapping[str, Any],
    scene: Scene | None,
    proposer: Cooccurrence,
    templates: Sequence[Template],
    settings: Settings,
) -> tuple[str, dict[str, Any]]:
    """One caption: its outcome ("written" or a reason) and the keys to add to its annotation."""
    caption = row["caption"]
    if scene is None:
        return "image without instance annotations", {}
    if not caption.strip():
        return "empty caption", {}
    if NEGATION.search(caption):
        return "caption negates already", {}
    rng = np.random.default_rng([settings.seed, row["id"]])
    drawn = proposer.draw(scene.present, TRIES, rng)
    absent = next((name for name in drawn if scene.lacks(name)), None)
    if absent is None:
        return "no absent object found", {}
    template = draw_template(caption, absent, templates, settings, rng)
    return "written", {
        "updated_caption": template.fill(caption, noun(absent)),
        "object": absent,
        "foils": write_foils(caption, absent, scene, template, templates, settings, rng),
        "provenance": f"instances, template {template.name}",
        "cue": template.cue,
        "position": template.position,
    }


def draw_template(
    caption: str,
    name: str,
    templates: Sequence[Template],
    settings: Settings,
    rng: np.random.Generator,
) -> Template:
    """A template that fits: first a position by its share, then any template evenly.

    "No" has the most templates, as it is the commonest cue in language.
    """
    alone = settings.statements
    shares = {ALONE: alone, BEFORE: (1 - alone) * settings.before}
    shares[AFTER] = 1 - sum(shares.values())
    options = {p: fitting(templates, p, caption, noun(name)) for p in shares}
    weights = np.array([shares[p] if options[p] else 0.0 for p in options])
    if not weights.sum():  # everything at the wished positions is held out
        weights = np.array([float(bool(o)) for o in options.values()])
    position = list(options)[rng.choice(len(options), p=weights / weights.sum())]
    fit = options[position]
    return fit[rng.integers(len(fit))]


def write_foils(
    caption: str,
    absent: str,
    scene: Scene,
    template: Template,
    templates: Sequence[Template],
    settings: Settings,
    rng: np.random.Generator,
) -> list[str]:
    """Captions that are false of the image: each negates an object that is there.

    The first keeps the pair's words and negates another object; one that the caption does not
    mention, since "a dog without a dog" would be told apart by its text alone. Further ones,
    and the first where everything is mentioned, are statements, or name the two objects of the
    pair with their roles exchanged ("a cat" absent, "a dog" present: "a cat but no dog").
    With `settings.affirm` the second foil says instead that the absent object is there.
    """
    present = [str(name) for name in rng.permutation(sorted(scene.present))]
    fresh = [n for n in present if not mention(n).search(caption)]
    foils = []
    for i, name in enumerate((fresh + [n for n in present if n not in fresh])[: settings.foils]):
        known = noun(name)
        if template.fits(caption, known) and (template.position == ALONE or name in fresh):
            foils.append(template.fill(caption, known))
            continue
        base, position = (noun(absent).some, AFTER) if i % 2 else ("", ALONE)
        options = fitting(templates, position, base, known) or [template]
        foils.append(options[rng.integers(len(options))].fill(base, known))
    if settings.affirm and settings.foils > 1:
        form = AFFIRMED_ALONE if template.position == ALONE else AFFIRMED
        words = noun(absent).some
        foils[1:] = [str(rng.choice(form)).format(c=caption.strip(" ."), a=words), *foils[2:]]
    return foils


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_gen.from_annotations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--captions", type=Path, required=True, help="COCO captions JSON")
    add("--instances", type=Path, required=True, help="COCO instances JSON of the same images")
    add("--out", type=Path, required=True, help="JSON to write, read by launch.py as data.pairs")
    add("--seed", type=int, default=0, help="another seed draws other objects and templates")
    add("--before", type=_share, default=0.3, help="share of negations before the caption")
    add(
        "--statements",
        type=_share,
        default=0.0,
        help="share of captions replaced by a statement about the object alone, 'there is no dog'",
    )
    add("--foils", type=int, default=2, help="false captions per pair, at most")
    add("--affirm", action="store_true", help="let the second foil affirm the absent object")
    add(
        "--random-objects",
        type=_share,
        default=0.0,
        help="share of objects drawn evenly from all absent ones, not by plausibility",
    )
    add(
        "--hold-out",
        default="",
        help="cue words or template names never to be used, separated by commas",
    )
    return parser


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share between 0 and 1")
    return value


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    settings = Settings(
        seed=args.seed,
        before=args.before,
        statements=args.statements,
        foils=args.foils,
        affirm=args.affirm,
        random_objects=args.random_objects,
        hold_out=tuple(name for name in args.hold_out.split(",") if name),
    )
    try:
        captions = read_coco(args.captions, ("images", "annotations"))
        instances = read_coco(args.instances, ("images", "annotations", "categories"))
        content, counts = write_pairs(captions, instances, settings)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(content), encoding="utf-8")
    except (InputError, ValueError, OSError) as error:
        sys.exit(f"data_gen.from_annotations: {error}")
    for outcome, number in counts.most_common():
        print(f"{number:8d}  {outcome}")
    print(f"{len(content['annotations'])} pairs in {args.out}")


if __name__ == "__main__":
    main()
