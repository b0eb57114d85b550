"""Loss terms: what each is, whether one patient alone decides it, and the sum that a network is trained with.

A per-sample term gives one number per patient; its batch value is the mean over the patients whom it concerns. A
batch-coupled term compares patients with one another; DP-SGD refuses it, since one patient then moves everyone's gradient.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Final

import torch
from torch import nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cosine_similarity,
    cross_entropy,
    log_softmax,
    logsigmoid,
    normalize,
)

from ich_models.batch import Batch, Output
from ich_models.networks.constants import ClassWeights

EPS: Final = 1e-8
"""Of SDM's KL divergence."""

BANK: Final = 32
"""Directions of the negative bank, each in both senses."""


# --- terms and their sum ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PerSample:
    """A number per patient, `values` (B,), and `who` (B,) bool: the patients whom the term concerns (None: everyone)."""

    values: torch.Tensor
    who: torch.Tensor | None = None

    def mean(self) -> torch.Tensor:
        """Over the patients concerned; 0 if there are none."""
        if self.who is None:
            return self.values.mean()
        kept = torch.where(self.who, self.values, torch.zeros_like(self.values))
        return kept.sum() / self.who.sum().clamp(min=1)


@dataclass(frozen=True)
class Term:
    """`weight` * `decay` ** epoch times a loss. `value(output, batch)` gives PerSample, or a scalar if the term is batch-coupled.

    Where a term needs tensors of its network, as class weights are, it is one of the network's methods.
    """

    name: str
    value: Callable[[Output, Batch], PerSample | torch.Tensor]
    per_sample: bool
    weight: float = 1.0
    decay: float = 1.0

    def at(self, epoch: float) -> float:
        """The weight in an epoch, counted from 0 over all of the study's local epochs."""
        return float(self.weight * self.decay**epoch)

    def scalar(self, output: Output, batch: Batch) -> torch.Tensor:
        """The unweighted loss of the batch."""
        value = self.value(output, batch)
        if isinstance(value, PerSample) is not self.per_sample:
            raise TypeError(f"term '{self.name}' is {'not ' * (not self.per_sample)}marked per_sample")
        return value.mean() if isinstance(value, PerSample) else value

    def weighted(self, output: Output, batch: Batch, epoch: float) -> torch.Tensor:
        """The loss of the batch with its weight in `epoch`."""
        value, weight = self.scalar(output, batch), self.at(epoch)
        return value if weight == 1.0 else weight * value


def summed(parts: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> PerSample:
    """Of several numbers per patient, (B,), each with whom it concerns, (B,) bool: the sum of those that concern a patient."""
    values, who = zip(*parts, strict=True)
    kept = [torch.where(mask, value, torch.zeros_like(value)) for value, mask in zip(values, who, strict=True)]
    return PerSample(torch.stack(kept).sum(0), torch.stack(who).any(0))


def outcome(output: Output, batch: Batch) -> PerSample:
    """Binary cross-entropy on one logit per patient, (B,): -w y log p - (1 - y) log(1 - p), w = `output.positive` or 1."""
    values = binary_cross_entropy_with_logits(output.logits, batch.label, reduction="none", pos_weight=output.positive)
    return PerSample(values)


BCE: Final = (Term("bce", outcome, per_sample=True),)
"""What a network without terms of its own is trained with."""


def terms_of(network: nn.Module) -> Sequence[Term]:
    """A network's own terms in its present stage, or the binary cross-entropy."""
    own: Sequence[Term] = getattr(network, "terms", BCE)
    return own


def coupled(terms: Sequence[Term]) -> tuple[str, ...]:
    """Names of the terms that need other patients in the batch."""
    return tuple(term.name for term in terms if not term.per_sample)


def parts(network: nn.Module, output: Output, batch: Batch) -> Mapping[str, torch.Tensor]:
    """Each term's unweighted value, by name, for the log."""
    return {term.name: term.scalar(output, batch) for term in terms_of(network)}


class Objective(nn.Module):
    """A network with its loss: `forward(batch, epoch)` -> the weighted sum of its terms, a scalar.

    A module, so that `functional_call` can exchange the network's tensors for those of a fold, in forward and loss alike.
    """

    PREFIX: Final = "network."

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Batch, epoch: float = 0.0) -> torch.Tensor:
        output: Output = self.network(batch)
        weights: ClassWeights | None = getattr(self.network, "class_weights", None)
        if weights is not None:
            output = replace(output, positive=weights.positive)
        first, *others = terms_of(self.network)
        total = first.weighted(output, batch, epoch)
        for term in others:
            total = total + term.weighted(output, batch, epoch)
        return total


