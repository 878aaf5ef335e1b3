"""A Stable Diffusion pipeline twice: with its own text encoder and with a tuned one.

    Pipelines("stable-diffusion-v1-5", "runs/l14").draw("tuned", "a man not wearing a hat", [7])

Only the text encoder that has the tuned tower's architecture is replaced; U-Net, VAE, scheduler and
tokenizers are the same objects for both. What the U-Net reads of an encoder, by the code of
diffusers 0.42: Stable Diffusion 1.x the states of all positions after the final LayerNorm, padding
included; SDXL those before the last block, of both encoders, and the projected state at the end
token of the second. Fine-tuning supervised that last state alone.

The safety checker is left out: it paints black over pictures, of one model and not of the other,
and black pictures would count as wrong ones. So is SDXL's watermark.
"""

import dataclasses
import hashlib
import inspect
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

from negclip_jax.common import extras
from negclip_jax.common.errors import InputError
from negclip_jax.data.tokenizer import load_tokenizer
from negclip_jax.interop import huggingface
from negclip_jax.interop.config import text_config
from negclip_jax.interop.files import read_json
from negclip_jax.interop.readers import Checkpoint, CheckpointInfo, read_any
from negclip_jax.models.clip import CLIPConfig, TextConfig
from negclip_jax.models.siglip import SigLIPConfig

MODELS = ("base", "tuned")
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_FAR = 0.5  # relative distance of weights that no fine-tuning goes
_PROJECTED = "CLIPTextModelWithProjection"
# Class of the pipeline: its text encoders, their tokenizers, what the U-Net reads of each.
_PIPELINES = {
    "StableDiffusionPipeline": {
        "text_encoder": ("tokenizer", "states of all positions after the final LayerNorm")
    },
    "StableDiffusionXLPipeline": {
        "text_encoder": ("tokenizer", "states of all positions before the last block"),
        "text_encoder_2": (
            "tokenizer_2",
            "states of all positions before the last block, and the projected end token",
        ),
    },
}
# The end token's rule is the pipeline's, so that it may differ.
_COMPARED = {
    "layers": "{} layers",
    "heads": "{} heads",
    "mlp_width": "MLPs {} wide",
    "vocab_size": "{} tokens",
    "context_length": "{} positions",
    "hidden_act": "the activation {}",
    "layer_norm_eps": "epsilon {:g} in LayerNorm",
}


@dataclasses.dataclass(frozen=True)
class Slot:
    """A text encoder's place in a pipeline."""

    name: str  # "text_encoder" or "text_encoder_2"
    tokenizer: str  # name of the tokenizer that feeds it
    architecture: str  # its class in transformers
    config: TextConfig  # its sizes
    projection_dim: int | None  # of its projected state; None where it has none
    states: str  # what the U-Net reads of it, for messages


def read_slots(directory: Path) -> tuple[str, list[Slot], int]:
    """Class of a pipeline, its text encoders, and the width of the states that its U-Net reads.

    Raises InputError where the directory holds no Stable Diffusion 1.x or SDXL pipeline.
    """
    index = directory / "model_index.json"
    if not index.is_file():
        raise InputError(
            f"{directory} has no model_index.json: --pipeline is the directory of a diffusers "
            "pipeline (Stable Diffusion 1.x or SDXL), as its save_pretrained or a "
            "download writes it"
        )
    raw = read_json(index)
    kind = raw.get("_class_name")
    if kind not in _PIPELINES:
        raise InputError(
            f"{index}: the pipeline is a {kind}; text encoders are replaced in "
            f"{' and '.join(_PIPELINES)}"
        )
    slots = []
    for name, (tokenizer, states) in _PIPELINES[kind].items():
        classes = raw.get(name, [None])
        if name == "text_encoder" and classes[0] is None:
            continue
        architecture = classes[1] if isinstance(classes, list) and len(classes) == 2 else None
        wanted = (_PROJECTED,) if name == "text_encoder_2" else ("CLIPTextModel", _PROJECTED)
        if architecture not in wanted:
            raise InputError(f"{index}: {name} is a {architecture}, not a {wanted[0]}")
        path = directory / name / "config.json"
        own = read_json(path)
        try:
            config = text_config(own)
        except ValueError as error:
            raise InputError(f"{path}: {error}") from error
        projection = own.get("projection_dim", 512) if architecture == _PROJECTED else None
        slots.append(Slot(name, tokenizer, architecture, config, projection, states))
    width = read_json(directory / "unet" / "config.json").get("cross_attention_dim")
    together = sum(slot.config.width for slot in slots)
    if width != together:  # the first attention would fail, with any text encoder
        raise InputError(
            f"{directory}: the U-Net reads states of width {width} (cross_attention_dim in "
            f"unet/config.json), and the pipeline's own text encoders give {together}: its parts "
            "do not belong together"
        )
    return kind, slots, width


