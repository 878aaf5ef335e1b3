"""The model card (`README.md`) of an export: what it is, where from, how good, how to load it.

The header is what the Hugging Face Hub reads (https://huggingface.co/docs/hub/model-cards).
Whatever is not known is said to be not known: a licence above all is never made up.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2

from negclip_jax.common import storage
from negclip_jax.common.renamed_keys import RENAMED, with_new_keys
from negclip_jax.interop.files import CheckpointError, read_json

CARD, BASE_CARD = "README.md", "README.base.md"
_RECIPE = (
    *("data.pairs", "data.images", "data.caption_mode", "data.original_fraction", "data.foils"),
    "data.statements",
    *("train.total", "train.batch_size", "train.objective", "train.foil_weight", "train.ema_decay"),
    *("train.anchor_weight", "train.distill_weight", "train.image_choice_weight"),
    *("optim.lr", "optim.schedule", "optim.warmup", "optim.weight_decay", "optim.freeze"),
    *("optim.lora_rank", "optim.lora_alpha"),
    *("model.dtype", "seed"),
)
_MARK = "<!-- written by negclip_jax.interop.export -->"
_LIBRARIES = {"huggingface": "transformers", "openai": "clip"}  # others are called as the layout
_ABSOLUTE = re.compile(r"(?<![\w:/.])/(?:[^\s/'\"|`,]+/)+(?=[^\s/])")
# A folder of the Hub's cache, which is the repository of its name.
_SNAPSHOT = re.compile(r"/?[^\s'\"|`]*models--([\w.-]+?)--([\w.-]+)/snapshots/\w+")


def write(
    directory: Path, card: Mapping[str, Any], places: Iterable[Path | str | None] = ()
) -> None:
    """Writes `README.md`; the base's own, which was copied there, becomes `README.base.md`.

    A card of this command, in an export of an export, is replaced.

    Args:
      directory: of the export.
      card: the values of `model_card.txt`: `title` of the model, `layout`, `source` as text,
        `base_model` (a Hub name, a path, or "" if not known), `licence` in the Hub's words ("mit";
        "" if not known), `facts` {name: text} of its arithmetic, `recipe` {key: value} of the
        training (empty without a run), `scores` {name: text}, `check` (result of reading the export
        back) and the `code` that loads it.
      places: paths whose last name alone is published, as of paths among the card's settings:
        where they lie on this machine is nothing to publish.
    """
    settings = [value for value in card["recipe"].values() if "," not in str(value)]  # no lists
    places = [*places, *settings, card["base_model"]]
    folders = {str(Path(p).expanduser().absolute().parent) for p in places if _is_local(p)}
    folders |= {str(Path(p).parent) for p in places if _is_local(p) and str(p)[0] in "~/."}
    written = _SNAPSHOT.sub(r"\1/\2", text(card))
    for folder in sorted(folders - {"/", "."}, key=len, reverse=True):
        written = written.replace(f"{folder}/", "")
    written = _ABSOLUTE.sub("", written)  # within a list of files, or a message
    path = directory / CARD
    if path.is_file() and _MARK not in path.read_text(encoding="utf-8", errors="replace"):
        path.rename(directory / BASE_CARD)
    path.write_text(written, encoding="utf-8")


def _is_local(place: Any) -> bool:
    """Whether it is a path of this machine, and not a setting, a bucket or a name of the Hub."""
    if not isinstance(place, str | Path) or not str(place) or storage.is_remote(place):
        return False
    return str(place).startswith(("/", "~", "./", "../")) or Path(place).exists()


def text(card: Mapping[str, Any]) -> str:
    """The card as Markdown with a YAML header; see `write`."""
    from huggingface_hub import ModelCardData  # a third of a second

    template = Path(__file__).with_suffix(".txt")
    loader = jinja2.FileSystemLoader(template.parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, keep_trailing_newline=True)
    environment.filters["cell"] = lambda value: " ".join(str(value).split()).replace("|", "\\|")
    name, layout = card["base_model"], card["layout"]
    of_hub = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) and not _is_local(name)
    drawn = layout == "diffusers"
    header = ModelCardData(
        license=card["licence"] or "unknown",
        library_name=_LIBRARIES.get(layout, layout),
        pipeline_tag="text-to-image" if drawn else "zero-shot-image-classification",
        tags=["clip", "negation"],
        base_model=name if of_hub else None,
    ).to_yaml()
    return environment.get_template(template.name).render(**card, header=header, mark=_MARK)


def recipe_of_run(workdir: Path) -> dict[str, Any]:
    """Settings of a run that decide what was learned, and the revision of the code."""
    path = workdir / "config.json"
    config = read_json(path) if path.is_file() else {}
    known = {key: _at(config, key) for key in (*RENAMED, *_RECIPE)}
    known = with_new_keys({k: v for k, v in known.items() if v is not None}, warn=False)
    recipe = {key: known[key] for key in _RECIPE if key in known}
    environment = workdir / "environment.json"
    if environment.is_file():
        recipe["git_revision"] = read_json(environment).get("git_revision")
    return {key: value for key, value in recipe.items() if value is not None}


def base_of_run(workdir: Path) -> str:
    """Name of the checkpoint that a run started from; empty where it is not written down."""
    path = workdir / "config.json"
    return (_at(read_json(path), "model.checkpoint") if path.is_file() else None) or ""


def _at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config


def scores_of_run(workdir: Path, step: int) -> dict[str, str]:
    """What the run's evaluators measured at a step, {name: value}."""
    path = workdir / "metrics.jsonl"
    if not path.is_file():
        return {}
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row.get("step") == step:
            found |= {f"{k} (step {step})": f"{v:.4g}" for k, v in row.items() if "/" in k}
    return found


def scores_of_evaluation(path: Path) -> dict[str, str]:
    """Headline numbers, with their intervals, of the `results.json` that `python -m evals` wrote.

    Raises CheckpointError for another file, or none.
    """
    found = {}
    try:
        for benchmark, entry in read_json(path)["benchmarks"].items():
            for row, measured in entry["rows"].items():
                for metric, value in measured["metrics"].items():
                    if value["headline"]:
                        interval = f"({value['low']:.3f} to {value['high']:.3f})"
                        found[f"{benchmark}, {metric}, {row}"] = f"{value['value']:.3f} {interval}"
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path} is no results.json of `python -m evals`: {error}") from error
    return found


def licence_of(directory: Path | None) -> str:
    """The licence that the header of a directory's card states; empty where it states none."""
    for name in (BASE_CARD, CARD):
        path = directory / name if directory else None
        if path is not None and path.is_file():
            content = path.read_text(encoding="utf-8", errors="replace")
            header = content.split("\n---", 1)[0] if content.startswith("---") else ""
            stated = re.search(r"^license:\s*[\"']?([\w.-]+)[\"']?\s*$", header, re.MULTILINE)
            if stated and stated[1] != "unknown":
                return stated[1]
    return ""
