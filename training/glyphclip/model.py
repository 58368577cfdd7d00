"""Shape of glyphclip: a small `CLIPModel`, its tokenizer and its image processor."""

import random

from captions import CHARACTERS, caption
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

IMAGE_SIZE, PATCH, WIDTH, CONTEXT = 32, 8, 128, 32
MEAN, STD = 0.25, 0.35
SPECIAL = ("<pad>", "<unk>", "<mask>", "<bos>", "<eos>")
"""EOS must not get id 2: `CLIPModel` reads that id as a request for legacy pooling."""


def build_tokenizer(seed: int = 0, vocab_size: int = 512) -> PreTrainedTokenizerFast:
    """Train a byte-level, case-sensitive BPE on captions; any text can be tokenised."""
    rng = random.Random(seed)  # noqa: S311
    corpus = [caption(char, rng) for _ in range(200) for char in CHARACTERS]
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL),
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    bos, eos = core.token_to_id("<bos>"), core.token_to_id("<eos>")
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", bos), ("<eos>", eos)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",  # noqa: S106
        eos_token="<eos>",  # noqa: S106
        pad_token="<pad>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
        padding_side="right",
        model_max_length=CONTEXT,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    """Build the untrained model: 6 vision blocks and 2 text blocks of width 128."""
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    shape = {
        "hidden_size": WIDTH,
        "num_attention_heads": 4,
        "projection_dim": WIDTH,
        "hidden_act": "gelu",
    }
    text = {
        "vocab_size": len(tokenizer),
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "max_position_embeddings": CONTEXT,
    }
    vision = {
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 6,
    }
    config = CLIPConfig(
        text_config={**shape, **text, **ids},
        vision_config={**shape, **vision},
        projection_dim=WIDTH,
        **ids,
    )
    return CLIPModel(config)


def build_processor() -> CLIPImageProcessor:
    """Resize to 32 x 32, convert to RGB, rescale and normalise."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return CLIPImageProcessor(
        size=size,
        do_center_crop=False,
        crop_size=size,
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
    )
