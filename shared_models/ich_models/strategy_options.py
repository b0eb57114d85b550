"""What `training.strategy` may say in federation.yaml, one class per algorithm; the algorithms are in ich_strategies."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import BeforeValidator, Field, PositiveFloat

from ich_models.strict import Strict
from ich_models.variables import Complaint

if TYPE_CHECKING:
    from ich_models.federation import Federation

HERE = ("training", "strategy", "name")


class Options(Strict):
    """What every strategy's options share."""

    def contradictions(self, federation: "Federation") -> Iterator[Complaint]:
        """What the algorithm needs of the rest of the file, and does not find there."""
        yield from ()


class FedAvg(Options):
    """Federated averaging (McMahan et al. 2017)."""

    name: Literal["fedavg"] = "fedavg"


class FedProx(Options):
    """FedAvg with a proximal term (Li et al. 2020)."""

    name: Literal["fedprox"]
    mu: Annotated[float, Field(ge=0)]


class Scaffold(Options):
    """Control variates against client drift (Karimireddy et al. 2020)."""

    name: Literal["scaffold"]
    server_lr: PositiveFloat = 1.0

    def contradictions(self, federation: "Federation") -> Iterator[Complaint]:
        for index, stage in enumerate(federation.training.stages):
            if stage.optimizer.name != "sgd" or stage.optimizer.momentum:
                yield (
                    ("training", "stages", index, "optimizer"),
                    "scaffold needs plain sgd in every stage (its control variates divide by the learning rate)",
                    "use optimizer {name: sgd} without momentum, or strategy fedavg, fedprox or fedadam",
                )


class FedAvgM(Options):
    """Server momentum (Hsu et al. 2019)."""

    name: Literal["fedavgm"]
    server_lr: PositiveFloat = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9


class FedOpt(Options):
    """Adaptive server optimisers (Reddi et al. 2021, Algorithm 2)."""

    name: Literal["fedadam", "fedyogi", "fedadagrad"]
    server_lr: PositiveFloat = 0.1
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    tau: PositiveFloat = 1e-3


class FedBN(Options):
    """Normalisation layers stay at the hospital (Li et al. 2021)."""

    name: Literal["fedbn"]

    def contradictions(self, federation: "Federation") -> Iterator[Complaint]:
        if not federation.network.has_normalisation:
            yield (
                HERE,
                f"fedbn keeps normalisation layers local, and network '{federation.network.name}' has none",
                "use network {name: mlp, normalisation: batch} (or layer), or strategy fedavg",
            )
        if federation.evaluation.choose_round == "best":
            yield (
                HERE,
                "fedbn cannot go back to the best round: the hospitals' own layers are those of the last one",
                "use evaluation.choose_round: last, or another strategy",
            )


class FedMedian(Options):
    """Coordinate-wise median (Yin et al. 2018), by Flower. Hospitals count alike, whatever their size."""

    name: Literal["fedmedian"]


class FedTrimmedAvg(Options):
    """Coordinate-wise trimmed mean (Yin et al. 2018), by Flower. Hospitals count alike, whatever their size."""

    name: Literal["fedtrimmedavg"]
    beta: Annotated[float, Field(ge=0, lt=0.5)] = 0.2
    """Share of the hospitals that is cut at either end."""


class Krum(Options):
    """The one update that is nearest to its neighbours (Blanchard et al. 2017), by Flower."""

    name: Literal["krum"]
    num_malicious_nodes: Annotated[int, Field(ge=0, le=1000)] = 0
    """Hospitals that may send anything."""


class MultiKrum(Options):
    """The mean of the updates that are nearest to their neighbours (Blanchard et al. 2017), by Flower."""

    name: Literal["multikrum"]
    num_malicious_nodes: Annotated[int, Field(ge=0, le=1000)] = 0
    """Hospitals that may send anything."""
    num_nodes_to_select: Annotated[int, Field(ge=1, le=1000)] = 1
    """Updates that are averaged, by patients."""


class Bulyan(Options):
    """Krum's choice, then a trimmed mean (El Mhamdi et al. 2018), by Flower. Needs 4 f + 3 hospitals for f malicious."""

    name: Literal["bulyan"]
    num_malicious_nodes: Annotated[int, Field(ge=0, le=1000)] = 0
    """Hospitals that may send anything."""


class QFedAvg(Options):
    """Hospitals that the model serves badly count more (Li et al., ICLR 2020), by Flower. 0 < q; each hospital reports
    the exact loss of the weights that it received."""

    name: Literal["qfedavg"]
    q: PositiveFloat = 0.1
    client_learning_rate: PositiveFloat
    """The stages' learning rate: its inverse stands for the loss's Lipschitz constant."""


class CentralDP(Options):
    """Flower's server-side fixed clipping: differential privacy of a hospital as a whole against those who see the models,
    not against the server. Hospitals count alike."""

    name: Literal["central_dp"]
    noise_multiplier: PositiveFloat
    """Standard deviation of the noise on the sum of updates, over `clipping_norm`."""
    clipping_norm: PositiveFloat
    """Largest L2 norm of one hospital's update."""


_ELSEWHERE = (
    "the hospital's installed programs take no such part from a server: use central_dp, which clips at the server"
)
_ADAPTIVE = (
    "the clip would follow private updates, and what that costs is not counted: use central_dp with a fixed norm"
)

REFUSED: Final[Mapping[str, str]] = {
    "differentialprivacyclientsidefixedclipping": f"needs Flower's clipping at the hospital; {_ELSEWHERE}",
    "differentialprivacyclientsideadaptiveclipping": f"needs Flower's clipping at the hospital; {_ELSEWHERE}",
    "differentialprivacyserversideadaptiveclipping": _ADAPTIVE,
    "differentialprivacyserversidefixedclipping": "its name here is central_dp",
    "fedxgbbagging": "trains trees, and the networks here are trained by gradients",
    "fedxgbcyclic": "trains trees, and the networks here are trained by gradients",
}
"""Flower's strategies that are not offered, and why."""


def _offered(value: object) -> object:
    name = value.get("name") if isinstance(value, Mapping) else None
    if isinstance(name, str) and (reason := REFUSED.get(name.lower().replace("_", ""))):
        raise ValueError(f"strategy '{name}' is not offered | {reason}")
    return value


StrategyOptions = Annotated[
    Annotated[
        FedAvg
        | FedProx
        | Scaffold
        | FedAvgM
        | FedOpt
        | FedBN
        | FedMedian
        | FedTrimmedAvg
        | Krum
        | MultiKrum
        | Bulyan
        | QFedAvg
        | CentralDP,
        Field(discriminator="name"),
    ],
    BeforeValidator(_offered),
]
