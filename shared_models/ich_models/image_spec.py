"""What `modalities.image` may say: which images a study looks at, and the array that every hospital makes of them."""

from typing import Annotated, Final, Literal, Self, get_args

from pydantic import Field, PositiveFloat, model_validator

from ich_models.strict import Strict

Pixels = Annotated[int, Field(ge=8, le=4096)]
Spacing = tuple[PositiveFloat, PositiveFloat, PositiveFloat]
Window = tuple[float, PositiveFloat]
"""Centre and width, HU."""

Windows = Annotated[list[Window], Field(min_length=1, max_length=16)]

BRAIN: Window = (40, 80)
SUBDURAL: Window = (80, 200)
WIDE: Window = (40, 380)
"""A soft-tissue window (some papers call it 'bone')."""


class CtVolume(Strict):
    """A head CT as one volume (C, D, H, W), one channel per window: 0 at a window's lower end and outside, 1 at its upper."""

    kind: Literal["ct"]
    size: tuple[Pixels, Pixels, Pixels] = (32, 224, 224)
    """Voxels: neck to crown, back to front, left to right."""
    spacing: Spacing = (5.0, 0.9, 0.9)
    """Millimetres, in the order of `size`."""
    windows: Windows = [BRAIN]
    brain: Literal["mask", "head", "none"] = "mask"
    """What is left of the volume: brain, the head (bone included), or everything. It is centred in the array."""
    rim: Annotated[float, Field(ge=0, le=20)] = 0.0
    """mm taken off the brain's edge, where bone shines into the voxels and looks like blood; a thin subdural goes with it."""
    least_seen: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the brain that must lie within the array; a patient with less is counted in a warning."""

    @property
    def channels(self) -> int:
        """Channels of the array."""
        return len(self.windows)

    @model_validator(mode="after")
    def _brain_has_a_rim(self) -> Self:
        if self.rim and self.brain != "mask":
            raise ValueError(
                "rim is taken off the brain's edge, and brain is not 'mask' | write brain: mask, or rim: 0"
            )
        return self


class CtSlices(Strict):
    """A head CT as its acquired slices (S, C, H, W), neither moved nor interpolated, in order from neck to crown."""

    kind: Literal["ct_slices"]
    size: tuple[Pixels, Pixels] = (256, 256)
    """Pixels; a slice is scaled to it whole."""
    windows: Windows = [BRAIN]
    neighbours: bool = False
    """The slice below, the slice and the slice above as channels (edges repeated), in each window."""
    crop: bool = False
    """Cut black edges off before scaling."""
    scale: Literal["window", "slice"] = "window"
    """0 to 1 over the window, or over each slice's own least and largest value within it."""
    most: Annotated[int, Field(ge=1, le=1024)] = 64
    """Slices per patient; of a longer series every n-th is taken, those with labels first."""

    @property
    def channels(self) -> int:
        """Channels of a slice."""
        return len(self.windows) * (3 if self.neighbours else 1)


HaemorrhageType = Literal["intraparenchymal", "intraventricular", "subarachnoid", "subdural", "epidural"]
"""What may be seen on a slice, in this order everywhere."""

HAEMORRHAGES: Final[tuple[HaemorrhageType, ...]] = get_args(HaemorrhageType)

Sequence = Literal["DWI", "B0", "ADC", "FLAIR", "SWI", "T2", "T1"]


class MrVolume(Strict):
    """An MR study's sequences on the grid of the first as one volume (C, D, H, W), z-scored within what is not zero."""

    kind: Literal["mr"]
    size: tuple[Pixels, Pixels, Pixels] = (32, 224, 224)
    spacing: Spacing = (5.0, 0.9, 0.9)
    sequences: Annotated[list[Sequence], Field(min_length=1)] = ["DWI", "ADC", "FLAIR"]
    """One channel each; one that a patient lacks is 0 everywhere."""

    @property
    def channels(self) -> int:
        """Channels of the array."""
        return len(self.sequences)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.sequences)) != len(self.sequences):
            raise ValueError("a sequence stands there twice | name each once")
        return self


class Views(Strict):
    """Radiographs (S, C, H, W), 0 to 1, one or more views per patient in order of acquisition."""

    kind: Literal["radiograph"]
    size: tuple[Pixels, Pixels] = (224, 224)
    repeat: Literal[1, 3] = 3
    """Channels: grey, or grey three times."""
    most: Annotated[int, Field(ge=1, le=64)] = 4
    """Views per patient."""

    @property
    def channels(self) -> int:
        """Channels of a view."""
        return self.repeat


ImageSpec = Annotated[CtVolume | CtSlices | MrVolume | Views, Field(discriminator="kind")]
