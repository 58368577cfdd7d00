"""Your own model: any encoder of transformers, here a new and tiny ViT, with a data set a client.

What comes out are plain PEFT adapters, and a callback of Trainer's ends training early.
"""

from __future__ import annotations

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Picture
from sklearn.datasets import load_digits
from transformers import EarlyStoppingCallback, ViTConfig, ViTImageProcessorPil, ViTModel

from fedms import FedMS

CLIENTS = {"even": (0, 2, 4, 6, 8), "odd": (1, 3, 5, 7, 9), "small": (0, 1, 2, 3, 4)}
ROWS = 120


def digits(of: tuple[int, ...]) -> Dataset:
    """Handwritten digits of some classes."""
    images, labels = load_digits(return_X_y=True)
    chosen = np.flatnonzero(np.isin(labels, of))[:ROWS]
    pixels = (images[chosen].reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    rows = {"image": [Picture.fromarray(p) for p in pixels], "label": labels[chosen].tolist()}
    names = ClassLabel(names=[f"digit {i}" for i in range(10)])
    return Dataset.from_dict(rows, features=Features({"image": Image(), "label": names}))


def main() -> None:
    """Train, predict, and take out what is the client's own."""
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    model = ViTModel(ViTConfig(**size, num_attention_heads=2, image_size=16, patch_size=4))
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})

    fed = FedMS(
        model,
        processor,
        stage1={"rounds": 3},
        stage2={"rounds": 3},
        callbacks=[EarlyStoppingCallback(early_stopping_patience=3)],
    )
    result = fed.fit({name: digits(of) for name, of in CLIENTS.items()}, input="image")

    print(result.predict("odd", digits((7,))["image"][:3]))
    print(type(result.local_expert("odd")).__name__)


if __name__ == "__main__":
    main()
