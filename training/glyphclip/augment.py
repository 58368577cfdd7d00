"""Turn stored glyphs into varied 32 x 32 training pictures, a whole batch at a time.

The order follows how a written character reaches a small image: a pen of some width, a hand that
bends and slants it, a frame around it, a coarse scanner, then exposure and noise. Shapes are
``(batch, 1, height, width)`` with values in [0, 1], white ink on black.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

OUT = 32
LOOSE_SHARE = 0.55
LINE_PENS = (3, 3, 5, 5, 7, 7, 9, 11)
"""Pen widths, in 1/52 of the glyph's longer side, for skeletons; others keep their own width."""


def augment(
    glyphs: Tensor, is_line: Tensor, height: Tensor, rng: torch.Generator, strength: float = 1.0
) -> Tensor:
    """Return one random picture per glyph, shape ``(batch, 1, 32, 32)``.

    ``glyphs`` is uint8 ``(batch, 64, 64)``; ``is_line`` marks skeletons, which need a pen;
    ``height`` is each character's usual size against a capital. ``strength`` scales geometric
    distortion (1 in training).
    """
    images = glyphs.float().div_(255.0).unsqueeze(1)
    loose = torch.rand(len(images), generator=rng) < LOOSE_SHARE
    images = _pen(images, is_line, rng)
    images[loose] = F.avg_pool2d(images[loose], 5, 1, 2)
    grid = _warp(_fill(loose, height, rng), loose, rng, strength)
    images = F.grid_sample(images, grid, align_corners=False)
    images = images / images.amax(dim=(1, 2, 3), keepdim=True).clamp_min(0.3)
    images = _edges(images, rng)
    images = _coarsen(images, (~loose).nonzero().flatten(), rng)
    return _expose(images, rng)


def _fill(loose: Tensor, height: Tensor, rng: torch.Generator) -> Tensor:
    """Share of the frame that each character fills, shape ``(batch,)``.

    A tight crop is filled to 50-105 %, mostly the upper end, whatever the character. A loose one,
    cut from a form at a fixed scale, is filled to 28-65 % by a capital and less by an x.
    """
    count = len(loose)
    tight = 1.05 - 0.55 * torch.rand(count, generator=rng) ** 2
    wobble = torch.exp(torch.randn(count, generator=rng) * 0.1)
    return torch.where(loose, _uniform((count,), 0.28, 0.65, rng) * height * wobble, tight)


def finish(images: Tensor, mean: float, std: float) -> Tensor:
    """Repeat grey to three channels and normalise as the image processor does."""
    return ((images - mean) / std).expand(-1, 3, -1, -1)


def _uniform(shape: tuple[int, ...], low: float, high: float, rng: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=rng) * (high - low) + low


def _pen(images: Tensor, is_line: Tensor, rng: torch.Generator) -> Tensor:
    """Thicken skeletons with a random pen; sometimes thicken or thin other glyphs."""
    result = images.clone()
    lines, solids = is_line.nonzero().flatten(), (~is_line).nonzero().flatten()
    pens = torch.randint(len(LINE_PENS), (len(lines),), generator=rng)
    for index, width in enumerate(LINE_PENS):
        rows = lines[pens == index]
        result[rows] = _dilate(images[rows], width)
    change = torch.randint(5, (len(solids),), generator=rng)
    thinner, thicker = solids[change == 0], solids[change == 1]
    result[thinner] = -_dilate(-images[thinner], 3)
    result[thicker] = _dilate(images[thicker], 5)
    # Soft edges, so that sampling at half resolution does not alias.
    return F.avg_pool2d(result, 3, 1, 1)


