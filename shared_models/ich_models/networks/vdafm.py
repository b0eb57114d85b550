"""VDAFM (Chen et al., 'Vision-Core Guided Contrastive Learning'): stroke outcome from MRI, report text and table."""

from functools import partial

import torch
from torch import nn

from ich_models.batch import Batch, Modality, Output
from ich_models.losses import PerSample, Term, against_bank, alignment, apart, near_prototype, outcome, summed
from ich_models.networks.constants import Standardise
from ich_models.networks.encoders import ImageEncoder, TextEncoder
from ich_models.networks.fusion import Perceiver, perceptron
from ich_models.networks.options import Vdafm, VdafmLosses
from ich_models.networks.staged import StagedNetwork, StageRule, encoded, only


class VdafmNetwork(StagedNetwork):
    """Image (B, C, D, H, W), text (B, L), table (B, D) -> logits (B,). A modality that a patient lacks counts as zeros."""

    def __init__(self, options: Vdafm, columns: int) -> None:
        super().__init__()
        self.modalities: tuple[Modality, ...] = tuple(options.modalities)
        width, entering = options.width, 0
        widths = [options.hidden, width]
        if "image" in self.modalities:
            self.image = ImageEncoder(options.image, options.channels, 3)
            self.image_part = perceptron(options.image.width, widths, options.dropout)
            self.image_out = nn.Linear(width, width)
            entering += width
        if "text" in self.modalities:
            self.text = TextEncoder(options.text, last_layers=options.last_layers)
            self.text_part = perceptron(options.last_layers * options.text.width, widths, options.dropout)
            self.text_out = nn.Linear(width, width)
            entering += width
        self.conditioned = "image" in self.modalities and "text" in self.modalities
        if self.conditioned:
            self.perceiver = Perceiver(width, options.hidden, options.heads, options.feed_forward, options.dropout)
        if "table" in self.modalities:
            self.input = Standardise(columns)
            self.table_part = perceptron(columns, [options.table_width], options.dropout)
            entering += options.table_width
        self.join = perceptron(entering, [width], options.dropout)
        self.output = nn.Linear(width, 1)
        losses = options.losses
        terms = [Term("outcome", outcome, per_sample=True)]
        if self.conditioned and losses.semantic:
            terms.append(Term("semantic", self._semantic, per_sample=True, weight=losses.semantic))
        if self.conditioned and losses.contrast:
            terms.append(self._contrasting(losses))
        if losses.prototypes and {"image", "text"} & set(self.modalities):
            near = partial(self._prototypes, temperature=losses.temperature)
            terms.append(Term("prototypes", near, per_sample=True, weight=losses.prototypes))
        self.stages = {"train": StageRule(terms)}
        self.enter("train")

    def forward(self, batch: Batch) -> Output:
        who: dict[str, torch.Tensor] = {modality: batch.who(modality) for modality in self.modalities}
        found: dict[str, torch.Tensor] = {}
        if "image" in who:
            found["image"] = only(self.image_part(encoded(self.image, batch)), who["image"])
        if "text" in who:
            found["text"] = only(self.text_part(encoded(self.text, batch)), who["text"])
        fused = {name: found[name] for name in ("image", "text") if name in found}
        if self.conditioned:
            fused["image"], fused["text"], found["text_as_image"] = self.perceiver(found["image"], found["text"], who)
            found |= {f"{name}_fused": value for name, value in fused.items()}
        parts = [getattr(self, f"{name}_out")(value) for name, value in fused.items()]
        if "table" in who:
            parts.append(self._table(batch, who["table"], len(batch)))
        found["fused"] = self.join(torch.cat(parts, dim=1))
        return Output(self.output(found["fused"]).squeeze(-1), found, who)

    def _table(self, batch: Batch, who: torch.Tensor, count: int) -> torch.Tensor:
        if batch.table is None:
            width = self.table_part[0].out_features
            return torch.zeros(count, int(width), dtype=self.output.weight.dtype, device=who.device)  # type: ignore[arg-type]
        return only(self.table_part(self.input(batch.table)), who)

    def _semantic(self, output: Output, batch: Batch) -> PerSample:
        """(1 - cos(v^, v')) + (1 - cos(t~, t')), for patients with image and text."""
        found = output.embeddings
        values = apart(found["image_fused"], found["image"]) + apart(found["text_as_image"], found["text"])
        return PerSample(values, _both(output))

    def _contrasting(self, losses: VdafmLosses) -> Term:
        if losses.negatives == "batch":
            contrast = partial(self._contrast, temperature=losses.temperature)
            return Term("contrast", contrast, per_sample=False, weight=losses.contrast, decay=losses.decay)
        if losses.negatives == "bank":
            bank = partial(self._bank, temperature=losses.temperature)
            return Term("bank", bank, per_sample=True, weight=losses.contrast, decay=losses.decay)
        return Term("cosine", self._cosine, per_sample=True, weight=losses.contrast, decay=losses.decay)

    def _contrast(self, output: Output, batch: Batch, *, temperature: float) -> torch.Tensor:
        """Half the sum of InfoNCE on cos(v', t') in both directions."""
        image, text, both = output.embeddings["image"], output.embeddings["text"], _both(output)
        return (alignment(image, text, both, temperature) + alignment(text, image, both, temperature)) / 2

    def _bank(self, output: Output, batch: Batch, *, temperature: float) -> PerSample:
        """The same with fixed negatives."""
        image, text = output.embeddings["image"], output.embeddings["text"]
        return PerSample(
            (against_bank(image, text, temperature) + against_bank(text, image, temperature)) / 2, _both(output)
        )

    def _cosine(self, output: Output, batch: Batch) -> PerSample:
        """The same without negatives: 1 - cos(v', t')."""
        return PerSample(apart(output.embeddings["image"], output.embeddings["text"]), _both(output))

    def _prototypes(self, output: Output, batch: Batch, *, temperature: float) -> PerSample:
        """v' and t' near the vector of the patient's outcome."""
        found, who = output.embeddings, output.present
        return summed(
            (near_prototype(found[name], batch.label, temperature), who[name])
            for name in ("image", "text")
            if name in who
        )


def vdafm(options: Vdafm, columns: int) -> VdafmNetwork:
    """VDAFM for `columns` table columns."""
    return VdafmNetwork(options, columns)


def _both(output: Output) -> torch.Tensor:
    """Patients with image and text."""
    return output.present["image"] & output.present["text"]
