"""The layouts that the export command writes: how each is saved, read back and loaded elsewhere."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from negclip_jax.interop import diffusers, huggingface, open_clip, openai, readers, towers
from negclip_jax.interop.config import tokenizer_beside
from negclip_jax.models.clip import CLIPConfig
from negclip_jax.models.siglip import SigLIPConfig

Loaded = tuple[CLIPConfig, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A way to write weights.

    Attributes:
      save: `(out, config, params, base=, tokenizer=, preprocessor=, dtype=, overwrite=)`.
      load: reads `(config, params)` back from the directory, for the check after writing.
      usage: code that loads the result, with `{out}` for the directory, or a function of
        configuration and directory that gives it.
      outputs: methods of the model whose results must be the same after reading back.
      note: function of the configuration to a line that is printed, if there is one.
      architecture: what it holds where that is one tower, a key of `towers.ARCHITECTURES`.
    """

    save: Callable[..., Any]
    load: Callable[[Path], Loaded]
    usage: str | Callable[[CLIPConfig, Path], str]
    outputs: tuple[str, ...] = ("encode_image", "encode_text")
    note: Callable[[CLIPConfig], str] | None = None
    architecture: str = ""

    def code(self, config: CLIPConfig, stage: Path, out: Path) -> str:
        """The lines that load an export that lies in `stage` and will be `out`."""
        usage = self.usage if isinstance(self.usage, str) else self.usage(config, stage)
        return usage.format(out=out)


def _load_huggingface(directory: Path) -> Loaded:
    config = huggingface.read_config(directory)
    return config, huggingface.load_params(directory, config)


def _load_any(directory: Path) -> Loaded:
    return readers.read_any(directory)[:2]


def _transformers_usage(config: CLIPConfig, out: Path) -> str:
    """The processor needs a tokenizer and an image processor, which not every base has."""
    name = "SiglipModel" if isinstance(config, SigLIPConfig) else "CLIPModel"
    model = f'model = {name}.from_pretrained("{{out}}")'
    images = any((out / f"{kind}_config.json").is_file() for kind in ("processor", "preprocessor"))
    if not (images and tokenizer_beside(out)):
        return f"from transformers import {name}\n{model}"
    processor = 'processor = AutoProcessor.from_pretrained("{out}")'
    return f"from transformers import AutoProcessor, {name}\n{model}\n{processor}"


LAYOUTS = {
    "huggingface": Layout(
        save=huggingface.save,
        load=_load_huggingface,
        usage=_transformers_usage,
    ),
    "openai": Layout(
        save=openai.save,
        load=_load_any,
        # clip.load alone rounds the weights to float16; the last line brings back all digits.
        usage=(
            "import clip, torch\n"
            'model, preprocess = clip.load("{out}/model.pt", device="cpu")\n'
            'model.float().load_state_dict(torch.load("{out}/model.pt", weights_only=True))'
        ),
    ),
    "open_clip": Layout(
        save=open_clip.save,
        load=_load_any,
        usage=(
            "import open_clip\n"
            'model, _, preprocess = open_clip.create_model_and_transforms("local-dir:{out}")\n'
            'tokenizer = open_clip.get_tokenizer("local-dir:{out}")'
        ),
    ),
    "diffusers": Layout(
        save=diffusers.save,
        load=diffusers.load,
        usage=lambda config, _: diffusers.usage(config),
        outputs=("encode_text",),
        note=diffusers.fitting_pipelines,
        architecture=diffusers.ARCHITECTURE,
    ),
}


def _of_tower(architecture: str) -> Layout:
    """Hugging Face's layout of one tower; `architecture` is a key of `towers.ARCHITECTURES`."""
    tower, projected = towers.ARCHITECTURES[architecture]
    encode = "encode_text" if tower is towers.TEXT else "encode_image"
    return Layout(
        save=functools.partial(towers.save_tower, architecture=architecture),
        load=towers.load_alone,
        usage=(
            f"from transformers import {architecture}\n"
            f'model = {architecture}.from_pretrained("{{out}}")'
        ),
        outputs=(encode if projected else tower.name,),
        architecture=architecture,
    )


# Classes that a layout can be written as beside its usual one: their layout's name, and they.
ARCHITECTURES = {
    "CLIPModel": ("huggingface", LAYOUTS["huggingface"]),
    **{name: ("huggingface", _of_tower(name)) for name in towers.ARCHITECTURES},
    "CustomTextCLIP": (
        "open_clip",
        dataclasses.replace(
            LAYOUTS["open_clip"], save=functools.partial(open_clip.save, custom_text=True)
        ),
    ),
}
