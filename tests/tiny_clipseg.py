"""A tiny CLIPSeg with random weights, and CLIPs that hold its text tower."""

import json
import shutil
from pathlib import Path

import torch
import transformers

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 600,
    "max_position_embeddings": 24,
    "bos_token_id": 598,
    "eos_token_id": 599,
}
VISION = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 16,
}
DECODER = {
    "extract_layers": [0, 2, 3],
    "reduce_dim": 16,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
    "use_complex_transposed_convolution": True,
}

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def write_clipseg(path: Path, vocabulary: Path | None, **changes) -> Path:
    """Saves a CLIPSeg with random weights; `changes` are of its configuration."""
    settings = {"text_config": TEXT, "vision_config": VISION, "projection_dim": 40, **DECODER}
    config = transformers.CLIPSegConfig(**(settings | changes))
    torch.manual_seed(0)
    model = transformers.CLIPSegForImageSegmentation(config).eval()
    for name, parameter in model.named_parameters():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        if parameter.ndim:
            # What the decoder sees is large and would drown the phrase.
            std = 0.02 if "reduces" in name else 0.3 if "decoder" in name else 0.2
            torch.nn.init.normal_(parameter, centre, std)
    model.save_pretrained(path)
    _copy(vocabulary, path)
    return path


def write_clip(path: Path, clipseg: Path, vocabulary: Path, *, noise: float = 0.0) -> Path:
    """Saves CLIPSeg's CLIP as a CLIPModel, its text tower changed by `noise`.

    As after fine-tuning, position embeddings hardly change.
    """
    raw = json.loads((clipseg / "config.json").read_text())
    config = transformers.CLIPConfig(
        **{key: raw[key] for key in ("text_config", "vision_config", "projection_dim")}
    )
    whole = transformers.CLIPSegForImageSegmentation.from_pretrained(clipseg).state_dict()
    state = {name.removeprefix("clip."): t for name, t in whole.items() if name.startswith("clip.")}
    torch.manual_seed(1)
    for name, tensor in state.items():
        if name.startswith("text_") and "position" not in name:
            state[name] = tensor + noise * torch.randn_like(tensor)
    model = transformers.CLIPModel(config)
    model.load_state_dict(state)
    model.save_pretrained(path)
    _copy(vocabulary, path)
    return path


def _copy(vocabulary: Path | None, path: Path) -> None:
    for name in ("vocab.json", "merges.txt") if vocabulary else ():
        shutil.copy(vocabulary / name, path)
