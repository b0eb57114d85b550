"""Loss terms against plain NumPy, small cases worked out by hand, and other libraries."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from monai.losses.contrastive import ContrastiveLoss
from numpy.typing import NDArray
from scipy.fft import dct
from torch.nn.functional import binary_cross_entropy_with_logits

from ich_models.batch import Batch, Output
from ich_models.losses import (
    BCE,
    Objective,
    PerSample,
    Term,
    against_bank,
    alignment,
    apart,
    asymmetric,
    coupled,
    directions,
    masked_patches,
    masked_tokens,
    near_prototype,
    nt_xent,
    outcome,
    over_elements,
    plain,
    similarity_distribution,
    summed,
)

Array = NDArray[np.float64]
EVERYONE = torch.ones(5, dtype=torch.bool)
SOME = torch.tensor([True, False, True, True, False])


def vectors(count: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def unit(a: Array) -> Array:
    result: Array = a / np.linalg.norm(a, axis=1, keepdims=True)
    return result


# --- the outcome ------------------------------------------------------------------------------------------------------


def test_patients_with_the_outcome_weigh_what_the_output_says() -> None:
    """By hand: logits 0 and log 3, both with the outcome and without: log 2, log 4/3, log 2, log 4; positives twice."""
    logits = torch.tensor([0.0, math.log(3), 0.0, math.log(3)], dtype=torch.float64)
    batch = Batch(None, torch.tensor([1.0, 1, 0, 0], dtype=torch.float64))
    want = [math.log(2), math.log(4 / 3), math.log(2), math.log(4)]
    assert outcome(Output(logits), batch).values.tolist() == pytest.approx(want)
    twice = outcome(Output(logits, positive=torch.tensor([2.0], dtype=torch.float64)), batch)
    assert twice.values.tolist() == pytest.approx([2 * want[0], 2 * want[1], *want[2:]])


# --- contrast ---------------------------------------------------------------------------------------------------------


def plain_alignment(a: Array, b: Array, temperature: float) -> float:
    """The formula of the paper, one patient after another."""
    a, b = unit(a), unit(b)
    total = 0.0
    for i in range(len(a)):
        positive = math.exp(a[i] @ b[i] / temperature)
        negatives = sum(math.exp(a[i] @ b[k] / temperature) for k in range(len(b)) if k != i)
        total -= math.log(positive / (positive + negatives))
    return total / len(a)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_alignment_is_the_formula_in_both_directions(temperature: float) -> None:
    a, b = vectors(5, 3, 0), vectors(5, 3, 1)
    forth = alignment(a, b, EVERYONE, temperature).item()
    back = alignment(b, a, EVERYONE, temperature).item()
    assert forth == pytest.approx(plain_alignment(a.numpy(), b.numpy(), temperature), rel=1e-12)
    assert back == pytest.approx(plain_alignment(b.numpy(), a.numpy(), temperature), rel=1e-12)
    assert forth != pytest.approx(back, rel=1e-3)


def test_alignment_by_hand() -> None:
    """Two patients, orthogonal vectors, temperature 1: log(1 + e^-1) each; swapped partners: log(1 + e)."""
    a = torch.eye(2, dtype=torch.float64)
    both = torch.ones(2, dtype=torch.bool)
    assert alignment(a, 3 * a, both, 1.0).item() == pytest.approx(math.log(1 + math.exp(-1)))
    assert alignment(a, a.flip(0), both, 1.0).item() == pytest.approx(math.log(1 + math.e))


def test_alignment_does_not_overflow() -> None:
    a = (vectors(5, 3, 0) * 1e4).float()
    assert math.isfinite(alignment(a, -a, EVERYONE, 0.01).item())


def test_patients_without_a_modality_are_neither_anchors_nor_negatives() -> None:
    a, b = vectors(5, 3, 0), vectors(5, 3, 1)
    same = torch.tensor([1, 0, 1, 0, 1]).bool()
    same = same[:, None] == same
    assert alignment(a, b, SOME, 0.1).item() == pytest.approx(plain_alignment(a[SOME].numpy(), b[SOME].numpy(), 0.1))
    few = similarity_distribution(a[SOME], b[SOME], same[SOME][:, SOME], torch.ones(3, dtype=torch.bool), 0.1)
    assert similarity_distribution(a, b, same, SOME, 0.1).item() == pytest.approx(few.item())
    other = a.clone()
    other[~SOME] = 1e3
    assert alignment(other, b, SOME, 0.1).item() == alignment(a, b, SOME, 0.1).item()


@pytest.mark.parametrize("loss", ["alignment", "sdm", "nt_xent"])
def test_nobody_at_all_is_zero_with_zero_gradient(loss: str) -> None:
    a, b, nobody = vectors(5, 3, 0).requires_grad_(), vectors(5, 3, 1), torch.zeros(5, dtype=torch.bool)
    value = {
        "alignment": lambda: alignment(a, b, nobody, 0.1),
        "sdm": lambda: similarity_distribution(a, b, torch.eye(5) > 0, nobody, 0.1),
        "nt_xent": lambda: nt_xent(a, b, nobody, 0.1),
    }[loss]()
    value.backward()
    assert value.item() == 0
    assert a.grad is not None
    assert torch.equal(a.grad, torch.zeros_like(a))


def plain_sdm(v: Array, t: Array, same: Array, temperature: float) -> float:
    """KL(p || q + 1e-8) of every patient and either direction, element by element."""
    v, t = unit(v), unit(t)

    def one(a: Array, b: Array) -> float:
        total = 0.0
        for i in range(len(a)):
            weights = [math.exp(a[i] @ b[j] / temperature) for j in range(len(b))]
            for j in range(len(b)):
                p, q = weights[j] / sum(weights), same[i, j] / sum(same[i])
                total += p * (math.log(p) - math.log(q + 1e-8))
        return total / len(a)

    return one(v, t) + one(t, v)


@pytest.mark.parametrize("by", ["outcome", "patient"])
def test_similarity_distribution_is_the_formula(by: str) -> None:
    v, t = vectors(5, 3, 0), vectors(5, 3, 1)
    label = torch.tensor([0, 1, 1, 0, 1])
    same = label[:, None] == label if by == "outcome" else torch.eye(5) > 0
    found = similarity_distribution(v, t, same, EVERYONE, 0.2).item()
    assert found == pytest.approx(plain_sdm(v.numpy(), t.numpy(), same.double().numpy(), 0.2), rel=1e-10)


def test_similarity_distribution_by_hand() -> None:
    """All vectors the same: p is uniform over 2. Same outcome: q too, KL = 0. By patient: q = (1, 0), so
    KL = log(1/2) - (log(1 + 1e-8) + log(1e-8)) / 2, twice.
    """
    v = torch.ones(2, 3, dtype=torch.float64)
    both, everyone = torch.ones(2, dtype=torch.bool), torch.ones(2, 2, dtype=torch.bool)
    assert similarity_distribution(v, v, everyone, both, 0.02).item() == pytest.approx(0, abs=1e-7)
    kl = math.log(0.5) - (math.log(1 + 1e-8) + math.log(1e-8)) / 2
    assert similarity_distribution(v, v, torch.eye(2) > 0, both, 0.02).item() == pytest.approx(2 * kl)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_is_monais(temperature: float) -> None:
    a, b = vectors(5, 8, 0), vectors(5, 8, 1)
    theirs = ContrastiveLoss(temperature=temperature)(a, b)
    assert nt_xent(a, b, EVERYONE, temperature).item() == pytest.approx(theirs.item(), rel=1e-6)
    theirs = ContrastiveLoss(temperature=temperature)(a[SOME], b[SOME])
    assert nt_xent(a, b, SOME, temperature).item() == pytest.approx(theirs.item(), rel=1e-6)


def test_apart_by_hand() -> None:
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    b = torch.tensor([[5.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    assert apart(a, b).tolist() == pytest.approx([0.0, 1.0, 2.0])


# --- asymmetric -------------------------------------------------------------------------------------------------------


def test_asymmetric_without_focus_is_binary_cross_entropy() -> None:
    logits, label = vectors(4, 6, 0) * 20, (vectors(4, 6, 1) > 0).double()
    found = asymmetric(logits, label, positive=0, negative=0, margin=0)
    torch.testing.assert_close(found, binary_cross_entropy_with_logits(logits, label, reduction="none"))


@pytest.mark.parametrize("p", [0.01, 0.05, 0.3, 0.9])
def test_asymmetric_by_hand(p: float) -> None:
    logit = torch.tensor([math.log(p / (1 - p))] * 2, dtype=torch.float64)
    positive, negative = asymmetric(logit, torch.tensor([1.0, 0.0], dtype=torch.float64)).tolist()
    assert positive == pytest.approx(-(1 - p) * math.log(p))
    shifted = max(p - 0.05, 0)
    assert negative == pytest.approx(-(shifted**4) * math.log(1 - shifted), abs=1e-15)


@pytest.mark.parametrize("margin", [0.0, 0.05])
@pytest.mark.parametrize("logit", [-200.0, 200.0])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_asymmetric_is_finite_with_its_gradient(logit: float, label: float, margin: float) -> None:
    logits = torch.tensor([logit], requires_grad=True)
    value = asymmetric(logits, torch.tensor([label]), margin=margin)
    value.sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(value).all()
    assert torch.isfinite(logits.grad).all()


# --- masked -----------------------------------------------------------------------------------------------------------


def test_masked_tokens_are_means_by_patient() -> None:
    """Patient 0 has two hidden words, patient 2 one, 1 and 3 none."""
    logits = vectors(3, 7, 0)
    target, patient = torch.tensor([2, 6, 0]), torch.tensor([0, 0, 2])
    found = masked_tokens(logits, target, patient, torch.ones(4, dtype=torch.bool))
    scores = logits.numpy()
    each = [math.log(np.exp(row).sum()) - row[word] for row, word in zip(scores, target.tolist(), strict=True)]
    assert found.values.tolist() == pytest.approx([(each[0] + each[1]) / 2, 0, each[2], 0])
    assert found.who.tolist() == [True, False, True, False]
    assert found.mean().item() == pytest.approx(((each[0] + each[1]) / 2 + each[2]) / 2)
    without = masked_tokens(logits, target, patient, torch.arange(4) > 0)
    assert without.mean().item() == pytest.approx(each[2]), "patient 0 takes no part"


def test_masked_patches_are_normalised_by_patch_and_only_hidden_ones_count() -> None:
    predicted, pixels = vectors(6, 5, 0).reshape(2, 3, 5), vectors(6, 5, 1).reshape(2, 3, 5) * 9 + 4
    hidden = torch.tensor([[True, False, True], [False, True, False]])
    want = []
    for image in range(2):
        errors = []
        for patch in range(3):
            if hidden[image, patch]:
                x = pixels[image, patch].numpy()
                normal = (x - x.mean()) / math.sqrt(x.var(ddof=1) + 1e-6)
                errors.append(((predicted[image, patch].numpy() - normal) ** 2).mean())
        want.append(np.mean(errors))
    assert masked_patches(predicted, pixels, hidden).tolist() == pytest.approx(want)
    predicted[0, 1] = 1e6
    assert masked_patches(predicted, pixels, hidden).tolist() == pytest.approx(want)


def test_slices_are_means_by_patient() -> None:
    """Two slices of 1 and 3 among padding of 100: mean 2; no slices: not concerned."""
    values = torch.tensor([[[1.0, 1.0], [3.0, 3.0], [100.0, 100.0]], [[5.0, 5.0]] * 3])
    slices = torch.tensor([[True, True, False], [False, False, False]])
    found = over_elements(values, slices)
    assert found.values.tolist() == [2.0, 0.0]
    assert found.who.tolist() == [True, False]
    assert found.mean().item() == 2.0
    assert over_elements(values, None).values.tolist() == [pytest.approx(104 / 3), 5.0]


def test_a_loss_of_labels_is_a_mean_of_patients_who_have_any() -> None:
    """Four slices of one type for three patients: labels 1 and 0, one label 1, none. At p = 1/2 each label costs log 2."""
    nan = torch.nan
    label = torch.tensor([[1.0, 0.0, nan, nan], [nan, 1.0, nan, nan], [nan] * 4], dtype=torch.float64)[..., None]
    p = torch.tensor([[0.5, 0.2, 0.9, 0.9], [0.9, 0.4, 0.9, 0.9], [0.9] * 4], dtype=torch.float64)[..., None]
    two = torch.stack([torch.logit(p), torch.zeros_like(p)])
    first = ((-math.log(0.5) - math.log(0.8)) / 2 - math.log(0.4)) / 2
    assert plain(two, label).tolist() == pytest.approx([first, math.log(2)])
    assert plain(two[:, 2:], label[2:]).isnan().all(), "nobody has a label"
    assert plain(two[:, :, 0, 0], torch.tensor([1.0, 0.0, 1.0])).tolist() == pytest.approx(
        [-(math.log(0.5) + math.log(0.1) + math.log(0.9)) / 3, math.log(2)]
    )


# --- terms and their sum ----------------------------------------------------------------------------------------------


class Fixed(torch.nn.Module):
    """Says its parameter of everyone, with terms of its own."""

    def __init__(self, terms: tuple[Term, ...] | None) -> None:
        super().__init__()
        self.logit = torch.nn.Parameter(torch.tensor(0.5))
        if terms is not None:
            self.terms = terms

    def forward(self, batch: Batch) -> Output:
        return Output(self.logit.expand(len(batch)))


def first_two(output: Output, batch: Batch) -> PerSample:
    return PerSample(output.logits * 4, torch.arange(len(batch)) < 2)


def whole(output: Output, batch: Batch) -> torch.Tensor:
    return output.logits.sum()


LABELS = Batch(None, torch.tensor([1.0, 0.0, 1.0]))
TERMS = (Term("own", first_two, per_sample=True, weight=0.5), Term("coupled", whole, per_sample=False, decay=0.5))


@pytest.mark.parametrize(("epoch", "want"), [(0, 0.5 * 2 + 1.5), (1, 0.5 * 2 + 0.75), (3, 0.5 * 2 + 1.5 / 8)])
def test_sum_of_terms_by_epoch(epoch: int, want: float) -> None:
    assert Objective(Fixed(TERMS))(LABELS, epoch).item() == pytest.approx(want)


def test_without_terms_it_is_binary_cross_entropy() -> None:
    want = (2 * math.log(1 + math.exp(-0.5)) + math.log(1 + math.exp(0.5))) / 3
    assert Objective(Fixed(None))(LABELS).item() == pytest.approx(want)
    assert coupled(BCE) == ()


def test_batch_coupled_terms_are_named() -> None:
    assert coupled(TERMS) == ("coupled",)


@pytest.mark.parametrize(
    "term", [Term("t", outcome, per_sample=False), Term("t", whole, per_sample=True)], ids=["per patient", "coupled"]
)
def test_a_term_marked_wrongly_is_refused(term: Term) -> None:
    with pytest.raises(TypeError, match="term 't'"):
        Objective(Fixed((term,)))(LABELS)


@pytest.mark.parametrize("value", [outcome])
def test_per_sample_terms_do_not_look_at_others(value: Any) -> None:
    output, batch = Output(vectors(5, 1, 0)[:, 0]), Batch(None, torch.tensor([0.0, 1, 0, 1, 1], dtype=torch.float64))
    alone = [value(Output(output.logits[i : i + 1]), batch.take(torch.tensor([i]))).values.item() for i in range(5)]
    assert value(output, batch).values.tolist() == pytest.approx(alone)


# --- per-sample forms of what compares patients -----------------------------------------------------------------------


def test_directions_are_orthogonal_unit_vectors() -> None:
    """SciPy's cosine transform has the same."""
    found = directions(7, 12)
    assert torch.allclose(found @ found.T, torch.eye(7, dtype=torch.float64), atol=1e-12)
    assert np.allclose(found.numpy(), dct(np.eye(12), axis=0, norm="ortho")[:7])


