"""DLMI (Huang and Chen): five haemorrhage types by slice; two backbones trained side by side, their probabilities averaged."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn
from torch.nn.functional import logsigmoid

from ich_models.batch import Batch, Output
from ich_models.losses import PerSample, Term
from ich_models.networks.constants import Balance
from ich_models.networks.encoders import ImageEncoder
from ich_models.networks.options import Dlmi
from ich_models.networks.slices import TYPES, all_slices, slice_features, sliced_bce, there
from ich_models.networks.staged import Encoder, StagedNetwork, StageRule


class DlmiNetwork(StagedNetwork):
    """Slices (B, S, C, H, W) -> logits (B, S, 5), whose sigmoid is the mean of the members' sigmoids.

    The loss is the sum of the members' losses: no tensor is in two members, so each trains as if alone.
    """

    def __init__(self, options: Dlmi) -> None:
        super().__init__()
        self.members = nn.ModuleDict(
            {name: ImageEncoder(encoder, options.channels, 2) for name, encoder in options.members.items()}
        )
        self.output = nn.ModuleDict(
            {name: nn.Linear(encoder.width, len(TYPES)) for name, encoder in options.members.items()}
        )
        self.balance = Balance(options.weight_cap, options.positives)
        self.stages = {
            "train": StageRule(
                [Term(f"bce_{name}", partial(self._member, name=name), per_sample=True) for name in options.members]
            )
        }
        self.enter("train")

    def forward(self, batch: Batch) -> Output:
        images, real = all_slices(batch), there(batch)
        found: dict[str, torch.Tensor] = {}
        for path, encoder in self.encoders():
            name = path.removeprefix("members.")
            found[name] = slice_features(encoder, images, batch)
            found[f"{name}_logits"] = self.output[name](found[name])
        together = torch.stack([found[f"{name}_logits"] for name in self.members])
        # log(mean p) - log(mean(1 - p)): the logit of the mean, finite however sure the members are
        mean = logsigmoid(together).logsumexp(0) - logsigmoid(-together).logsumexp(0)
        return Output(mean, found, {"image": batch.who("image") & real.any(1)})

    def resting(self) -> Iterator[Encoder]:
        """None: features are kept by modality, and every member has its own of the image."""
        yield from ()

    def _member(self, output: Output, batch: Batch, *, name: str) -> PerSample:
        """One member's loss."""
        return sliced_bce(Output(output.embeddings[f"{name}_logits"]), batch, self.balance.weight())


def dlmi(options: Dlmi) -> DlmiNetwork:
    """DLMI."""
    return DlmiNetwork(options)
