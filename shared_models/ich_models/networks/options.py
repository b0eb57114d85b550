"""What `network:` may say in federation.yaml, one class per network; the networks themselves are in the registry."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import AfterValidator, Field, PositiveFloat, model_validator

from ich_models.strict import Strict

Size = Annotated[int, Field(ge=1, le=65536)]
"""Of a layer: bounded, since a file of someone else's decides how much memory is asked for."""

Share = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0)]


def _once(names: list[str]) -> list[str]:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(twice)} stands there twice | name each modality once")
    return names


Once = AfterValidator(_once)

Negatives = Literal["batch", "bank", "none"]
"""What contrast sets a patient apart from: the others of the batch, a bank of fixed public directions, or nothing (1 - cosine
alone). Differential privacy by patient takes the last two, which look at one patient alone."""
Four = tuple[Size, Size, Size, Size]


class Network(Strict):
    """What every network's options share."""

    dtype: Literal["float32", "float64"] = "float32"
    bias: Literal["prevalence", "zero"] = "prevalence"
    """Start of the output bias: the training hospitals' log-odds of the outcome, or 0."""
    class_weights: Literal["none", "federation"] = "none"
    """`federation`: in losses of the outcome, patients with it weigh as much together as those without, counted over the
    training hospitals. Probabilities are then those of a population of half and half."""

    @property
    def has_normalisation(self) -> bool:
        """Whether it has normalisation layers (FedBN keeps them at the hospital)."""
        return False

    @property
    def uses(self) -> Sequence[str]:
        """The modalities that it looks at."""
        return ("table",)

    @property
    def stages(self) -> Sequence[str]:
        """The names of its stages; with one alone, a study's stages may be called anything."""
        return ("train",)


class Logistic(Network):
    """Logistic regression on the table."""

    name: Literal["logistic"]
    init: Literal["zero", "random"] = "zero"


class Mlp(Network):
    """Fully connected layers on the table."""

    name: Literal["mlp"]
    hidden: Annotated[list[Size], Field(min_length=1, max_length=64)] = [64, 64]
    dropout: Share = 0.0
    normalisation: Literal["none", "batch", "layer"] = "none"

    @property
    def has_normalisation(self) -> bool:
        return self.normalisation != "none"


# --- encoders ---------------------------------------------------------------------------------------------------------


PINNED: Final = r"^[a-z0-9][a-z0-9._-]{0,63}$"
"""Regular expression of the name of a pinned file."""


