"""Class statistics: sums that add up, and the discriminant of them against scikit-learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from fedms.core import discriminant
from fedms.core.discriminant import COUNTS, MOMENT, SUMS, Discriminant

CLASSES, WIDTH = 3, 5


def rows(count, seed=0, classes=CLASSES):
    """Unit features around a direction of each class, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    centres = np.random.default_rng(99).normal(size=(CLASSES, WIDTH))
    x = centres[labels] + rng.normal(size=(count, WIDTH)) * [0.3, 1, 0.5, 2, 0.8]
    x = torch.from_numpy(x / np.linalg.norm(x, axis=1, keepdims=True)).float()
    return x, torch.from_numpy(labels)


@given(st.lists(st.integers(0, 7), min_size=1, max_size=5), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_sums_of_parts_are_sums_of_all(sizes, seed):
    """However rows are dealt."""
    x, y = rows(sum(sizes), seed)
    whole = discriminant.sums(x, y, CLASSES)
    parts = [
        discriminant.sums(a, b, CLASSES)
        for a, b in zip(x.split(sizes), y.split(sizes), strict=True)
    ]
    for name, shape in discriminant.shapes(CLASSES, WIDTH).items():
        assert tuple(whole[name].shape) == shape
        torch.testing.assert_close(torch.stack([p[name] for p in parts]).sum(0), whole[name])


def test_features_of_any_length_count_alike():
    x, y = rows(9)
    scaled = x * torch.linspace(0.5, 40, 9)[:, None]
    for name, value in discriminant.sums(x, y, CLASSES).items():
        torch.testing.assert_close(discriminant.sums(scaled, y, CLASSES)[name], value)


@pytest.fixture
def exact(monkeypatch):
    """Nothing added to what rows say."""
    for name, value in {"_RIDGE": 0.0, "_FLOOR": 0.0, "_FIRST": 1e-12}.items():
        monkeypatch.setattr(discriminant, name, value)


def made(x, y, personal=False, whole=False):
    total = discriminant.sums(x, y, CLASSES)
    found = discriminant.discriminant(total, whole=whole)
    found = Discriminant.of(found, personal=personal, whole=whole)
    assert found is not None
    return found


NOBODY = torch.zeros(0, WIDTH), torch.zeros(0, dtype=torch.long)


def test_it_is_linear_discriminant_analysis(exact):
    (x, y), (new, _) = rows(200), rows(20, seed=1)
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(x.double().numpy(), y.numpy())
    likelihood = theirs.decision_function(new.double().numpy()) - np.log(theirs.priors_)
    got = made(x, y).scores(new, *NOBODY).double().numpy()
    np.testing.assert_allclose(
        got - got.mean(1, keepdims=True),
        likelihood - likelihood.mean(1, keepdims=True),
        rtol=1e-3,
        atol=1e-3,
    )


def test_that_of_the_whole_by_hand(exact):
    """Covariance of all rows, and their frequencies: FedCGS' own formula."""
    (x, y), (new, _) = rows(60), rows(6, seed=1)
    z = x.double().numpy()
    inverse = np.linalg.inv(np.cov(z.T, bias=True))
    means = np.stack([z[y.numpy() == c].mean(0) for c in range(CLASSES)])
    frequency = np.bincount(y.numpy()) / len(y)
    bias = np.log(frequency) - np.einsum("ci,ij,cj->c", means, inverse, means) / 2
    expected = new.double().numpy() @ inverse @ means.T + bias
    got = made(x, y, whole=True).scores(new, *NOBODY).double().numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=2e-3)


def test_whitened_rows_have_unit_covariance_within_classes(exact):
    x, y = rows(300)
    found = made(x, y)
    centred = x @ found.matrix.T - found.means()[y]
    torch.testing.assert_close(centred.T @ centred / 300, torch.eye(WIDTH), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("count", "classes"), [(300, 3), (9, 3), (9, 2), (3, 3)])
def test_the_fewer_rows_the_more_variance_in_every_direction(count, classes):
    """By hand: three times the squared share of directions in rows, of the mean variance."""
    x, y = rows(count, classes=classes)
    z = x.double().numpy()
    within = np.stack([z[i] - z[y == c].mean(0) for i, c in enumerate(y)])
    free = max(count - len(set(y.tolist())), 1)
    added = 3 * (WIDTH / free) ** 2 * np.cov(z.T, bias=True).diagonal().mean() + 1e-6
    covariance = within.T @ within / count + added * np.eye(WIDTH)
    matrix = made(x, y).matrix.double().numpy()
    np.testing.assert_allclose(matrix @ covariance @ matrix.T, np.eye(WIDTH), atol=1e-3)


PROMPTS = torch.nn.functional.normalize(
    torch.from_numpy(np.random.default_rng(5).normal(size=(CLASSES, WIDTH))).float(), dim=-1
)


