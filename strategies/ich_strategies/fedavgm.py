"""FedAvgM: momentum on the server (Hsu, Qi and Brown 2019, section 4.3)."""

from dataclasses import dataclass

from ich_strategies.strategy import Row, State, Strategy


@dataclass(frozen=True)
class FedAvgM(Strategy):
    """v <- beta v + (w - mean); w <- w - eta v."""

    server_lr: float
    momentum: float

    def start(self, weights: Row) -> State:
        return {"velocity": weights * 0}

    def step(self, weights: Row, mean: State, state: State, share: float) -> tuple[Row, State]:
        velocity = self.momentum * state["velocity"] + (weights - mean["weights"])
        return weights - self.server_lr * velocity, {"velocity": velocity}