class Pinned(Strict):
    """A file (weights, a vocabulary) that every hospital must use; each says in hospital.yaml where its copy lies."""

    name: Annotated[str, Field(pattern=PINNED)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Encoding(Strict):
    """What every encoder's options share."""

    frozen: bool = False
    """Never trained; its weights do not travel."""
    weights: Pinned | None = None
    """What it starts from; without it, random numbers from the study's seed."""
    checkpoint: bool = False
    """Compute what lies inside its layers again in the backward pass, in place of keeping it: a third more time, and the
    memory of one layer's inside."""


class Normalised(Encoding):
    """An encoder with a choice of normalisation."""

    normalisation: Literal["batch", "group"] = "batch"
    """`group` has no running statistics: folds are then trained in one pass, and patients do not touch each other."""
    group: Size = 4
    """Channels per group."""

    @model_validator(mode="after")
    def _once(self) -> Self:
        if self.checkpoint and self.normalisation == "batch" and not self.frozen:
            raise ValueError("checkpoint would count every batch twice in its statistics | use normalisation: group")
        return self


class ResNet(Normalised):
    """The residual family: ResNet, ResNeXt (`groups`, `group_width`), SE-ResNet (`squeeze`)."""

    name: Literal["resnet"] = "resnet"
    block: Literal["basic", "bottleneck"] = "bottleneck"
    layers: Four = (3, 4, 6, 3)
    widths: Four = (64, 128, 256, 512)
    groups: Size = 1
    group_width: Size = 64
    squeeze: Size | None = None
    stem: Size = 7
    """Width of the first convolution."""
    stem_stride: Size | Literal["in-plane"] = 2
    """Of the first convolution; `in-plane`: 2, but thick slices stay as they are."""
    max_pool: bool = True

    @property
    def width(self) -> int:
        """Features per patient."""
        return self.widths[3] * (4 if self.block == "bottleneck" else 1)


class DenseNet(Normalised):
    """DenseNet; as it stands, DenseNet-121."""

    name: Literal["densenet"]
    features: Size = 64
    growth: Size = 32
    layers: Annotated[tuple[Size, ...], Field(min_length=1, max_length=64)] = (6, 12, 24, 16)
    bottleneck: Size = 4
    dropout: Share = 0.0

    @property
    def width(self) -> int:
        """Features per patient."""
        width = self.features
        for index, count in enumerate(self.layers):
            width = (width if index == 0 else width // 2) + count * self.growth
        return width


class Bert(Encoding):
    """BERT; as it stands, the size of BERT-base with the cased vocabulary."""

    vocabulary: Annotated[int, Field(ge=2, le=1_000_000)] = 28996
    width: Size = 768
    layers: Size = 12
    heads: Size = 12
    feed_forward: Size = 3072
    positions: Size = 512
    dropout: Share = 0.1


class ConvNeXt(Encoding):
    """ConvNeXt-V2; as it stands, Base."""

    channels: Size = 3
    patch: Size = 4
    widths: Four = (128, 256, 512, 1024)
    layers: Four = (3, 3, 27, 3)
    drop_path: Share = 0.0


ImageOptions = Annotated[ResNet | DenseNet, Field(discriminator="name")]

TINY_VOLUME: dict[str, Any] = {
    "name": "resnet",
    "block": "basic",
    "layers": [1, 1, 1, 1],
    "widths": [8, 16, 32, 64],
    "stem": 5,
    "stem_stride": "in-plane",
    "max_pool": False,
    "normalisation": "group",
}
TINY_SLICE: dict[str, Any] = {**TINY_VOLUME, "stem_stride": 2}
TINY_TEXT: dict[str, Any] = {
    "vocabulary": 512,
    "width": 64,
    "layers": 2,
    "heads": 4,
    "feed_forward": 128,
    "positions": 64,
}


def _under(preset: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The preset where nothing is given, section by section."""
    merged = dict(preset)
    for key, value in given.items():
        inside = isinstance(merged.get(key), Mapping) and isinstance(value, Mapping)
        merged[key] = _under(merged[key], value) if inside else value
    return merged


class Sized(Network):
    """A network that comes at its published size and at a tiny one; any key can still be set by itself."""

    TINY: ClassVar[Mapping[str, Any]] = {}

    size: Literal["published", "tiny"] = "published"
    """`tiny` sets other starting values for the keys of this section, small enough for two processor cores."""

    @model_validator(mode="before")
    @classmethod
    def _tiny(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("size") == "tiny":
            return _under(cls.TINY, given)
        return given

    @property
    def has_normalisation(self) -> bool:
        return True

    @property
    def uses(self) -> Sequence[str]:
        return ("image",)


# --- the five networks ------------------------------------------------------------------------------------------------


class IchProLosses(Strict):
    """Weights of VTMF's terms, and what they need. 0 leaves a term out."""

    outcome: Weight = 1.0
    """Cross-entropy on the outcome."""
    imima: Weight = 1.0
    """Contrast within and between modalities."""
    negatives: Negatives = "batch"
    """Of imima."""
    sdm: Weight = 0.84
    prototypes: Weight = 0.0
    """Nearness of image and text to a fixed public vector for each outcome: sdm without other patients."""
    mlm: Weight = 0.45
    temperature: PositiveFloat = 0.07
    """Of imima and prototypes."""
    view_dropout: Share = 0.1
    """What makes the second view of a patient, for contrast within a modality."""
    sdm_temperature: PositiveFloat = 0.02
    sdm_same: Literal["outcome", "patient"] = "outcome"
    """Who counts as the same: patients with the same outcome, or each patient alone."""
    mlm_share: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Tokens asked for."""
    mask_token: Annotated[int, Field(ge=0)] = 103
    """The vocabulary's [MASK]."""
    first_token: Annotated[int, Field(ge=0)] = 106
    """The first id of the vocabulary that is a word and may be masked."""


class IchPro(Sized):
    """ICHPro: CT and clinical text, fused by cross-attention and self-attention."""

    name: Literal["ichpro"]
    bias: Literal["zero"] = "zero"
    modalities: Annotated[list[Literal["image", "text"]], Field(min_length=1), Once] = ["image", "text"]
    image: ImageOptions = ResNet()
    channels: Size = 1
    """Of the volume."""
    standardise: bool = True
    """Each channel to mean 0 and standard deviation 1, by the training hospitals' statistics."""
    text: Bert = Bert()
    tokens: Annotated[int, Field(ge=4, le=512)] = 64
    """Longest text, a power of two."""
    maps: Size = 8
    """Channels of the two feature maps."""
    gram: Literal["plain", "scaled"] = "plain"
    """Products of token features, or these divided by the square root of their width."""
    width: Size = 256
    heads: Size = 16
    order: Annotated[list[Literal["cross", "self"]], Field(min_length=1, max_length=64)] = ["cross", "self"]
    gamma: PositiveFloat = 256.0
    """Start of the learned factors of the two modalities; the softmax before them makes numbers of 1 / width."""
    projection: Size = 256
    """Width of the space in which image and text are aligned."""
    supervise: bool = False
    """Give the encoders heads of their own: the stages `encoders` and `fusion` can then train one after the other."""
    tail: DenseNet = DenseNet(name="densenet")
    losses: IchProLosses = IchProLosses()

    @property
    def uses(self) -> Sequence[str]:
        return self.modalities

    @property
    def stages(self) -> Sequence[str]:
        return ("train", "encoders", "fusion") if self.supervise else ("train",)

    TINY: ClassVar[Mapping[str, Any]] = {
        "image": TINY_VOLUME,
        "standardise": False,
        "text": {**TINY_TEXT, "positions": 32},
        "tokens": 32,
        "gram": "scaled",
        "width": 64,
        "heads": 4,
        "gamma": 64.0,
        "projection": 64,
        "supervise": True,
        "tail": {
            "name": "densenet",
            "features": 16,
            "growth": 8,
            "layers": [2, 2],
            "bottleneck": 2,
            "normalisation": "group",
        },
    }

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.tokens & (self.tokens - 1):
            raise ValueError("tokens must be a power of two | the maps are doubled from 2 to tokens / 2")
        if self.tokens > self.text.positions:
            raise ValueError("tokens is more than text.positions | BERT has no position for the rest")
        if self.width % self.heads:
            raise ValueError("width must be a multiple of heads | every head gets an equal part")
        trains_text = "text" in self.modalities and not self.text.frozen
        if self.losses.mlm and self.text.frozen and "text" in self.modalities:
            raise ValueError("mlm trains nothing with a frozen text encoder | set losses: {mlm: 0}")
        if (
            self.losses.mlm
            and trains_text
            and max(self.losses.mask_token, self.losses.first_token) >= self.text.vocabulary
        ):
            raise ValueError(
                "losses.mask_token or first_token is outside text.vocabulary | give the vocabulary's own ids"
            )
        return self


class VdafmLosses(Strict):
    """Weights of the terms beside the outcome's binary cross-entropy. 0 leaves a term out."""

    semantic: Weight = 0.02
    contrast: Weight = 0.2
    negatives: Negatives = "batch"
    """Of contrast."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Factor of `contrast` per epoch."""
    prototypes: Weight = 0.0
    """Nearness of image and text to a fixed public vector for each outcome."""
    temperature: PositiveFloat = 0.07


class Vdafm(Sized):
    """VDAFM: MRI, report text and table; vision conditions text."""

    name: Literal["vdafm"]
    modalities: Annotated[list[Literal["image", "text", "table"]], Field(min_length=1), Once] = [
        "image",
        "text",
        "table",
    ]
    image: ImageOptions = ResNet(frozen=True)
    channels: Size = 1
    text: Bert = Bert(frozen=True)
    last_layers: Size = 4
    """Of BERT, whose first tokens are used side by side."""
    hidden: Size = 512
    width: Size = 256
    dropout: Share = 0.5
    heads: Size = 16
    feed_forward: Size = 1024
    table_width: Size = 64
    """Of the table's fully connected layer."""
    losses: VdafmLosses = VdafmLosses()

    @property
    def uses(self) -> Sequence[str]:
        return self.modalities

    TINY: ClassVar[Mapping[str, Any]] = {
        "image": {**TINY_VOLUME, "frozen": False},
        "text": {**TINY_TEXT, "frozen": False},
        "last_layers": 2,
        "hidden": 64,
        "width": 32,
        "dropout": 0.1,
        "heads": 4,
        "feed_forward": 64,
        "table_width": 16,
    }

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width % self.heads:
            raise ValueError("width must be a multiple of heads | every head gets an equal part")
        if self.last_layers > self.text.layers:
            raise ValueError("last_layers is more than text.layers | take fewer")
        return self


class MedNvc(Sized):
    """MedNVC: masked-autoencoder ConvNeXt-V2 whose features ask the laboratory values, one token each."""

    name: Literal["mednvc"]
    bias: Literal["zero"] = "zero"
    image: ConvNeXt = ConvNeXt()
    standardise: bool = True
    """Each channel to mean 0 and standard deviation 1, by the training hospitals' statistics."""
    blocks: Size = 2
    """Cross-attention blocks between the encoder's halves."""
    heads: Size = 8
    mlp: Size = 4
    """Times the width, inside a block."""
    throw: Share = 0.2
    """Chance that one modality's values of a patient are replaced in training."""
    thrown: float = -10.0
    """By this number; also what stands for a modality that a patient lacks."""
    masked: Annotated[float, Field(gt=0, lt=1)] = 0.6
    """Share of the patches that the pre-training hides."""
    masked_patch: Size = 32
    """Their side, pixels."""
    decoder: Size = 512
    """Width of the pre-training's decoder block."""

    @property
    def uses(self) -> Sequence[str]:
        return ("image", "table")

    @property
    def stages(self) -> Sequence[str]:
        return ("pretrain", "train")

    TINY: ClassVar[Mapping[str, Any]] = {
        "image": {"widths": [8, 16, 32, 64], "layers": [1, 1, 1, 1]},
        "heads": 4,
        "decoder": 32,
    }

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.image.widths[1] % self.heads:
            raise ValueError("image.widths[1] must be a multiple of heads | every head gets an equal part")
        if self.masked_patch % (self.image.patch * 8):
            raise ValueError("masked_patch must be a multiple of image.patch * 8 | a patch must not be seen in part")
        return self


class HohohoLosses(Strict):
    """The slice encoder's loss."""

    name: Literal["asymmetric", "bce"] = "asymmetric"
    positive: Weight = 1.0
    """Focusing exponent of positives."""
    negative: Weight = 4.0
    """Focusing exponent of negatives."""
    margin: Share = 0.05
    """Probability below which a negative counts for nothing."""
    negatives: Negatives = "batch"
    """Of the pre-training's contrast; `batch`: every other slice of it, also the patient's own."""
    temperature: PositiveFloat = 0.5
    """Of the pre-training's contrast."""


class Hohoho(Sized):
    """HOHOHO: five haemorrhage types by slice, then an LSTM over a patient's slices."""

    name: Literal["hohoho"]
    bias: Literal["zero"] = "zero"
    class_weights: Literal["none"] = "none"
    image: ImageOptions = ResNet(block="basic", layers=(2, 2, 2, 2))
    channels: Size = 3
    """A slice and its two neighbours; 1 for the slice alone."""
    units: Size = 64
    """Of the LSTM."""
    lstm_layers: Size = 2
    bidirectional: bool = False
    end_to_end: bool = False
    """Train the encoder in the stage `sequence` too."""
    projection: tuple[Size, Size] = (512, 128)
    """Hidden and last width of the pre-training's projection."""
    rotation: tuple[Annotated[float, Field(ge=0, le=180)], Annotated[float, Field(ge=0, le=180)]] = (20.0, 50.0)
    """Least and largest turn of a pre-training view, degrees, either way."""
    jitter: Share = 0.2
    """Largest change of a view's brightness and contrast."""
    losses: HohohoLosses = HohohoLosses()

    @property
    def stages(self) -> Sequence[str]:
        return ("pretrain", "encoder", "sequence")

    TINY: ClassVar[Mapping[str, Any]] = {"image": TINY_SLICE, "units": 16, "projection": [64, 32]}


class Dlmi(Sized):
    """DLMI: two backbones on three windows, trained side by side; the mean of their probabilities decides."""

    name: Literal["dlmi"]
    bias: Literal["zero"] = "zero"
    class_weights: Literal["none"] = "none"
    members: Annotated[
        dict[Annotated[str, Field(pattern=r"^[a-z0-9_]+$")], ImageOptions], Field(min_length=1, max_length=64)
    ] = {
        "resnext": ResNet(groups=32, group_width=4),
        "se_resnet": ResNet(squeeze=16),
    }
    channels: Size = 3
    """The three windows."""
    positives: tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """Weights of a positive slice by type, known beforehand; without them, by the training hospitals' counts of slices."""
    weight_cap: PositiveFloat | None = None
    """Largest weight of a positive slice."""

    TINY: ClassVar[Mapping[str, Any]] = {
        "members": {
            "resnext": {**TINY_SLICE, "block": "bottleneck", "groups": 4, "group_width": 16, "widths": [8, 8, 16, 16]},
            "se_resnet": {**TINY_SLICE, "squeeze": 4},
        }
    }


# --- baselines --------------------------------------------------------------------------------------------------------


class Concat(Sized):
    """Late fusion: the features of each modality side by side."""

    name: Literal["concat"]
    modalities: Annotated[list[Literal["image", "text", "table"]], Field(min_length=1), Once] = [
        "image",
        "text",
        "table",
    ]
    image: ImageOptions = ResNet()
    channels: Size = 1
    dimensions: Literal[2, 3] = 3
    """Of the image: slices or volumes."""
    text: Bert = Bert()
    hidden: Size = 64
    dropout: Share = 0.2

    @property
    def uses(self) -> Sequence[str]:
        return self.modalities

    TINY: ClassVar[Mapping[str, Any]] = {"image": TINY_VOLUME, "text": TINY_TEXT}


WithText = IchPro | Vdafm | Concat
"""The networks that can look at text."""


class ImageOnly(Sized):
    """The image encoder and one linear layer."""

    name: Literal["image_only"]
    image: ImageOptions = ResNet()
    channels: Size = 1
    dimensions: Literal[2, 3] = 3

    TINY: ClassVar[Mapping[str, Any]] = {"image": TINY_VOLUME}


class IchScore(Network):
    """The ICH score (Hemphill et al. 2001); nothing is trained. The table's columns that hold its five items."""

    name: Literal["ich_score"]
    bias: Literal["zero"] = "zero"
    class_weights: Literal["none"] = "none"
    gcs: str = "gcs"
    age: str = "age"
    volume: str = "volume"
    """Millilitres."""
    ivh: str = "ivh"
    infratentorial: str = "infratentorial"
    certainty: Annotated[float, Field(gt=0.5, lt=1)] = 0.995
    """Largest probability said in place of 100 %, and the same for 0 %."""


NetworkOptions = Annotated[
    Logistic | Mlp | IchPro | Vdafm | MedNvc | Hohoho | Dlmi | Concat | ImageOnly | IchScore,
    Field(discriminator="name"),
]
