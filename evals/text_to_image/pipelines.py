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

import hashlib
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

from evals.text_to_image.encoders import Slot, build, fitting_slot, read_slots, read_tower
from negclip_jax.common import extras
from negclip_jax.common.errors import InputError
from negclip_jax.data.tokenizer import load_tokenizer

MODELS = ("base", "tuned")
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_FAR = 0.5  # relative distance of weights that no fine-tuning goes


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
        `model` has the tuned text tower (`encoders.read_tower`). Without a `device` of PyTorch the
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

        The noise comes from the processor: equal on every device. Raises InputError where the
        device's memory does not suffice.
        """
        setattr(self._pipeline, self._slot, self._encoders[model])
        generators = [self._torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        try:
            return self._pipeline(
                prompt=[prompt] * len(seeds),
                height=self._size,
                width=self._size,
                generator=generators,
                output_type="pil",
                **self._call,
            ).images
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