def read_tower(model: str, activation: str | None = None) -> Checkpoint:
    """The model whose text tower is used, from whatever `interop.readers.read_any` reads.

    `+ema` behind it asks for a run's moving average; a directory of a CLIPTextModel alone and an
    export with `--layout=diffusers` are read as well. Raises InputError.
    """
    options = {"activation": activation, "tower_class": "CLIPTextModel"}
    return read_any(model.removesuffix("+ema"), ema=model.endswith("+ema"), **options)


def fitting_slot(
    slots: list[Slot],
    config: CLIPConfig,
    info: CheckpointInfo,
    *,
    base: str,
    unet_width: int,
    wanted: str = "",
) -> Slot:
    """The encoder that a model's text tower replaces: the first of its architecture.

    `base` names the pipeline in messages, `wanted` is a slot's name or "" for any. Raises
    InputError that says how the tower differs from every encoder.
    """
    if isinstance(config, SigLIPConfig):
        raise InputError(f"{info.label} is a SigLIP; the text encoders of {base} are CLIP's")
    known = [slot.name for slot in slots]
    if wanted and wanted not in known:
        raise InputError(f"--encoder={wanted}: {base} has {' and '.join(known)}")
    candidates = [slot for slot in slots if wanted in ("", slot.name)]
    of_width = [slot for slot in candidates if slot.config.width == config.text.width]
    if not of_width:
        widths = " and ".join(f"{slot.config.width} ({slot.name})" for slot in candidates)
        raise InputError(
            f"the text tower of {info.label} is {config.text.width} wide and does not fit {base}, "
            f"whose U-Net reads states of width {unet_width} from encoders of width {widths}. "
            "Stable Diffusion 1.x takes the tower of ViT-L/14 (768), SDXL that and the one of "
            "ViT-bigG/14 (1280)"
        )
    different = []
    for slot in of_width:
        pairs = [
            (words.format(getattr(slot.config, field)), words.format(getattr(config.text, field)))
            for field, words in _COMPARED.items()
            if getattr(slot.config, field) != getattr(config.text, field)
        ]
        if not pairs and slot.projection_dim not in (None, config.projection_dim):
            pairs = [(f"a projection to {slot.projection_dim}", f"one to {config.projection_dim}")]
        if not pairs:
            return slot
        theirs, ours = pairs[0]
        source = f" ({info.activation_source})" if "activation" in ours else ""
        different.append(f"{slot.name} has {theirs}, the tower {ours}{source}")
    raise InputError(f"the text tower of {info.label} does not fit {base}: {'; '.join(different)}")


def build(
    transformers: ModuleType, slot: Slot, config: CLIPConfig, params: dict[str, Any], dtype: Any
) -> Any:
    """A model's text tower as the slot's class of transformers, in PyTorch's `dtype`."""
    # The end token is found by the pipeline's rule, with the pipeline's tokenizer.
    rule = {"eos_token_id": slot.config.eos_token_id, "pooling": slot.config.pooling}
    text = dataclasses.replace(config.text, **rule)
    config = dataclasses.replace(config, text=text)
    # Through a file: the names of the tensors change from version to version of transformers, and
    # from files alone it reads all of them.
    with tempfile.TemporaryDirectory(prefix="text-encoder-") as folder:
        huggingface.save(folder, config, params, architecture=slot.architecture)
        encoder, loading = getattr(transformers, slot.architecture).from_pretrained(
            folder, dtype=dtype, output_loading_info=True
        )
    if loading["missing_keys"]:
        raise InputError(
            f"this version of transformers does not find {len(loading['missing_keys'])} of the "
            f"text encoder's tensors ({min(loading['missing_keys'])}): install another"
        )
    return encoder.eval()


