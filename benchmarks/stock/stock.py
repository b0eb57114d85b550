"""The rival: what Flower's own guide would have one write for the same task, with its stock FedAvg."""

import time
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

PATIENTS = 200

client = ClientApp()
server = ServerApp()


def network(width: int) -> nn.Module:
    """Two columns, two hidden layers."""
    return nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))


@client.train()
def train(message: Message, context: Context) -> Message:
    """One full-batch step."""
    torch.set_num_threads(1)
    model = network(int(context.run_config["width"]))
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    table = torch.randn(PATIENTS, 2)
    label = (table.sum(1) > 0).float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss = binary_cross_entropy_with_logits(model(table)[:, 0], label)
    loss.backward()
    optimizer.step()
    metrics = MetricRecord({"train_loss": float(loss.detach()), "num-examples": PATIENTS})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Stock FedAvg; the moment that each round ends is written down."""
    times = Path(str(context.run_config["times"]))
    hospitals = int(context.run_config["hospitals"])

    def ended(_round: int, _arrays: ArrayRecord) -> MetricRecord:
        with times.open("a") as file:
            file.write(f"{time.time()}\n")
        return MetricRecord({})

    strategy = FedAvg(
        fraction_evaluate=0.0, min_train_nodes=hospitals, min_evaluate_nodes=hospitals, min_available_nodes=hospitals
    )
    start = ArrayRecord(network(int(context.run_config["width"])).state_dict())
    strategy.start(grid, start, num_rounds=int(context.run_config["rounds"]), evaluate_fn=ended)
    with times.open("a") as file:
        file.write("end\n")
