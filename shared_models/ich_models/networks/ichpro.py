"""ICHPro (arXiv 2402.11307): outcome after intracerebral haemorrhage from CT and clinical text."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.nn.functional import dropout, gelu

from ich_models.batch import Batch, Modality, Output
from ich_models.losses import (
    PerSample,
    Term,
    against_bank,
    alignment,
    apart,
    masked_tokens,
    near_prototype,
    outcome,
    similarity_distribution,
    summed,
)
from ich_models.networks.constants import StandardiseImage
from ich_models.networks.encoders import ImageEncoder, TextEncoder, densenet
from ich_models.networks.fusion import Fusion, Halve, ImageMaps, TextMaps
from ich_models.networks.options import IchPro
from ich_models.networks.staged import Encoder, StagedNetwork, StageRule, among, encoded, only


class LanguageHead(nn.Module):
    """Features of hidden tokens (M, width) -> scores of the vocabulary (M, V). Not tied to the embeddings:

    a tied weight would travel twice, and per-sample gradient hooks fail on it.
    """

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.transform = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.decoder = nn.Linear(width, vocabulary)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.decoder(self.norm(gelu(self.transform(tokens))))
        return scores


class IchProNetwork(StagedNetwork):
    """Image (B, C, D, H, W) and text (B, L) -> logits (B,): the difference of the two classes' logits.

    Stages: `train`; with `supervise` also `encoders` (heads on image, text and both) and `fusion` (encoders kept).
    """

    def __init__(self, options: IchPro) -> None:
        super().__init__()
        self.options = options
        self.modalities: tuple[Modality, ...] = tuple(options.modalities)
        side = options.tokens // 2
        widths: dict[str, int] = {}
        reshaped: dict[str, nn.Module] = {}
        if "image" in self.modalities:
            if options.standardise:
                self.standardise = StandardiseImage(options.channels)
            self.image = ImageEncoder(options.image, options.channels, 3)
            widths["image"] = options.image.width
            group = None if options.tail.normalisation == "batch" else options.tail.group
            reshaped["image"] = ImageMaps(options.image.width, options.maps, side, group=group)
        if "text" in self.modalities:
            self.text = TextEncoder(options.text)
            widths["text"] = options.text.width
            reshaped["text"] = TextMaps(options.tokens, options.maps, side, scaled=options.gram == "scaled")
        self.maps = nn.ModuleDict({name: nn.Sequential(layer, Halve(side)) for name, layer in reshaped.items()})
        self.fusion = Fusion(
            options.order, self.modalities, options.maps, side // 2, options.width, options.heads, options.gamma
        )
        self.tail = densenet(options.tail, 1, 2, 1)
        self.tail.class_layers[-1] = nn.Identity()
        self.output = nn.Linear(options.tail.width, 2)
        losses = options.losses
        if losses.imima or losses.prototypes or (losses.sdm and len(widths) == 2):
            self.align = nn.ModuleDict({name: nn.Linear(width, options.projection) for name, width in widths.items()})
        if losses.mlm and "text" in self.modalities:
            self.language = LanguageHead(options.text.width, options.text.vocabulary)
        if options.supervise:
            heads = {**widths, "both": sum(widths.values())}
            self.supervision = nn.ModuleDict({name: nn.Linear(width, 2) for name, width in heads.items()})
        self.stages = self._stages()
        self.enter("train")

    def _encoder(self, modality: Modality) -> Encoder:
        encoder: Encoder = getattr(self, modality)
        return encoder

    def forward(self, batch: Batch) -> Output:
        who: dict[str, torch.Tensor] = {modality: batch.who(modality) for modality in self.modalities}
        if batch.image is not None and hasattr(self, "standardise"):
            batch = replace(batch, image=self.standardise(batch.image))
        features: dict[str, torch.Tensor] = {
            modality: encoded(self._encoder(modality), batch) for modality in self.modalities
        }
        if "text" in features:
            features["text"] = _padded(features["text"], self.options.tokens)
        pooled = dict(features)
        if "text" in features:
            pooled["text"] = only(self.text.summary(features["text"]), who["text"])
        found = dict(pooled)
        if hasattr(self, "align"):
            found |= self._views(pooled)
        if self.training and hasattr(self, "language") and self.stage != "fusion" and batch.text is not None:
            found |= self._hidden_tokens(batch)
        if self.stage == "encoders":
            return Output(self._supervised(pooled, found), found, who)
        maps = {name: layer(features[name]) for name, layer in self.maps.items()}
        tokens = self.fusion(maps, who)
        found["fused"] = self.tail(tokens.flatten(1)[:, None])
        return Output(_difference(self.output(found["fused"])), found, who)

    def _views(self, pooled: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Projections for alignment, twice: the views of a patient differ by dropout on the features."""
        share = self.options.losses.view_dropout
        found: dict[str, torch.Tensor] = {}
        for name, layer in self.align.items():
            found[f"{name}_aligned"] = layer(dropout(pooled[name], share, self.training))
            found[f"{name}_again"] = layer(dropout(pooled[name], share, self.training))
        return found

    def _hidden_tokens(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The text once more with some words hidden (BERT's 80 / 10 / 10): its tokens (B, L, width), and what was hidden.

        Written with `where`, so that it can be mapped over folds; transformers' collator works outside the network.
        """
        ids, losses = batch.text, self.options.losses
        assert ids is not None
        asked = (ids >= losses.first_token) & (torch.rand(ids.shape, device=ids.device) < losses.mlm_share)
        way = torch.rand(ids.shape, device=ids.device)
        other = torch.randint_like(ids, losses.first_token, self.options.text.vocabulary)
        shown = torch.where(way < 0.8, losses.mask_token, torch.where(way < 0.9, other, ids))
        tokens = among(
            self.text,
            torch.where(asked, shown, ids),
            batch.present.get("text"),
            (ids.shape[1], self.options.text.width),
        )
        return {"text_hidden": tokens, "text_asked": torch.where(asked, ids, -100)}

    def _supervised(self, pooled: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> torch.Tensor:
        for name, value in pooled.items():
            found[f"{name}_logit"] = _difference(self.supervision[name](value))
        return _difference(self.supervision["both"](torch.cat(list(pooled.values()), dim=1)))

    # --- losses

    def _pairs(self, output: Output) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """What imima brings together, and for whom: v2v and t2t, t2v and v2t; without one of the modalities, what is left."""
        found, who = output.embeddings, output.present
        for name, mask in who.items():
            yield found[f"{name}_aligned"], found[f"{name}_again"], mask
        if len(who) == 2:
            image, text, both = found["image_aligned"], found["text_aligned"], who["image"] & who["text"]
            yield text, image, both
            yield image, text, both

    def _imima(self, output: Output, batch: Batch) -> torch.Tensor:
        """Contrast with the other patients of the batch."""
        total = output.logits.new_zeros(())
        for one, other, who in self._pairs(output):
            total = total + alignment(one, other, who, self.options.losses.temperature)
        return total

    def _alone(
        self, output: Output, batch: Batch, *, distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> PerSample:
        """The same pairs without other patients."""
        return summed((distance(one, other), who) for one, other, who in self._pairs(output))

    def _prototypes(self, output: Output, batch: Batch) -> PerSample:
        """Image and text near the vector of the patient's outcome."""
        found, temperature = output.embeddings, self.options.losses.temperature
        return summed(
            (near_prototype(found[f"{name}_aligned"], batch.label, temperature), who)
            for name, who in output.present.items()
        )

    def _sdm(self, output: Output, batch: Batch) -> torch.Tensor:
        """Between image and text."""
        losses, found, who = self.options.losses, output.embeddings, output.present
        same = torch.eye(len(batch), dtype=torch.bool, device=batch.label.device)
        if losses.sdm_same == "outcome":
            same = batch.label[:, None] == batch.label
        both = who["image"] & who["text"]
        return similarity_distribution(
            found["image_aligned"], found["text_aligned"], same, both, losses.sdm_temperature
        )

    def _mlm(self, output: Output, batch: Batch) -> PerSample:
        """Of the words that were hidden; nobody is concerned where none were, as in evaluation."""
        if "text_asked" not in output.embeddings:
            return PerSample(torch.zeros_like(output.logits), torch.zeros_like(output.logits, dtype=torch.bool))
        asked = output.embeddings["text_asked"]
        patient, place = (asked != -100).nonzero(as_tuple=True)
        scores = self.language(output.embeddings["text_hidden"][patient, place])
        return masked_tokens(scores, asked[patient, place], patient, output.present["text"])

    def _own_outcome(self, output: Output, batch: Batch, *, modality: str) -> PerSample:
        """Cross-entropy of one encoder's own head, for the patients who have the modality."""
        alone = outcome(Output(output.embeddings[f"{modality}_logit"], positive=output.positive), batch)
        return PerSample(alone.values, output.present[modality])

    def _stages(self) -> dict[str, StageRule]:
        losses = self.options.losses
        classify = Term("outcome", outcome, per_sample=True, weight=losses.outcome)
        terms: list[Term] = []
        if losses.imima and losses.negatives == "batch":
            terms.append(Term("imima", self._imima, per_sample=False, weight=losses.imima))
        elif losses.imima and losses.negatives == "bank":
            bank = partial(self._alone, distance=partial(against_bank, temperature=losses.temperature))
            terms.append(Term("bank", bank, per_sample=True, weight=losses.imima))
        elif losses.imima:
            terms.append(Term("cosine", partial(self._alone, distance=apart), per_sample=True, weight=losses.imima))
        if losses.prototypes:
            terms.append(Term("prototypes", self._prototypes, per_sample=True, weight=losses.prototypes))
        if losses.sdm and len(self.modalities) == 2:
            terms.append(Term("sdm", self._sdm, per_sample=False, weight=losses.sdm))
        if hasattr(self, "language"):
            terms.append(Term("mlm", self._mlm, per_sample=True, weight=losses.mlm))
        children = {name for name, _ in self.named_children()}
        together = tuple(sorted(children - {"supervision"}))
        stages = {"train": StageRule([classify, *terms], together)}
        if "supervision" in children:
            heads = [
                Term(
                    f"outcome_{name}", partial(self._own_outcome, modality=name), per_sample=True, weight=losses.outcome
                )
                for name in self.modalities
            ]
            fused = {"maps", "fusion", "tail", "output"}
            stages["encoders"] = StageRule([classify, *heads, *terms], tuple(sorted(children - fused)))
            stages["fusion"] = StageRule([classify], tuple(sorted(fused)))
        return stages


def ichpro(options: IchPro) -> IchProNetwork:
    """ICHPro."""
    return IchProNetwork(options)


def _difference(logits: torch.Tensor) -> torch.Tensor:
    """Two classes' logits (B, 2) -> (B,): cross-entropy on the two is binary cross-entropy on their difference."""
    return logits[:, 1] - logits[:, 0]


def _padded(tokens: torch.Tensor, length: int) -> torch.Tensor:
    """(B, L, D) with zeros up to `length` tokens."""
    short = length - tokens.shape[1]
    if short < 0:
        raise ValueError(f"a text of {tokens.shape[1]} tokens for a network of {length}")
    return torch.nn.functional.pad(tokens, (0, 0, 0, short))