def libraries() -> tuple[ModuleType, ModuleType, ModuleType]:
    """diffusers, torch and transformers; raises InputError that names the extra to install."""
    names = ("torch", "transformers", "diffusers")
    torch, transformers, diffusers = (
        extras.require(name, extra="diffusers", why="drawing pictures") for name in names
    )
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    return diffusers, torch, transformers


class Pipelines:
    """The base pipeline and the one with the tuned encoder, which share all other parts.

    `facts` are {"base": {name: words}, "tuned": ...}, what the pictures depend on, for people;
    `settings` the same for comparison, as JSON keeps it, with fingerprints of all weights; `notes`
    lines about what looks odd.
    """

    def __init__(
        self,
        base: str,
        model: str,
        *,
        device: str = "",
        dtype: str = "float32",
        encoder: str = "",
        steps: int = 50,
        guidance: float | None = None,
        size: int | None = None,
        activation: str | None = None,
    ):
        """Loads both.

        `base` is the directory of a Stable Diffusion 1.x or SDXL pipeline, or its id on the Hub,
        `model` has the tuned text tower (see `read_tower`). Without a `device` of PyTorch the
        first GPU is taken, or the processor; without `encoder`, `guidance` and `size` the encoder
        that fits, and the pipeline's own. Raises InputError for no such pipeline or checkpoint, a
        tower that does not fit, a missing extra.
        """
        self._diffusers, self._torch, self._transformers = libraries()
        directory = self._directory(base)
        kind, slots, unet_width = read_slots(directory)
        config, params, info = read_tower(model, activation)
        slot = fitting_slot(slots, config, info, base=base, unet_width=unet_width, wanted=encoder)
        torch = self._torch
        try:
            self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
            torch.zeros(1, device=self._device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"--device={device} cannot be used: {reason}") from error
        self._dtype = getattr(torch, dtype)
        self._pipeline = self._load(directory, kind)
        self._slot, own = slot.name, getattr(self._pipeline, slot.name)
        self._encoders = {
            "base": own,
            "tuned": build(self._transformers, slot, config, params, self._dtype).to(self._device),
        }
        defaults = inspect.signature(type(self._pipeline).__call__).parameters
        self._call = {
            "num_inference_steps": steps,
            "guidance_scale": defaults["guidance_scale"].default if guidance is None else guidance,
        }
        scale = self._pipeline.vae_scale_factor
        self._size = size or self._pipeline.unet.config.sample_size * scale
        if self._size % max(8, scale):
            raise InputError(f"--size={self._size} is not a multiple of {max(8, scale)} pixels")
        self._tokenizer = getattr(self._pipeline, slot.tokenizer)
        self._info, self._config = info, config
        self.notes: list[str] = []
        self._describe(kind, slot, dtype)

    def draw(self, model: str, prompt: str, seeds: Sequence[int]) -> list[Image.Image]:
        """One picture a seed, as one batch, by "base" or "tuned".

        The noise comes from the processor: equal on every device. InputError for too little memory.
        """
        setattr(self._pipeline, self._slot, self._encoders[model])
        generators = [self._torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        try:
            size = {"height": self._size, "width": self._size, "output_type": "pil"}
            options = {"generator": generators} | size | self._call
            return self._pipeline(prompt=[prompt] * len(seeds), **options).images
        except self._torch.OutOfMemoryError as error:
            raise InputError(
                f"a batch of {len(seeds)} at {self._size} pixels does not fit into the memory of "
                f"{self._device}: give a smaller --batch-size or --size, or --dtype=float16"
            ) from error

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Notes prompts that are cut, and checks that both models read the same words.

        Raises InputError where the checkpoint's own tokenizer gives other ids than the pipeline's.
        """
        limit = self._tokenizer.model_max_length
        ids = {text: self._tokenizer(text).input_ids for text in prompts}
        cut = [text for text in prompts if len(ids[text]) > limit]
        if cut:
            shown = f"{len(cut)} of {len(prompts)} prompts are cut at {limit} tokens"
            self.notes.append(f"{shown}, such as {cut[0][:60]!r}")
        if self._info.tokenizer is None:
            return
        length = self._config.text.context_length
        own = load_tokenizer(self._info.tokenizer, context_length=length)
        # On plain text alone: OpenAI's cleaning of other text is not transformers'.
        plain = (text for text in prompts if text.isascii() and "&" not in text)
        other = next((t for t in plain if own.encode(t) != ids[t][1:-1]), None)
        if other is not None:
            raise InputError(
                f"{self._info.label} was trained with another vocabulary than the pipeline's: "
                f"{other!r} is tokens {own.encode(other)} there and {ids[other][1:-1]} here, so "
                "the tower would read other words"
            )

    def _directory(self, base: str) -> Path:
        path = Path(base).expanduser()
        if path.exists() or not _HUB_ID.fullmatch(base):
            return path
        try:
            return Path(self._diffusers.DiffusionPipeline.download(base, use_safetensors=True))
        except Exception as error:  # the Hub's errors have no common base
            reason = str(error).strip().split("\n")[0]
            raise InputError(
                f"{base!r} is not a local directory, and the Hugging Face Hub did not give it "
                f"({type(error).__name__}: {reason}); check the name and the network, or download "
                "the pipeline elsewhere and give its directory"
            ) from error

    def _load(self, directory: Path, kind: str) -> Any:
        options = {"safety_checker": None, "requires_safety_checker": False}
        if kind == "StableDiffusionXLPipeline":
            options = {"add_watermarker": False}
        names = {path.name for path in (directory / "unet").glob("diffusion_pytorch_model*")}
        # Where only such files were downloaded; None is the plain ones.
        variant = "fp16" if names and all(".fp16" in name for name in names) else None
        try:
            pipeline = getattr(self._diffusers, kind).from_pretrained(
                directory, local_files_only=True, variant=variant, **options
            )
        except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"{directory} cannot be loaded as a {kind}: {reason}") from error
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(self._device, self._dtype)

    def _describe(self, kind: str, slot: Slot, dtype: str) -> None:
        scheduler = self._pipeline.scheduler
        parts = {
            name: _digest(self._torch, module.state_dict())
            for name, module in sorted(self._pipeline.components.items())
            if isinstance(module, self._torch.nn.Module)
        }
        plain = {  # as JSON keeps it; private entries say which version of the library wrote them
            name: value if isinstance(value, bool | int | float | str | None) else str(value)
            for name, value in sorted(scheduler.config.items())
            if not name.startswith("_")
        }
        tuned = _digest(self._torch, self._encoders["tuned"].state_dict())
        self.settings = {
            "pipeline": kind,
            "replaced": slot.name,
            "steps": self._call["num_inference_steps"],
            "guidance": float(self._call["guidance_scale"]),
            "size": self._size,
            "dtype": dtype,
            "scheduler": [type(scheduler).__name__, plain],
            "weights": parts,
            "tuned encoder": tuned,
        }
        encoders = (self._encoders[name].named_parameters() for name in MODELS)
        own, other = ({n: p.detach().cpu().double() for n, p in named} for named in encoders)
        norm = sum(float(own[n].square().sum()) for n in own)
        distance = (sum(float((other[n] - own[n]).square().sum()) for n in own) / norm) ** 0.5
        if not distance:
            self.notes.append("the tuned encoder has the same weights as the pipeline's own")
        elif distance > _FAR:
            self.notes.append(
                f"the tuned encoder is far from the pipeline's own (its weights differ by "
                f"{distance:.0%} of their norm): the U-Net was trained on other states"
            )
        common = {
            "pipeline": f"{kind}, {self._size} pixels, {dtype} on {self._device}",
            "sampling": f"{type(scheduler).__name__}, {self._call['num_inference_steps']} steps, "
            f"guidance {self._call['guidance_scale']:g}",
            "U-Net reads": slot.states,
        }
        info = self._info
        self.facts = {
            "base": {"text encoder": "the pipeline's own", **common},
            "tuned": {
                "text encoder": f"{slot.name} from {info.label} ({info.layout})",
                "activation": f"{self._config.text.hidden_act} ({info.activation_source})",
                "moved by": f"{distance:.2%} of its weights' norm",
                **common,
            },
        }


def _digest(torch: ModuleType, tensors: dict[str, Any]) -> str:
    """Hash of names, types and values, whatever file and device they came from."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        sha.update(flat.view(torch.uint8).numpy().data)
    return sha.hexdigest()[:24]