def _dilate(images: Tensor, width: int) -> Tensor:
    """Spread ink over a ``width`` square, one axis at a time because that is cheaper."""
    across = F.max_pool2d(images, (1, width), 1, (0, width // 2))
    return F.max_pool2d(across, (width, 1), 1, (width // 2, 0))


def _warp(fill: Tensor, loose: Tensor, rng: torch.Generator, strength: float) -> Tensor:
    """Sampling grid of a random affine map plus a smooth random displacement."""
    count = len(fill)
    angle = _uniform((count,), -1, 1, rng).mul(strength * math.radians(18))
    shear = torch.randn(count, generator=rng).mul(0.2 * strength).clamp(-0.6, 0.6)
    zoom = 52 / 64 / fill
    aspect = torch.exp(torch.randn(count, generator=rng) * 0.18 * strength)
    cos, sin = angle.cos(), angle.sin()
    x_row = torch.stack((cos * aspect, (shear * cos - sin) * aspect, _shift(count, rng)), dim=1)
    y_row = torch.stack((sin / aspect, (shear * sin + cos) / aspect, _shift(count, rng)), dim=1)
    theta = torch.stack((x_row, y_row), dim=1)
    theta *= zoom[:, None, None]
    grid = F.affine_grid(theta, [count, 1, OUT, OUT], align_corners=False)
    return grid + _elastic(loose, rng, strength)


def _shift(count: int, rng: torch.Generator) -> Tensor:
    return torch.randn(count, generator=rng).mul(0.06).clamp(-0.2, 0.2)


def _elastic(loose: Tensor, rng: torch.Generator, strength: float) -> Tensor:
    """Smooth displacement, shape ``(batch, 32, 32, 2)``: a coarse bend plus a finer wobble.

    Characters in a loose frame are smaller, so their field has more knots to bend them as much.
    """
    field = torch.zeros(len(loose), 2, OUT, OUT)
    for rows, knots, amount in ((~loose, 4, 0.09), (~loose, 7, 0.035), (loose, 8, 0.11)):
        noise = torch.randn(int(rows.sum()), 2, knots, knots, generator=rng)
        noise *= _uniform((len(noise), 1, 1, 1), 0, 1.4, rng) * amount * strength
        field[rows] += F.interpolate(noise, OUT, mode="bicubic", align_corners=True)
    return field.permute(0, 2, 3, 1)


def _edges(images: Tensor, rng: torch.Generator) -> Tensor:
    """Move the ink threshold: fatter or leaner strokes, crisp or soft edges."""
    level = _uniform((len(images), 1, 1, 1), 0.2, 0.6, rng)
    slope = _uniform((len(images), 1, 1, 1), 1.0, 6.0, rng)
    sharp = ((images - level) * slope + 0.5).clamp_(0, 1)
    soft = torch.rand(len(images), 1, 1, 1, generator=rng) < 0.3
    return torch.where(soft, images, sharp)


def _coarsen(images: Tensor, rows: Tensor, rng: torch.Generator) -> Tensor:
    """Scan part of ``rows`` at 7-14 or about 28 pixels and scale it back up."""
    order = rows[torch.randperm(len(rows), generator=rng)]
    result = images.clone()
    tiny = int(torch.randint(7, 15, (1,), generator=rng))
    for size, part in zip((8, tiny, 28), torch.chunk(order, 5)[:3], strict=False):
        small = F.interpolate(images[part], size, mode="area")
        if size < 16:
            small = small / small.amax(dim=(1, 2, 3), keepdim=True).clamp_min(0.25)
            small = (small * 16).round() / 16
        result[part] = F.interpolate(small, OUT, mode="bicubic", align_corners=False)
    return result.clamp_(0, 1)


def _expose(images: Tensor, rng: torch.Generator) -> Tensor:
    """Vary brightness, contrast, gamma and noise; show one picture in ten as black on white."""
    shape = (len(images), 1, 1, 1)
    images = images.clamp_min(1e-4) ** torch.exp(torch.randn(shape, generator=rng) * 0.3)
    floor = _uniform(shape, 0, 0.2, rng) * (torch.rand(shape, generator=rng) < 0.3)
    images = floor + images * (_uniform(shape, 0.6, 1.0, rng) - floor)
    noise = _uniform(shape, 0, 0.1, rng) * (torch.rand(shape, generator=rng) < 0.25)
    images = (images + noise * torch.randn(images.shape, generator=rng)).clamp_(0, 1)
    dark = torch.rand(shape, generator=rng) < 0.1
    return torch.where(dark, 1 - images, images)