def test_a_prompt_counts_as_one_row_where_it_moves_the_overall_mean_to():
    x, y = rows(30, classes=2)
    z, matrix = x.double().numpy(), made(x, y).matrix.double().numpy()
    prompts = PROMPTS.double().numpy()
    expected = z.mean(0) + prompts - prompts.mean(0)
    means = [
        np.concatenate([z[y.numpy() == c], expected[c : c + 1]]).mean(0) for c in range(CLASSES)
    ]
    got = made(x, y).means(PROMPTS).double().numpy()
    np.testing.assert_allclose(got, np.stack(means) @ matrix.T, rtol=1e-3, atol=1e-3)
    whole = made(x, y, whole=True)  # FedCGS, which knows of no prompts
    assert torch.equal(whole.means(PROMPTS), whole.means())
    nothing = made(x, y).means(PROMPTS[:1].expand(CLASSES, -1))  # prompts that are all alike
    torch.testing.assert_close(nothing, made(x, y).means(), rtol=1e-4, atol=1e-4)


def test_class_vectors_are_between_prompts_and_rows():
    """By hand; a class without rows is where its prompt is."""
    x, y = rows(30, classes=2)
    vectors = made(x, y).vectors(PROMPTS).double().numpy()
    z, prompts = x.double().numpy(), PROMPTS.double().numpy()
    for c in range(2):
        mine = z[y.numpy() == c]
        expected = mine.sum(0) + (1 + len(mine) / 10) * prompts[c]
        np.testing.assert_allclose(vectors[c], expected / np.linalg.norm(expected), atol=1e-6)
    np.testing.assert_allclose(vectors[2], prompts[2], atol=1e-6)
    assert (vectors[:2] * prompts[:2]).sum() < 1.99
    mine, of = rows(6, seed=8)
    assert made(x, y).lacks(of)
    assert not made(x, y).lacks(y)
    newcomer = made(x, y).vectors(PROMPTS, mine, of).double().numpy()
    np.testing.assert_allclose(newcomer[:2], vectors[:2], atol=1e-6)  # its rows of those are none
    new = mine.double().numpy()[of.numpy() == 2]
    expected = new.sum(0) + (1 + len(new) / 10) * prompts[2]
    np.testing.assert_allclose(newcomer[2], expected / np.linalg.norm(expected), atol=1e-6)
    alone = made(x, y).vectors().double().numpy()
    for c in range(CLASSES):
        expected = z[y.numpy() == c].sum(0) + z.mean(0)
        np.testing.assert_allclose(alone[c], expected / np.linalg.norm(expected), atol=1e-6)


def test_own_rows_draw_means():
    """As some rows at the shared mean and the client's own; classes it lacks stay."""
    everyone, (x, y) = rows(80), rows(40, seed=3, classes=2)
    shared = made(*everyone)
    strength = 1 / (1 / 10 + 1 / (np.bincount(everyone[1]) + 1))
    matrix = torch.zeros(WIDTH, WIDTH)
    matrix[torch.tril_indices(WIDTH, WIDTH).unbind()] = shared.whitening
    means = shared.means()
    for c in range(2):
        mine = (x @ matrix.T)[y == c]
        means[c] = (mine.sum(0) + strength[c] * shared.means()[c]) / (len(mine) + strength[c])
    new, _ = rows(5, seed=4)
    expected = new @ matrix.T @ means.T - means.square().sum(1) / 2
    own = replace(shared, personal=True)
    torch.testing.assert_close(own.scores(new, x, y), expected)
    torch.testing.assert_close(own.scores(new, *NOBODY), shared.scores(new, x, y))
    assert not torch.allclose(own.scores(new, x, y)[:, 0], shared.scores(new, x, y)[:, 0])


def test_a_mean_without_rows_gives_way_to_the_first():
    x, y = rows(50, classes=2)
    strength = made(x, y).strength
    assert float(strength[2]) == pytest.approx(1 / 1.1)
    assert all(7 < float(s) < 10 for s in strength[:2])


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("whole", [True, False])
def test_fewer_rows_than_directions_and_absent_classes(count, whole):
    """Classes without rows are as likely as the overall mean makes them; nothing overflows."""
    x, y = rows(count, classes=1)
    scores = made(x, y, whole=whole).scores(x, x, y)
    assert scores.isfinite().all()
    if not whole:
        torch.testing.assert_close(scores[:, 1], scores[:, 2])


def test_averages_of_float32_are_good_enough():
    """What is sent are means over a client's rows in float32."""
    parts = [rows(n, seed) for seed, n in enumerate((3, 50, 11))]
    x, y = (torch.cat(column) for column in zip(*parts, strict=True))
    total = {n: torch.zeros(s).double() for n, s in discriminant.shapes(CLASSES, WIDTH).items()}
    for a, b in parts:
        for name, value in discriminant.sums(a, b, CLASSES).items():
            total[name] += (value / len(a)).float().double() * len(a)
    exactly = discriminant.discriminant(discriminant.sums(x, y, CLASSES))
    for name, value in discriminant.discriminant(total).items():
        torch.testing.assert_close(value, exactly[name], rtol=1e-3, atol=1e-3)
    assert {COUNTS, SUMS, MOMENT} == discriminant.shapes(1, 1).keys()