@pytest.mark.parametrize("width", [3, 40])
def test_against_the_bank_is_alignment_with_its_directions(width: int) -> None:
    """Patient by patient, by the formula in plain NumPy; a bank of 32, or of what the width allows."""
    a, b = vectors(5, width, 0), vectors(5, width, 1)
    bank = directions(min(33, width), width)[1:].numpy()
    found = against_bank(3 * a, b, 0.2)
    for i, (one, other) in enumerate(zip(unit(a.numpy()), unit(b.numpy()), strict=True)):
        positive = math.exp(one @ other / 0.2)
        negatives = sum(math.exp(sense * (one @ n) / 0.2) for n in bank for sense in (1, -1))
        assert found[i].item() == pytest.approx(-math.log(positive / (positive + negatives)))
    assert torch.equal(
        against_bank(a[:, None].expand(5, 2, width), b[:, None].expand(5, 2, width), 0.2)[:, 1], against_bank(a, b, 0.2)
    )


def test_near_the_prototype_by_hand() -> None:
    """Of two dimensions the prototype is (1, 1) / sqrt 2; on it the odds are e^(2 / 0.5), beside it 1."""
    a = torch.tensor([[5.0, 5.0], [5.0, 5.0], [-1.0, -1.0], [1.0, -1.0]], dtype=torch.float64)
    label = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    right, wrong = math.log(1 + math.exp(-4)), math.log(1 + math.exp(4))
    assert near_prototype(a, label, 0.5).tolist() == pytest.approx([right, wrong, right, math.log(2)])


def test_per_sample_forms_do_not_look_at_others() -> None:
    a, b = vectors(5, 8, 0), vectors(5, 8, 1)
    label = torch.tensor([0.0, 1, 0, 1, 1], dtype=torch.float64)
    forms = [
        lambda rows: against_bank(a[rows], b[rows], 0.1),
        lambda rows: near_prototype(a[rows], label[rows], 0.1),
        lambda rows: apart(a[rows], b[rows]),
    ]
    for form in forms:
        assert form(slice(None)).tolist() == pytest.approx([form(slice(i, i + 1)).item() for i in range(5)])


def test_summed_counts_what_concerns_a_patient() -> None:
    values = torch.tensor([1.0, 2.0, torch.nan]), torch.tensor([10.0, 20.0, torch.nan])
    who = torch.tensor([True, False, False]), torch.tensor([True, True, False])
    found = summed(zip(values, who, strict=True))
    assert found.values.tolist() == [11.0, 20.0, 0.0]
    assert found.mean().item() == 15.5
