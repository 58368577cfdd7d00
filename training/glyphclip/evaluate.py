"""Measure a glyphclip folder without training: load_digits, FEMNIST and held-out fonts.

The folder is loaded exactly as a user would load it. Results go to a JSON file and, with
``--card``, into the model card.
"""

import argparse
import io
import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from captions import CHARACTERS, RECOMMENDED, UNSEEN, words
from data import split
from numpy.typing import NDArray
from PIL import Image
from render import SOURCES, Bank
from sklearn.datasets import load_digits
from torch import Tensor
from train import grade, validate
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

log = logging.getLogger("glyphclip.evaluate")
DIGITS = CHARACTERS[:10]
MARK = re.compile(r"<!-- results -->.*<!-- /results -->", re.DOTALL)


class Judge:
    """A loaded folder that labels pictures with the nearest class prompt."""

    def __init__(self, folder: Path) -> None:
        self.model = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)

    @torch.no_grad()
    def images(self, pictures: list[Image.Image], size: int = 500) -> Tensor:
        """Unit image features, shape ``(pictures, projection)``."""
        parts = []
        for start in range(0, len(pictures), size):
            batch = self.processor(pictures[start : start + size], return_tensors="pt")
            pooled = self.model.vision_model(**batch).pooler_output
            parts.append(self.model.visual_projection(pooled))
        return torch.nn.functional.normalize(torch.cat(parts), dim=-1)

    @torch.no_grad()
    def texts(self, prompts: list[str]) -> Tensor:
        """Unit text features, shape ``(prompts, projection)``."""
        tokens = self.tokenizer(prompts, padding=True, return_tensors="pt")
        pooled = self.model.text_model(**tokens).pooler_output
        return torch.nn.functional.normalize(self.model.text_projection(pooled), dim=-1)


def prompt_sets(characters: str) -> dict[str, list[str]]:
    """Class prompts by template; the last entry names the classes in words."""
    templates = [t for t in (*RECOMMENDED, *UNSEEN) if "digit" not in t or characters == DIGITS]
    sets = {t: [t.format(label=char) for char in characters] for t in templates}
    sets["a photo of the {words}"] = [f"a photo of the {words(char)}" for char in characters]
    return sets


def accuracies(judge: Judge, features: Tensor, labels: Tensor, characters: str) -> dict[str, float]:
    """Zero-shot accuracy under every template."""
    result = {}
    for template, prompts in prompt_sets(characters).items():
        guess = (features @ judge.texts(prompts).T).argmax(dim=1)
        result[template] = round(float((guess == labels).float().mean()), 4)
    return result


def read_digits() -> tuple[list[Image.Image], Tensor]:
    """The 1,797 8 x 8 digits that scikit-learn ships, scaled from 0-16 to 0-255."""
    data = load_digits()
    pixels = np.round(data.images * (255 / 16)).astype(np.uint8)
    return [Image.fromarray(picture) for picture in pixels], torch.from_numpy(data.target)


def read_femnist(root: Path) -> tuple[list[Image.Image], Tensor]:
    """All FEMNIST pictures of ``root/data.parquet`` and their class numbers."""
    table = pq.read_table(root / "data.parquet", columns=["image", "label"]).to_pydict()
    pictures = [Image.open(io.BytesIO(cell["bytes"])).convert("L") for cell in table["image"]]
    labels = [label_index(label) for label in table["label"]]
    return pictures, torch.tensor(labels)


def label_index(label: str | int) -> int:
    """Number a class given as its character or already as a number."""
    return label if isinstance(label, int) else CHARACTERS.index(label)


