"""What `network:` may say in federation.yaml, one class per network; the networks themselves are in the registry."""

from typing import Annotated, Literal

from pydantic import Field

from ich_models.strict import Strict


class Network(Strict):
    """What every network's options share."""

    dtype: Literal["float32", "float64"] = "float32"
    bias: Literal["prevalence", "zero"] = "prevalence"
    """Start of the output bias: the training hospitals' log-odds of the outcome, or 0."""

    @property
    def has_normalisation(self) -> bool:
        """Whether it has normalisation layers (FedBN keeps them at the hospital)."""
        return False


class Logistic(Network):
    """Logistic regression on the table."""

    name: Literal["logistic"]
    init: Literal["zero", "random"] = "zero"


class Mlp(Network):
    """Fully connected layers on the table."""

    name: Literal["mlp"]
    hidden: Annotated[list[Annotated[int, Field(ge=1, le=65536)]], Field(min_length=1, max_length=64)] = [64, 64]
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    normalisation: Literal["none", "batch", "layer"] = "none"

    @property
    def has_normalisation(self) -> bool:
        return self.normalisation != "none"


NetworkOptions = Annotated[Logistic | Mlp, Field(discriminator="name")]
