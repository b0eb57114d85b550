"""HOHOHO (Ho et al.): five haemorrhage types by slice with an asymmetric loss, then an LSTM over a patient's slices."""

import torch
from torch import nn

from ich_models.batch import Batch, Output
from ich_models.losses import PerSample, Term, against_bank, apart, asymmetric, nt_xent, over_elements
from ich_models.networks.encoders import ImageEncoder
from ich_models.networks.options import Hohoho
from ich_models.networks.slices import TYPES, all_slices, labelled, slice_features, sliced_bce, there, turned
from ich_models.networks.staged import Encoder, StagedNetwork, StageRule


class SliceSequence(nn.Module):
    """Stacked LSTM over slices in z order: (B, T, width), real (B, T) bool -> (B, T, units or 2 * units).

    Padding stands at the end. The backward direction begins at each patient's own last slice, so that padding reaches
    nothing; packed sequences would do the same, but per-sample gradients do not survive them.
    """

    def __init__(self, width: int, units: int, layers: int, *, bidirectional: bool) -> None:
        super().__init__()
        outputs = units * (2 if bidirectional else 1)
        entering = [width] + [outputs] * (layers - 1)
        self.forwards = nn.ModuleList([nn.LSTM(size, units, batch_first=True) for size in entering])
        self.backwards = nn.ModuleList(
            [nn.LSTM(size, units, batch_first=True) for size in entering] if bidirectional else []
        )

    def forward(self, features: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        length, steps = real.sum(1, keepdim=True), torch.arange(real.shape[1], device=real.device)
        turn = torch.where(steps < length, length - 1 - steps, steps)[..., None]
        for number, layer in enumerate(self.forwards):
            onward = layer(features)[0]
            if self.backwards:
                turned_round = features.gather(1, turn.expand_as(features))
                back = self.backwards[number](turned_round)[0]
                onward = torch.cat([onward, back.gather(1, turn.expand_as(back))], dim=-1)
            features = onward
        return features


class HohohoNetwork(StagedNetwork):
    """Slices (B, S, C, H, W) -> logits (B, S, 5). Stages: `pretrain` (SimCLR), `encoder`, `sequence`. It begins in `encoder`.

    `output` reads single slices in the stage `encoder`, `sequence_output` the LSTM in `sequence`.
    """

    def __init__(self, options: Hohoho) -> None:
        super().__init__()
        self.options = options
        width, (hidden, last) = options.image.width, options.projection
        units = options.units * (2 if options.bidirectional else 1)
        self.image = ImageEncoder(options.image, options.channels, 2)
        self.project = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, last))
        self.output = nn.Linear(width, len(TYPES))
        self.sequence = SliceSequence(width, options.units, options.lstm_layers, bidirectional=options.bidirectional)
        self.sequence_output = nn.Linear(units, len(TYPES))
        name = options.losses.name
        slices = Term(name, self._asymmetric if name == "asymmetric" else sliced_bce, per_sample=True)
        last_stage = ("image", "sequence", "sequence_output") if options.end_to_end else ("sequence", "sequence_output")
        self.stages = {
            "pretrain": StageRule([self._contrasting()], ("image", "project")),
            "encoder": StageRule([slices], ("image", "output")),
            "sequence": StageRule([Term("bce", sliced_bce, per_sample=True)], last_stage),
        }
        self.enter("encoder")

    def forward(self, batch: Batch) -> Output:
        real = there(batch)
        who = {"image": batch.who("image") & real.any(1)}
        if self.stage == "pretrain":
            images = all_slices(batch)
            views = [
                self.project(
                    slice_features(self.image, turned(images, self.options.rotation, self.options.jitter), batch)
                )
                for _ in range(2)
            ]
            nothing = views[0].new_full((*views[0].shape[:2], len(TYPES)), torch.nan)
            return Output(nothing, {"one": views[0], "other": views[1], "real": real}, who)
        features = batch.features.get("image")
        if features is None:
            features = slice_features(self.image, all_slices(batch), batch)
        if self.stage == "encoder":
            return Output(self.output(features), {"image": features}, who)
        read = self.sequence(features, real)
        return Output(self.sequence_output(read), {"image": features, "sequence": read}, who)

    def features(self, encoder: Encoder, batch: Batch) -> torch.Tensor:
        return slice_features(encoder, all_slices(batch), batch)

    def _asymmetric(self, output: Output, batch: Batch) -> PerSample:
        losses = self.options.losses
        label, known = labelled(batch)
        values = asymmetric(
            output.logits, label, positive=losses.positive, negative=losses.negative, margin=losses.margin
        )
        return over_elements(values, known)

    def _contrasting(self) -> Term:
        match self.options.losses.negatives:
            case "batch":
                return Term("contrast", self._contrast, per_sample=False)
            case "bank":
                return Term("bank", self._bank, per_sample=True)
            case "none":
                return Term("cosine", self._cosine, per_sample=True)

    def _contrast(self, output: Output, batch: Batch) -> torch.Tensor:
        """Every slice of the batch is an item; the other slices, also the patient's own, are its negatives."""
        found = output.embeddings
        one, other, real = found["one"].flatten(0, 1), found["other"].flatten(0, 1), found["real"].flatten()
        return nt_xent(one, other, real, self.options.losses.temperature)

    def _bank(self, output: Output, batch: Batch) -> PerSample:
        """A slice's two views set apart from fixed directions; mean over a patient's slices."""
        found, temperature = output.embeddings, self.options.losses.temperature
        one, other = found["one"], found["other"]
        values = (against_bank(one, other, temperature) + against_bank(other, one, temperature)) / 2
        return over_elements(values[..., None], found["real"])

    def _cosine(self, output: Output, batch: Batch) -> PerSample:
        """1 - cosine of a slice's two views; mean over a patient's slices."""
        found = output.embeddings
        return over_elements(apart(found["one"], found["other"])[..., None], found["real"])


def hohoho(options: Hohoho) -> HohohoNetwork:
    """HOHOHO."""
    return HohohoNetwork(options)