# --- per sample -------------------------------------------------------------------------------------------------------


def over_elements(values: torch.Tensor, which: torch.Tensor | None) -> PerSample:
    """(B, S, K) -> mean per patient over what is in `which`: slices (B, S) with all K, or single elements (B, S, K).

    A patient with nothing in it is not concerned.
    """
    if which is None:
        return PerSample(values.flatten(1).mean(1))
    which = (which if which.ndim == values.ndim else which[..., None]).expand_as(values)
    kept = torch.where(which, values, torch.zeros_like(values)).sum((1, 2))
    count = which.sum((1, 2))
    return PerSample(kept / count.clamp(min=1), count > 0)


def plain(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of F models, mean over patients: (F, B), (B,) -> (F,).

    Of slices, (F, B, S, K) and (B, S, K), each patient's is the mean over its labels; where there is none it is NaN, and a
    patient without any does not count. NaN if nobody has a label.
    """
    known = ~torch.isnan(label)
    filled = torch.where(known, label, torch.zeros_like(label)).expand_as(logits)
    values = binary_cross_entropy_with_logits(logits, filled, reduction="none")
    if label.ndim == 1:
        return values.mean(1)
    values = torch.where(known, values, torch.zeros_like(values)).flatten(2).sum(2)
    count = known.flatten(1).sum(1)
    return (values / count.clamp(min=1)).sum(1) / (count > 0).sum()


def asymmetric(
    logits: torch.Tensor, label: torch.Tensor, *, positive: float = 1.0, negative: float = 4.0, margin: float = 0.05
) -> torch.Tensor:
    """Asymmetric loss per element (Ridnik et al. 2021):

    -y (1 - p)^positive log p - (1 - y) p_m^negative log(1 - p_m), p_m = max(p - margin, 0).
    """
    p = torch.sigmoid(logits)
    shifted = (p - margin).clamp(min=0)
    # without a margin 1 - p is sigmoid(-logit), whose logarithm stays finite however sure the network is
    log_rest = logsigmoid(-logits) if margin == 0 else torch.log1p(-shifted)
    return -label * (1 - p) ** positive * logsigmoid(logits) - (1 - label) * shifted**negative * log_rest


def apart(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """1 - cosine per patient: (B, D), (B, D) -> (B,)."""
    return 1 - cosine_similarity(a, b, dim=-1)


@cache
def directions(count: int, width: int) -> torch.Tensor:
    """(count, width) float64: orthogonal unit vectors, the first rows of the discrete cosine transform.

    Fixed numbers that everybody knows, in place of what other patients would say. `count` is at most `width`.
    """
    place = (torch.arange(width, dtype=torch.float64) + 0.5) * math.pi / width
    waves = torch.cos(torch.arange(count, dtype=torch.float64)[:, None] * place)
    unit: torch.Tensor = waves / torch.linalg.vector_norm(waves, dim=1, keepdim=True)
    return unit


def against_bank(a: torch.Tensor, b: torch.Tensor, temperature: float) -> torch.Tensor:
    """Alignment with fixed negatives: -log( d(a, b) / (d(a, b) + sum over n d(a, n)) ), d = exp(cosine / temperature).

    The per-sample form of `alignment`: n are `directions`, in both senses, and no other patient. (..., D) twice -> (...).
    """
    a, b = normalize(a, dim=-1), normalize(b, dim=-1)
    # the first of the directions belongs to the prototypes
    along = a @ directions(min(BANK + 1, a.shape[-1]), a.shape[-1])[1:].to(a).T
    scores = torch.cat([(a * b).sum(-1, keepdim=True), along, -along], dim=-1) / temperature
    return -log_softmax(scores, dim=-1)[..., 0]


def near_prototype(a: torch.Tensor, label: torch.Tensor, temperature: float) -> torch.Tensor:
    """Cross-entropy of the outcome by nearness to one fixed public vector per class, p and -p: (B, D), (B,) -> (B,).

    The per-sample form of matching similarity distributions: patients with the same outcome are drawn to the same place.
    """
    prototype = directions(1, a.shape[-1])[0].to(a)
    return binary_cross_entropy_with_logits(
        2 * (normalize(a, dim=-1) @ prototype) / temperature, label, reduction="none"
    )


def masked_tokens(logits: torch.Tensor, target: torch.Tensor, patient: torch.Tensor, who: torch.Tensor) -> PerSample:
    """Masked-language loss of M hidden tokens: (M, V), their ids (M,), whose they are (M,) -> each patient's mean, (B,)."""
    values = cross_entropy(logits, target, reduction="none")
    sums = torch.zeros(len(who), dtype=values.dtype, device=values.device).index_add(0, patient, values)
    asked = torch.zeros(len(who), dtype=torch.int64, device=who.device).index_add(0, patient, torch.ones_like(patient))
    return PerSample(sums / asked.clamp(min=1), who & (asked > 0))


def masked_patches(predicted: torch.Tensor, pixels: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Mean squared error on the hidden patches, each patch's pixels normalised (He et al. 2022).

    `predicted`, `pixels`: (N, P, K), P patches of K numbers. `hidden`: (N, P) bool. -> (N,).
    """
    centred = pixels - pixels.mean(-1, keepdim=True)
    target = centred / (centred.square().sum(-1, keepdim=True) / (pixels.shape[-1] - 1) + 1e-6).sqrt()
    errors = (predicted - target).square().mean(-1)
    return (errors * hidden).sum(1) / hidden.sum(1).clamp(min=1)


# --- batch-coupled ----------------------------------------------------------------------------------------------------


def _anchors(values: torch.Tensor, who: torch.Tensor) -> torch.Tensor:
    """Mean over the patients who take part."""
    return torch.where(who, values, torch.zeros_like(values)).sum() / who.sum().clamp(min=1)


def alignment(a: torch.Tensor, b: torch.Tensor, who: torch.Tensor, temperature: float) -> torch.Tensor:
    """A2B alignment, which is InfoNCE: -log( d(a_i, b_i) / sum over k d(a_i, b_k) ), d = exp(cosine / temperature).

    (B, D), (B, D); only patients in `who` are anchors, positives or negatives. A scalar.
    """
    similarity = normalize(a, dim=-1) @ normalize(b, dim=-1).T / temperature
    others = similarity.masked_fill(~who, torch.finfo(similarity.dtype).min)
    return _anchors(-log_softmax(others, dim=1).diagonal(), who)


def similarity_distribution(
    a: torch.Tensor, b: torch.Tensor, same: torch.Tensor, who: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Similarity distribution matching (Jiang and Ye 2023), both directions: KL(p || q + 1e-8).

    p: softmax over the others of cosine / temperature. q: `same` (B, B) bool, normalised by row. A scalar.
    """
    both = who[:, None] & who
    true = (same & both).to(a.dtype)
    similarity = normalize(a, dim=-1) @ normalize(b, dim=-1).T / temperature

    def divergence(scores: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        q = true / true.sum(1, keepdim=True).clamp(min=1)
        log_p = log_softmax(scores.masked_fill(~who, torch.finfo(scores.dtype).min), dim=1)
        each = torch.where(both, log_p.exp() * (log_p - torch.log(q + EPS)), torch.zeros_like(log_p))
        return _anchors(each.sum(1), who)

    return divergence(similarity, true) + divergence(similarity.T, true.T)


def nt_xent(a: torch.Tensor, b: torch.Tensor, who: torch.Tensor, temperature: float) -> torch.Tensor:
    """SimCLR's loss (Chen et al. 2020) on two views (N, D) of the items in `who` (N,) bool. A scalar."""
    both = normalize(torch.cat([a, b]), dim=-1)
    taken = torch.cat([who, who])
    count = len(a)
    itself = torch.eye(2 * count, dtype=torch.bool, device=a.device)
    scores = (both @ both.T / temperature).masked_fill(itself | ~taken, torch.finfo(both.dtype).min)
    return _anchors(-log_softmax(scores, dim=1).roll(-count, dims=1).diagonal(), taken)
