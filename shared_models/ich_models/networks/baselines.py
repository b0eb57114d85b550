"""Baselines that every study is compared with: late fusion, the image alone, and the ICH score."""

from collections.abc import Sequence

import torch
from torch import nn

from ich_models.batch import Batch, Modality, Output
from ich_models.losses import Term, outcome
from ich_models.networks.constants import Standardise
from ich_models.networks.encoders import ImageEncoder, TextEncoder
from ich_models.networks.options import Concat, IchScore, ImageOnly
from ich_models.networks.staged import StagedNetwork, StageRule, encoded, only


class ConcatNetwork(StagedNetwork):
    """Features of image (B, C, *space), text (B, L) and table (B, D) side by side -> a perceptron -> logits (B,)."""

    def __init__(self, options: Concat, columns: int) -> None:
        super().__init__()
        self.modalities: tuple[Modality, ...] = tuple(options.modalities)
        self.widths: dict[str, int] = {}
        if "image" in self.modalities:
            self.image = ImageEncoder(options.image, options.channels, options.dimensions)
            self.widths["image"] = options.image.width
        if "text" in self.modalities:
            self.text = TextEncoder(options.text)
            self.widths["text"] = options.text.width
        if "table" in self.modalities:
            self.input = Standardise(columns)
            self.widths["table"] = columns
        self.join = nn.Sequential(
            nn.Linear(sum(self.widths.values()), options.hidden),
            nn.LayerNorm(options.hidden),
            nn.GELU(),
            nn.Dropout(options.dropout),
        )
        self.output = nn.Linear(options.hidden, 1)
        self.stages = {"train": StageRule([Term("outcome", outcome, per_sample=True)])}
        self.enter("train")

    def forward(self, batch: Batch) -> Output:
        who: dict[str, torch.Tensor] = {modality: batch.who(modality) for modality in self.modalities}
        found: dict[str, torch.Tensor] = {}
        if "image" in who:
            found["image"] = encoded(self.image, batch)
        if "text" in who:
            found["text"] = only(self.text.summary(encoded(self.text, batch)), who["text"])
        if "table" in who:
            table = batch.table
            if table is None:
                table = torch.zeros(len(batch), self.widths["table"], dtype=self.output.weight.dtype)
            found["table"] = only(self.input(table), who["table"])
        found["fused"] = self.join(torch.cat(list(found.values()), dim=1))
        return Output(self.output(found["fused"]).squeeze(-1), found, who)


class ImageOnlyNetwork(StagedNetwork):
    """Image (B, C, *space) -> features -> logits (B,)."""

    def __init__(self, options: ImageOnly) -> None:
        super().__init__()
        self.image = ImageEncoder(options.image, options.channels, options.dimensions)
        self.output = nn.Linear(options.image.width, 1)
        self.stages = {"train": StageRule([Term("outcome", outcome, per_sample=True)])}
        self.enter("train")

    def forward(self, batch: Batch) -> Output:
        features = encoded(self.image, batch)
        return Output(self.output(features).squeeze(-1), {"image": features}, {"image": batch.who("image")})


class IchScoreNetwork(nn.Module):
    """The ICH score (Hemphill et al. 2001): table (B, D) -> logits (B,) of its 30-day mortality.

    GCS 3-4 = 2, 5-12 = 1; age >= 80 = 1; volume >= 30 mL = 1; intraventricular blood = 1; infratentorial = 1.
    Nobody in the published cohort had 6 points: its 100 % is an estimate.
    A missing item takes the study's imputation. Nothing is trained. Embedding 'score' (B,): 0 to 6.
    """

    mortality: torch.Tensor

    def __init__(self, options: IchScore, names: Sequence[str]) -> None:
        super().__init__()
        items = (options.gcs, options.age, options.volume, options.ivh, options.infratentorial)
        # a yes or no has one column, of its yes
        wanted = [name if name in names else f"{name}=yes" for name in items]
        if missing := [name.removesuffix("=yes") for name in wanted if name not in names]:
            raise ValueError(f"the ICH score needs table columns {', '.join(missing)} | there are {', '.join(names)}")
        self.columns = [list(names).index(name) for name in wanted]
        self.input = Standardise(len(names))
        rates = torch.tensor([0.0, 0.13, 0.26, 0.72, 0.97, 1.0, 1.0])
        self.register_buffer("mortality", rates.clamp(1 - options.certainty, options.certainty))

    def forward(self, batch: Batch) -> Output:
        if batch.table is None:
            raise ValueError("the ICH score needs batch.table")
        items = torch.where(torch.isnan(batch.table), self.input.fill, batch.table)[:, self.columns]
        gcs, age, volume, ivh, below = items.unbind(1)
        points = [gcs < 13, gcs < 5, age >= 80, volume >= 30, ivh >= 0.5, below >= 0.5]
        score = torch.stack(points).sum(0)
        return Output(torch.logit(self.mortality)[score], {"score": score.to(items.dtype)})


def concat(options: Concat, columns: int) -> ConcatNetwork:
    """Late fusion for `columns` table columns."""
    return ConcatNetwork(options, columns)


def image_only(options: ImageOnly) -> ImageOnlyNetwork:
    """The image alone."""
    return ImageOnlyNetwork(options)
