"""A random Llama and a random LLaVA of 0.7 MB each, for a real server to serve."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

SENTENCES = [
    "Is there a dog in this image? Answer only with yes or no.",
    "A man sits on a bench near a lake. No, yes.",
    "You rewrite captions. Keep everything that the caption says and add that a thing is absent.",
]
_TEXT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
_PARTS = (
    "{% for m in messages %}{{ m['role'] }}: "
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}"
    "{% endif %}{% endfor %}{% endif %}\n{% endfor %}assistant:"
)


def write(folder: Path) -> tuple[str, str]:
    """Writes both models; returns the directories of the text and the multimodal one."""
    tokenizer = _tokenizer()
    size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=2,
        max_position_embeddings=4096,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        **size,
    )
    llama, llava = folder / "llama", folder / "llava"
    tokenizer.chat_template = _TEXT
    LlamaForCausalLM(text).save_pretrained(llama)
    tokenizer.save_pretrained(llama)
    vision = CLIPVisionConfig(num_hidden_layers=2, image_size=32, patch_size=16, **size)
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=image_token)
    LlavaForConditionalGeneration(config).save_pretrained(llava)
    side = {"height": 32, "width": 32}
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=side)
    LlavaProcessor(
        images,
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_PARTS,
    ).save_pretrained(llava)
    return str(llama), str(llava)


def _tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE(unk_token=None))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>", "<image>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    bpe.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
    )
