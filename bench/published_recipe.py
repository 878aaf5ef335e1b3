"""NegationCLIP's released training recipe in PyTorch, on transformers' CLIP.

What the released script does, in its order: decode a photo with Pillow and apply CLIP's transform,
every epoch anew; negated captions only, tokenized to all positions; symmetric cross-entropy over
the batch; everything trained but the vision tower, its projection and the final text LayerNorm;
`torch.optim.AdamW` with nothing set but the learning rate (so weight decay is 0.01, also on biases
and on the logit scale); float32; no schedule, no clipping, and no bound on the logit scale.

This is the reference that speed is compared with and that tests replicate step by step. `Reference`
times it, in a process of its own.
"""

import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from torch.utils.data import DataLoader
from transformers import CLIPModel, CLIPTokenizer

from bench.harness import matmul_rate, peak_memory

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

FROZEN = ("vision_model.", "visual_projection.", "text_model.final_layer_norm.")
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class PublishedRecipe:
    """A model under training; `step` is one update."""

    def __init__(self, checkpoint: pathlib.Path, *, lr: float = 1e-6, attention: str = "sdpa"):
        """Loads a Hugging Face directory; `attention` is transformers' name of a kernel."""
        self.model = CLIPModel.from_pretrained(checkpoint, attn_implementation=attention).float()
        self.tokenizer = CLIPTokenizer.from_pretrained(checkpoint)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad = not name.startswith(FROZEN)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=lr)

    def tokenize(self, captions: Sequence[str]) -> torch.Tensor:
        """Token ids, int64 `[B, 77]`: every caption padded to all positions."""
        positions = self.model.config.text_config.max_position_embeddings
        encoded = self.tokenizer(
            list(captions),
            padding="max_length",
            truncation=True,
            max_length=positions,
            return_tensors="pt",
        )
        return encoded["input_ids"]

    def step(self, pixels: torch.Tensor, ids: torch.Tensor) -> float:
        """One update on float32 `[B, 3, H, W]` and int64 `[B, 77]`; returns the loss before it."""
        output = self.model(input_ids=ids, pixel_values=pixels)
        own = torch.arange(len(pixels), device=pixels.device)
        loss = F.cross_entropy(output.logits_per_image, own)
        loss = (loss + F.cross_entropy(output.logits_per_text, own)) / 2
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


class Pairs(torch.utils.data.Dataset):
    """Photos and captions by index, for a `DataLoader`; an image is decoded whenever it is asked.

    Items are the pixels, float32 `[3, H, W]`, and the index of the caption.
    """

    def __init__(self, photos: Sequence[pathlib.Path], size: int):
        self.photos, self.size = list(photos), size

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return clip_transform(Image.open(self.photos[index]), self.size), index


def clip_transform(image: Image.Image, size: int) -> torch.Tensor:
    """OpenAI's preprocessing with Pillow, float32 `[3, size, size]`.

    torchvision's Resize (shortest side, bicubic, long side truncated), CenterCrop (offsets
    rounded), ToTensor and Normalize, written out: https://github.com/openai/CLIP, `_transform`.
    """
    width, height = image.size
    short = min(width, height)
    new = (int(size * width / short), int(size * height / short))
    image = image.resize(new, Image.Resampling.BICUBIC)
    left, top = round((new[0] - size) / 2), round((new[1] - size) / 2)
    image = image.crop((left, top, left + size, top + size)).convert("RGB")
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(255)
    return pixels.sub_(torch.tensor(MEAN).view(3, 1, 1)).div_(torch.tensor(STD).view(3, 1, 1))


class Reference:
    """A run of the published recipe on given batches."""

    def __init__(self, checkpoint: str, images: str, workers: int, threads: int):
        """Trains on a GPU if PyTorch sees one, with so many threads on the CPU.

        `workers`: processes that decode, as `DataLoader` takes them; 0 is this process.
        """
        torch.set_num_threads(threads)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._recipe = PublishedRecipe(pathlib.Path(checkpoint))
        self._recipe.model.to(self._device)
        self._images, self._workers = pathlib.Path(images), workers

    def epoch(self, batches: list[list[tuple[str, str]]]) -> dict[str, Any]:
        """Takes a step on each of these batches of photos and captions, which are equally large."""
        pairs = [pair for batch in batches for pair in batch]
        recipe = self._recipe
        size = recipe.model.config.vision_config.image_size
        photos = Pairs([self._images / photo for photo, _ in pairs], size)
        losses, waited = [], 0.0
        begin = time.perf_counter()
        loader = iter(DataLoader(photos, batch_size=len(batches[0]), num_workers=self._workers))
        for _ in batches:
            asked = time.perf_counter()
            pixels, indices = next(loader)
            ids = recipe.tokenize([pairs[i][1] for i in indices])
            waited += time.perf_counter() - asked
            losses.append(recipe.step(pixels.to(self._device), ids.to(self._device)))
        return {
            "seconds": time.perf_counter() - begin,
            "waited": waited,
            "losses": losses,
            "memory": self._peak_memory(),
        }

    def matmul_rate(self) -> float:
        """FLOP/s of large float32 products with this library, at this moment."""

        def multiply(a: torch.Tensor, b: torch.Tensor) -> None:
            torch.matmul(a, b)
            if self._device == "cuda":
                torch.cuda.synchronize()

        return matmul_rate(multiply, lambda x: torch.from_numpy(x).to(self._device), self._device)

    def _peak_memory(self) -> int:
        """Most bytes in use so far: of the GPU if there is one, else of this process."""
        if self._device == "cuda":
            return torch.cuda.max_memory_allocated()
        return peak_memory()