def evaluate(folder: Path, femnist: Path, bank: Path | None) -> dict[str, Any]:
    """Collect every number that the card reports."""
    judge = Judge(folder)
    pictures, labels = read_digits()
    result: dict[str, Any] = {
        "parameters": parameters(judge.model),
        "load_digits": accuracies(judge, judge.images(pictures), labels, DIGITS),
        "load_digits_pictures": len(labels),
    }
    pictures, labels = read_femnist(femnist)
    features = judge.images(pictures)
    fold = torch.tensor([CHARACTERS.index(char.upper()) for char in CHARACTERS])
    guess = (features @ judge.texts(prompt_sets(CHARACTERS)[RECOMMENDED[0]]).T).argmax(dim=1)
    digit = labels < 10
    result["femnist"] = accuracies(judge, features, labels, CHARACTERS)
    result["femnist_pictures"] = len(labels)
    result["femnist_ignoring_case"] = round(float((fold[guess] == fold[labels]).float().mean()), 4)
    result["femnist_ten_digits"] = accuracies(judge, features[digit], labels[digit], DIGITS)
    if bank:
        result["held_out"] = held_out(judge, Bank.load(bank))
    return result


def held_out(judge: Judge, bank: Bank) -> dict[str, dict[str, float]]:
    """Accuracy on font families that training never drew, as rendered and distorted."""
    rows = split(bank)
    plain = rows.held[bank.sources[rows.held] == SOURCES.index("solid")]
    return {
        "as rendered": grade(*_plain_logits(judge, bank, plain)),
        "distorted": validate(judge.model, judge.tokenizer, bank, rows.held),
        "distorted, fonts that imitate a hand": validate(
            judge.model, judge.tokenizer, bank, rows.held_hand
        ),
    }


def _plain_logits(judge: Judge, bank: Bank, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Similarities of up to 3,000 undistorted glyphs to the class prompts, and their classes."""
    rows = np.random.default_rng(0).choice(rows, min(3000, len(rows)), replace=False)
    features = judge.images([Image.fromarray(picture) for picture in bank.images[rows]])
    logits = features @ judge.texts(prompt_sets(CHARACTERS)[RECOMMENDED[0]]).T
    return logits, torch.from_numpy(bank.classes[rows])


def parameters(model: CLIPModel) -> dict[str, int]:
    """Count parameters per tower, projections included, and in total."""
    vision = [*model.vision_model.parameters(), *model.visual_projection.parameters()]
    text = [*model.text_model.parameters(), *model.text_projection.parameters()]
    counts = {"vision": sum(p.numel() for p in vision), "text": sum(p.numel() for p in text)}
    return {**counts, "total": sum(p.numel() for p in model.parameters())}


def table(result: dict[str, Any]) -> str:
    """Lay the results out in Markdown: one row per template, then one per held-out group."""
    columns = ("load_digits", "femnist_ten_digits", "femnist")
    lines = ["| template | load_digits (10) | FEMNIST digits (10) | FEMNIST (62) |"]
    lines.append("|---|---|---|---|")
    for template in result["load_digits"]:
        cells = [_cell(result[name].get(template)) for name in columns]
        lines.append(f"| `{template}` | {' | '.join(cells)} |")
    lines.append("")
    lines.append(f"FEMNIST over 62 classes, ignoring case: {result['femnist_ignoring_case']:.3f}.")
    if "held_out" in result:
        lines += ["", "| held-out fonts | 62 classes | ignoring case | digits (10) |"]
        lines.append("|---|---|---|---|")
        for name, row in result["held_out"].items():
            cells = [_cell(row[key]) for key in ("all", "folded", "digits")]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="model folder")
    parser.add_argument("--femnist", type=Path, default=Path("../shared/data/femnist"))
    parser.add_argument("--bank", type=Path, help="glyphs of render.py, for held-out fonts")
    parser.add_argument("--out", type=Path, help="write results as JSON")
    parser.add_argument("--card", type=Path, help="model card whose result section is rewritten")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    result = evaluate(args.folder, args.femnist, args.bank)
    log.info("%s", json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    if args.card:
        section = f"<!-- results -->\n{table(result)}\n<!-- /results -->"
        args.card.write_text(MARK.sub(lambda _: section, args.card.read_text()))


if __name__ == "__main__":
    main()
