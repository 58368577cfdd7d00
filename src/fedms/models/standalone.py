"""A client's model without fedms: adapters, gate and what is known of classes, joined.

`fedms export` puts this file beside what it exports, as `model.py` (Apache-2.0, as fedms is). It
imports nothing of fedms; it needs torch, transformers, peft and safetensors, for pictures Pillow.

    from model import Model
    model = Model(".", base="the foundation model")
    said = model.opinions(["where is my card?"])  # log-probabilities of model.classes

It computes in float32. fedms holds the foundation model in bfloat16 where the hardware gains by it
(`runtime.precision`), which moves logits by some hundredths.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

EVIDENCE = ("global", "local", "gate", "prior", "unseen", "statistics")


class Foundation:
    """A foundation model and how a feature is made with it.

    Args:
        base: folder or hub id of the model.
        facts: of `head.json`.
    """

    def __init__(self, base: str, facts: Mapping[str, Any]) -> None:
        self.facts, kind = facts["foundation"], facts["foundation"]["kind"]
        loader = transformers.CLIPModel if kind == "clip" else transformers.AutoModel
        self.model = loader.from_pretrained(base, use_safetensors=True).eval().float()
        if kind in ("sentence", "text"):
            self.processor = transformers.AutoTokenizer.from_pretrained(base)
        else:
            self.processor = transformers.AutoImageProcessor.from_pretrained(base, backend="pil")

    def batch(self, inputs: Sequence[Any]) -> dict[str, Tensor]:
        """Texts, or PIL images, as the model takes them."""
        if self.facts["kind"] in ("clip", "image"):
            images = [rgb(image) for image in inputs]
            return {"pixel_values": self.processor(images, return_tensors="pt")["pixel_values"]}
        found = self.processor(
            list(inputs),
            padding=True,
            truncation=True,
            max_length=self.facts["max_length"],
            return_tensors="pt",
        )
        return {name: found[name] for name in ("input_ids", "attention_mask")}

    @torch.no_grad()
    def features(self, batch: Mapping[str, Tensor]) -> Tensor:
        """`(inputs, width)` under the adapters that are switched on."""
        if self.facts["kind"] == "clip":
            pooled = self.model.vision_model(**batch).pooler_output
            projected: Tensor = self.model.visual_projection(pooled)
            return projected
        hidden: Tensor = self.model(**batch).last_hidden_state
        if self.facts["pooling"] == "cls":
            return hidden[:, 0]
        if "attention_mask" not in batch:
            return hidden.mean(1)
        mask = batch["attention_mask"].unsqueeze(-1).float()
        return (hidden * mask).sum(1) / mask.sum(1)


class Head:
    """From features to logits.

    Args:
        facts: of `head.json`.
        own: of an expert's `head.safetensors`.
        vectors: where it looks for classes, `(classes, width)` of unit length, or None.
    """

    def __init__(
        self, facts: Mapping[str, Any], own: Mapping[str, Tensor], vectors: Tensor | None
    ) -> None:
        self.temperature, self.own, self.vectors = float(facts["temperature"]), own, vectors
        self.linear, self.classes = facts["kind"] == "linear", len(facts["classes"])

    def __call__(self, features: Tensor) -> Tensor:
        """`(inputs, classes)`."""
        if self.linear:
            return self._linear(features)
        if "attention.up.weight" in self.own:
            features = features * self._attention(features)
        return self._cosines(features)

    def _cosines(self, features: Tensor) -> Tensor:
        assert self.vectors is not None
        return self.temperature * F.normalize(features, dim=-1) @ self.vectors.T

    def _linear(self, features: Tensor) -> Tensor:
        if "classifier.weight" not in self.own:
            return features.new_zeros(len(features), self.classes)
        logits = F.linear(features, self.own["classifier.weight"], self.own["classifier.bias"])
        return logits if self.vectors is None else logits + self._cosines(features)

    def _attention(self, features: Tensor) -> Tensor:
        hidden = F.normalize(features, dim=-1) * features.shape[-1] ** 0.5
        return F.softmax(self._layer("up", torch.tanh(self._layer("down", hidden))), -1)

    def _layer(self, side: str, inputs: Tensor) -> Tensor:
        own = self.own
        return F.linear(inputs, own[f"attention.{side}.weight"], own[f"attention.{side}.bias"])


class Merged:
    """One expert alone, whose adapters are in the weights of a plain model.

    Args:
        folder: `merged` of an export.
    """

    def __init__(self, folder: str | Path = "merged") -> None:
        facts, place = _json(Path(folder) / "head.json"), Path(folder)
        self.classes: list[str] = facts["classes"]
        self.foundation = Foundation(str(folder), facts)
        own = _tensors(place / "head.safetensors")
        vectors = _tensors(place / "classes.safetensors").get("vectors")
        self.head, self.prior = Head(facts, own, vectors), _tensors(place / "prior.safetensors")

    def __call__(self, inputs: Sequence[Any]) -> Tensor:
        """`(inputs, classes)` logits; their softmax are probabilities."""
        features = self.foundation.features(self.foundation.batch(inputs))
        return self.head(features) + self.prior.get("log_prior", torch.zeros(()))


class Model:
    """A client's whole model, as `fedms export` wrote it.

    Args:
        folder: of the export.
        base: folder or hub id of the foundation model.

    Raises:
        ValueError: if an expert has what PEFT does not know.
    """

    def __init__(self, folder: str | Path, base: str) -> None:
        self.folder, facts = Path(folder), _json(Path(folder) / "head.json")
        self.classes: list[str] = facts["classes"]
        self.foundation = Foundation(base, facts)
        self.statistics = _tensors(self.folder / "statistics.safetensors")
        self.statistics |= _tensors(self.folder / "means.safetensors")
        self.counted = _json(self.folder / "prior.json")
        self.gate = _tensors(self.folder / "gate" / "gate.safetensors")
        self.mix = _json(self.folder / "gate" / "gate.json").get("mix")
        self.experts = [n for n in ("global", "local") if (self.folder / n).is_dir()]
        self.heads = {name: self._head(facts, name) for name in self.experts}
        self.peft: Any = None
        self.adapted: set[str] = set()
        for name in self.experts:
            self._adapt(name)

    def opinions(self, inputs: Sequence[Any]) -> dict[str, Tensor]:
        """Log-probabilities `(inputs, classes)`, and where there is a gate its weights.

        `personal` are the model's, `global` and `local` each expert's alone; `gate_weight`
        `(inputs,)` is on the global expert.
        """
        batch = self.foundation.batch(inputs)
        frozen = self._features(None, batch)
        seen = {name: self._features(name, batch) for name in self.experts}
        logits = {name: self._logits(name, features) for name, features in seen.items()}
        alone = {name: F.log_softmax(each, -1) for name, each in logits.items()}
        if len(logits) < 2 or "head.weight" not in self.gate:
            only = self.experts[-1]  # the local one, where there are both
            even = torch.full((len(frozen),), 0.5)
            said = self._weigh(alone[only], alone[only], even, frozen, alone[only])
            return {"personal": said, only: alone[only]}
        weights = self._gate(frozen)
        mixed = self._mixed(weights, seen, logits)
        weight = weights[:, 0].exp()
        said = self._weigh(alone["global"], alone["local"], weight, frozen, mixed)
        return {"personal": said, **alone, "gate_weight": weight}

    def _head(self, facts: Mapping[str, Any], name: str) -> Head:
        place = self.folder / name
        if facts["kind"] == "context":  # an expert has learned the prompts
            vectors = _tensors(place / "classes.safetensors")
        elif "vectors" in self.statistics or facts["kind"] == "linear":
            vectors = self.statistics
        else:
            vectors = _tensors(self.folder / "classes.safetensors")
        return Head(facts, _tensors(place / "head.safetensors"), vectors.get("vectors"))

    def _adapt(self, name: str) -> None:
        place = self.folder / name
        for other in ("mixers", "likeness", "beneath"):
            if (place / f"{other}.safetensors").is_file():
                raise ValueError(f"got {name}/{other}.safetensors, which only fedms can use")
        if not (place / "adapter_model.safetensors").is_file():
            return  # the expert adapts nothing
        self.adapted.add(name)
        if self.peft is None:
            self.peft = PeftModel.from_pretrained(self.foundation.model, place, adapter_name=name)
        else:
            self.peft.load_adapter(place, adapter_name=name)

    def _features(self, name: str | None, batch: Mapping[str, Tensor]) -> Tensor:
        if name in self.adapted:
            self.peft.set_adapter(name)
        off = self.peft is not None and name not in self.adapted
        with self.peft.disable_adapter() if off else nullcontext():
            return self.foundation.features(batch)

    def _logits(self, name: str, features: Tensor) -> Tensor:
        logits = self.heads[name](features)
        role = "local" if name == self.experts[-1] else name  # `prior.json` has that for the only
        if role not in self.counted.get("added_to", ()):
            return logits
        return logits + torch.tensor(self.counted["log_prior"])

    def _gate(self, frozen: Tensor) -> Tensor:
        """`(inputs, 2)` log weights of the global and the local expert."""
        gate = self.gate
        hidden = F.normalize(frozen, dim=-1) * frozen.shape[-1] ** 0.5
        inner = F.gelu(F.linear(hidden, gate["down.weight"], gate["down.bias"]))
        hidden = hidden + F.linear(inner, gate["up.weight"], gate["up.bias"])
        return F.log_softmax(F.linear(hidden, gate["head.weight"], gate["head.bias"]), -1)

    def _mixed(
        self, weights: Tensor, seen: Mapping[str, Tensor], logits: Mapping[str, Tensor]
    ) -> Tensor:
        """Log-probabilities of the mixture, as `mix` says."""
        share = weights.exp()
        if self.mix == "probabilities":
            both = [F.log_softmax(logits[name], -1) for name in ("global", "local")]
            return torch.logaddexp(weights[:, :1] + both[0], weights[:, 1:] + both[1])
        if self.mix == "logits":
            mixed = share[:, :1] * logits["global"] + share[:, 1:] * logits["local"]
            return F.log_softmax(mixed, -1)
        mixed = share[:, :1] * seen["global"] + share[:, 1:] * seen["local"]
        return F.log_softmax(self._logits("local", mixed), -1)

    def _weigh(
        self, shared: Tensor, own: Tensor, weight: Tensor, frozen: Tensor, mixed: Tensor
    ) -> Tensor:
        """By weights of evidence (`calibration` of `prior.json`); as mixed, where it has none."""
        weights = self.counted.get("calibration")
        if weights is None:
            return mixed
        prior, unseen = (
            torch.tensor(self.counted[n]).expand_as(own) for n in ("log_prior", "unseen")
        )
        mean = own + weight[:, None] * (shared - own)
        known = torch.stack([shared, own, mean, prior, unseen, self._by_statistics(frozen)], -1)
        return F.log_softmax(known @ torch.tensor([weights[name] for name in EVIDENCE]), -1)

    def _by_statistics(self, frozen: Tensor) -> Tensor:
        """`(inputs, classes)`: what class statistics say of the foundation model's feature."""
        said = self.statistics
        if "whitening" not in said:
            return torch.zeros(len(frozen), len(self.classes)).log_softmax(-1)
        whitened = F.normalize(frozen, dim=-1) @ said["whitening"].T
        scores = whitened @ said["means"].T - said["means"].square().sum(-1) / 2 + said["bias"]
        return F.log_softmax(scores, -1)


def rgb(image: Any) -> Any:
    """A PIL image upright as EXIF says, of 16 bits the upper 8, over white where transparent."""
    from PIL import Image, ImageOps  # texts need none

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        upper = np.asarray(image).astype(np.int64) >> 8
        return Image.fromarray(upper.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def _tensors(path: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = load_file(path) if path.is_file() else {}
    return found
