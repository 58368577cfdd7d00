"""Train glyphclip: contrast random pictures of characters with random captions of their class."""

import argparse
import json
import logging
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from augment import augment, finish
from captions import CHARACTERS, caption
from data import HEIGHT, Sampler, split, take
from model import MEAN, STD, build_model, build_processor, build_tokenizer
from numpy.typing import NDArray
from render import Bank
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPModel, PreTrainedTokenizerFast

log = logging.getLogger("glyphclip.train")
TEXT_SHARE = 0.3
"""Weight of text-to-image against image-to-text in the loss."""


def encode_texts(model: CLIPModel, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """Unit text features, shape ``(texts, projection)``."""
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    pooled = model.text_model(**tokens).pooler_output
    return F.normalize(model.text_projection(pooled).float(), dim=-1)


def contrastive_loss(images: Tensor, texts: Tensor, classes: Tensor, scale: Tensor) -> Tensor:
    """CLIP's loss with one caption per class and any number of pictures of it (as in UniCL).

    Image to text is cross-entropy over the class captions. Text to image spreads each caption's
    target evenly over the pictures of its class; classes absent from the batch are left out.
    """
    logits = scale * images @ texts.T
    image_loss = F.cross_entropy(logits, classes)
    target = F.one_hot(classes, texts.shape[0]).T.float()
    present = target.sum(dim=1) > 0
    target = target[present] / target[present].sum(dim=1, keepdim=True)
    text_loss = F.cross_entropy(logits.T[present], target)
    return (1 - TEXT_SHARE) * image_loss + TEXT_SHARE * text_loss


def rate(step: int, steps: int, warmup: int) -> float:
    """Learning-rate factor: linear warm-up, then cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def optimizer_for(model: nn.Module, lr: float, decay: float) -> torch.optim.AdamW:
    """AdamW that decays matrices only."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


@torch.no_grad()
def validate(
    model: CLIPModel, tokenizer: PreTrainedTokenizerFast, bank: Bank, rows: NDArray[np.int64]
) -> dict[str, float]:
    """Accuracy on held-out fonts after the training distortions, with a fixed seed."""
    rows = np.random.default_rng(0).choice(rows, min(3000, len(rows)), replace=False)
    rng = torch.Generator().manual_seed(0)
    prompts = [f"a photo of the character {char}" for char in CHARACTERS]
    texts = encode_texts(model, tokenizer, prompts)
    glyphs, classes, is_line = take(bank, rows)
    scores = []
    for part in torch.split(torch.arange(len(rows)), 500):
        pixels = finish(augment(glyphs[part], is_line[part], HEIGHT[classes[part]], rng), MEAN, STD)
        pooled = model.vision_model(pixel_values=pixels).pooler_output
        scores.append(F.normalize(model.visual_projection(pooled), dim=-1) @ texts.T)
    return grade(torch.cat(scores), classes)


def grade(logits: Tensor, classes: Tensor) -> dict[str, float]:
    """Accuracy over 62 classes, ignoring case, and of the digits among ten."""
    digit, guess = classes < 10, logits.argmax(dim=1)
    folded = torch.tensor([CHARACTERS.index(char.upper()) for char in CHARACTERS])
    return {
        "all": _share(guess == classes),
        "folded": _share(folded[guess] == folded[classes]),
        "digits": _share(logits[digit, :10].argmax(dim=1) == classes[digit]),
    }


def _share(hits: Tensor) -> float:
    return round(float(hits.float().mean()), 4)


class Trainer:
    """The model, its optimiser and the averaged copy that is finally saved."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args = args
        self.tokenizer = build_tokenizer()
        self.model = build_model(self.tokenizer)
        # Eager attention: 17 tokens are too few for the fused kernel, slow in bfloat16 on CPUs.
        self.model.set_attn_implementation("eager")
        average = get_ema_multi_avg_fn(args.ema)  # type: ignore[no-untyped-call]
        self.ema = AveragedModel(self.model, multi_avg_fn=average)
        self.optimizer = optimizer_for(self.model, args.lr, args.decay)
        vision = self.model.vision_model
        self.vision = torch.compile(vision) if args.compile else vision
        self.words = random.Random(args.seed)  # noqa: S311
        self.rng = torch.Generator().manual_seed(args.seed)

    def step(self, number: int, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Take one optimiser step and return the loss."""
        glyphs, classes, is_line = batch
        # Milder distortion at first: the towers agree on the classes sooner.
        strength = min(1.0, 0.4 + 0.6 * number / self.args.ramp)
        pixels = finish(augment(glyphs, is_line, HEIGHT[classes], self.rng, strength), MEAN, STD)
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.lr * rate(number, self.args.steps, self.args.warmup)
        with torch.autocast("cpu", torch.bfloat16):
            pooled = self.vision(pixel_values=pixels).pooler_output
        images = F.normalize(self.model.visual_projection(pooled.float()), dim=-1)
        captions = [caption(char, self.words) for char in CHARACTERS]
        texts = encode_texts(self.model, self.tokenizer, captions)
        loss = contrastive_loss(images, texts, classes, self.model.logit_scale.exp())
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=math.log(100.0))
        self.ema.update_parameters(self.model)
        return loss.detach()

    def save(self, folder: Path) -> None:
        """Write averaged weights, tokenizer and processor as one loadable folder."""
        final = build_model(self.tokenizer)
        final.load_state_dict(self.ema.module.state_dict())
        final.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        build_processor().save_pretrained(folder)
        (folder / "model.safetensors").chmod(0o644)


def train(args: argparse.Namespace) -> None:
    """Run the whole training and write the folder and ``training.json``."""
    bank = Bank.load(args.bank)
    rows = split(bank)
    sampler = Sampler(bank, rows.train, args.seed)
    trainer = Trainer(args)
    log.info("%d training glyphs, %d held out", len(rows.train), len(rows.held))
    start, running = time.monotonic(), 0.0
    for number in range(args.steps):
        running += float(trainer.step(number, sampler.draw(args.batch)))
        if (number + 1) % args.every == 0:
            elapsed = time.monotonic() - start
            result = validate(trainer.ema.module, trainer.tokenizer, bank, rows.held)
            log.info("%d loss %.3f %.0fs %s", number + 1, running / args.every, elapsed, result)
            running = 0.0
            trainer.save(args.out)
    record = {name: value for name, value in vars(args).items() if not isinstance(value, Path)}
    record["minutes"] = round((time.monotonic() - start) / 60, 1)
    record["held_out"] = validate(trainer.ema.module, trainer.tokenizer, bank, rows.held)
    record["held_out_hand"] = validate(trainer.ema.module, trainer.tokenizer, bank, rows.held_hand)
    log.info("%s", record)
    trainer.save(args.out)
    (args.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bank", type=Path, default=Path("glyphs.npz"))
    parser.add_argument("--out", type=Path, default=Path("glyphclip"))
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--decay", type=float, default=0.05)
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--ramp", type=int, default=1000, help="steps to full distortion")
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--every", type=int, default=500, help="steps between reports")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="compile the vision tower")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    train(args)


if __name__ == "__main__":
    main()
