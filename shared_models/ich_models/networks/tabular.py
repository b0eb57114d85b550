"""Networks on the table: logistic regression and a multilayer perceptron, with imputation and scaling inside."""

from torch import nn

from ich_models.batch import Batch, Output
from ich_models.networks.constants import Standardise
from ich_models.networks.options import Logistic, Mlp


class TableNetwork(nn.Module):
    """Standardised columns -> body -> one logit."""

    def __init__(self, columns: int, body: nn.Module, width: int) -> None:
        super().__init__()
        self.input = Standardise(columns)
        self.body = body
        self.output = nn.Linear(width, 1)

    def forward(self, batch: Batch) -> Output:
        """`batch.table` (B, D) -> logits (B,), embedding 'table' (B, width)."""
        if batch.table is None:
            raise ValueError("a table network needs batch.table")
        hidden = self.body(self.input(batch.table))
        return Output(self.output(hidden).squeeze(-1), {"table": hidden})


def logistic(options: Logistic, columns: int) -> TableNetwork:
    """Logistic regression."""
    network = TableNetwork(columns, nn.Identity(), columns)
    if options.init == "zero":
        nn.init.zeros_(network.output.weight)
        nn.init.zeros_(network.output.bias)
    return network


def mlp(options: Mlp, columns: int) -> TableNetwork:
    """Multilayer perceptron: linear, normalisation, ReLU, dropout per hidden layer."""
    norms = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
    layers: list[nn.Module] = []
    width = columns
    for hidden in options.hidden:
        layers.append(nn.Linear(width, hidden))
        if options.normalisation != "none":
            layers.append(norms[options.normalisation](hidden))
        layers.append(nn.ReLU())
        if options.dropout:
            layers.append(nn.Dropout(options.dropout))
        width = hidden
    return TableNetwork(columns, nn.Sequential(*layers), width)
