"""Write a tiny CLIP with random weights as a Hugging Face directory.

    python -m quickstart.tiny_clip --out=runs/quickstart/random

It stands where a downloaded checkpoint would stand: the towers have two blocks of width 64 and
read 48-pixel images in 8-pixel patches and texts of up to 32 tokens of `quickstart.vocabulary`.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from flax import nnx

from negclip_jax.common.arguments import Parser
from negclip_jax.common.errors import InputError, say
from negclip_jax.interop import huggingface
from negclip_jax.models import clip
from quickstart.vocabulary import vocabulary
from quickstart.world import KINDS, SIZE, WORLDS

WIDTH, LAYERS, HEADS, PATCH, CONTEXT = 64, 2, 4, 8, 32


def tiny_config(vocab_size: int) -> clip.CLIPConfig:
    """The sizes; the end token is the vocabulary's last id, as in CLIP."""
    tower = {"width": WIDTH, "layers": LAYERS, "heads": HEADS, "mlp_width": 4 * WIDTH}
    return clip.CLIPConfig(
        text=clip.TextConfig(
            **tower,
            vocab_size=vocab_size,
            context_length=CONTEXT,
            eos_token_id=vocab_size - 1,
        ),
        vision=clip.VisionConfig(**tower, image_size=SIZE, patch_size=PATCH),
        projection_dim=WIDTH,
    )


def write_tokenizer(folder: Path, kinds: Sequence[str] = KINDS) -> int:
    """Writes `vocab.json` and `merges.txt` of a world of these kinds; returns how many tokens."""
    vocab, merges = vocabulary(kinds)
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(vocab)


def write_tiny_clip(out: Path, seed: int, kinds: Sequence[str] = KINDS) -> None:
    """Writes the directory. Raises CheckpointError where it cannot, or where one already is."""
    with tempfile.TemporaryDirectory() as tokenizer:
        config = tiny_config(write_tokenizer(Path(tokenizer), kinds))
        _, params = clip.split(clip.CLIP(config, rngs=nnx.Rngs(seed)))
        huggingface.save(out, config, params, tokenizer=tokenizer)


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("python -m quickstart.tiny_clip", __doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    parser.add_argument("--world", choices=WORLDS, default="easy", help="whose words it reads")
    args = parser.parse_args(argv)
    try:
        write_tiny_clip(args.out, args.seed, WORLDS[args.world].kinds)
    except InputError as error:
        sys.exit(f"quickstart.tiny_clip: {error}")
    say(f"a tiny CLIP with random weights in {args.out}")


if __name__ == "__main__":
    main()
