"""NegationCLIP's released training recipe in PyTorch, on transformers' CLIP.

What the released script does, in its order: negated captions only, tokenized to all positions;
symmetric cross-entropy over the batch; everything trained but the vision tower, its projection
and the final text LayerNorm; `torch.optim.AdamW` with nothing set but the learning rate (so
weight decay is 0.01, also on biases and on the logit scale); no schedule, no clipping, and no
bound on the logit scale.
"""

import pathlib

import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

FROZEN = ("vision_model.", "visual_projection.", "text_model.final_layer_norm.")


class PublishedRecipe:
    """A model under training; `step` is one update."""

    def __init__(self, checkpoint: pathlib.Path, *, lr: float = 1e-6):
        self.model = CLIPModel.from_pretrained(checkpoint, attn_implementation="eager").float()
        self.tokenizer = CLIPTokenizer.from_pretrained(checkpoint)
        self.processor = CLIPImageProcessor.from_pretrained(checkpoint)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad = not name.startswith(FROZEN)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=lr)

    def step(self, photos: list[pathlib.Path], captions: list[str]) -> float:
        """One update on a batch; returns the loss before it."""
        positions = self.model.config.text_config.max_position_embeddings
        images = [Image.open(photo).convert("RGB") for photo in photos]
        pixels = self.processor(images, return_tensors="pt")["pixel_values"]
        ids = self.tokenizer(
            captions,
            padding="max_length",
            truncation=True,
            max_length=positions,
            return_tensors="pt",
        )["input_ids"]
        assert ids.shape == (len(photos), positions)
        output = self.model(input_ids=ids, pixel_values=pixels)
        own = torch.arange(len(photos))
        loss = F.cross_entropy(output.logits_per_image, own)
        loss = (loss + F.cross_entropy(output.logits_per_text, own)) / 2
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()
