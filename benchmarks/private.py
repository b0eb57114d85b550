"""What a private step costs over an ordinary one: both in turn, engine by engine, noise included."""

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")  # before torch: one thread, whose time can be compared

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import clock
import torch
import typer
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table

from ich_client.gradients import SMALL as SMALL_ENOUGH
from ich_client.gradients import Draw, Engine, Ghost, Loop, choose, learning
from ich_client.noise import Stream, add_noise
from ich_models import console
from ich_models.batch import Batch
from ich_models.files import write_json
from ich_models.networks.options import TINY_TEXT, TINY_VOLUME, NetworkOptions
from ich_models.networks.registry import build
from ich_models.recipes import Recipe, build_optimizer
from ich_models.stack import Stack

EXAMPLE = "Example: python benchmarks/private.py --out runs/benchmarks"
COLUMNS: Final = 14
ADAM: Final = Recipe.model_validate({"epochs": 1, "batch": "all", "optimizer": {"name": "adam", "lr": 1e-4}})
SMALL: Final = {**TINY_VOLUME, "widths": [16, 32, 64, 128], "layers": [2, 2, 2, 2]}
NEVER: Final = {**TINY_VOLUME, "frozen": True, "layers": [1, 1, 1, 1]}
"""A frozen encoder that is never asked, since its features are given; of what width, its last layer says."""

app = console.application("")


@dataclass(frozen=True)
class Case:
    """A network with a batch that it is trained on. `target`: the largest ratio that is wanted."""

    name: str
    network: dict[str, Any]
    batch: Batch
    target: str

    def stack(self) -> Stack:
        """The network in training."""
        options = TypeAdapter(NetworkOptions).validate_python(self.network)
        return Stack(build(options, COLUMNS, 0).train(), 1)


def cases() -> list[Case]:
    """3D networks that are trained whole, and heads on kept features, at two batch sizes."""
    torch.manual_seed(0)

    def batch(count: int, **more: Any) -> Batch:
        return Batch(torch.randn(count, COLUMNS), (torch.arange(count) % 2).float(), **more)

    volumes, words = torch.randn(16, 1, 16, 64, 64), torch.randint(110, 500, (16, 32))
    losses = {"negatives": "bank", "sdm": 0, "prototypes": 0.84, "mlm": 0}
    scan, half = torch.randn(2, 1, 32, 224, 224), torch.randn(4, 1, 32, 112, 112)
    published = {"name": "resnet", "normalisation": "group"}
    found = [
        Case("3D ResNet-50, 32 x 224 x 224, batch 2", _only(published), batch(2, image=scan), "<= 1.5"),
        Case("3D ResNet-50, 32 x 112 x 112, batch 4", _only(published), batch(4, image=half), "<= 1.5"),
        Case("small 3D ResNet, 32 x 112 x 112, batch 4", _only(SMALL), batch(4, image=half), "<= 1.5"),
        Case("small 3D ResNet, 16 x 64 x 64, batch 16", _only(SMALL), batch(16, image=volumes), "<= 1.5"),
        Case(
            "ichpro tiny, 16 x 64 x 64, batch 16",
            {"name": "ichpro", "size": "tiny", "losses": losses},
            batch(16, image=volumes, text=words),
            "<= 1.5",
        ),
    ]
    for count in (16, 64):
        wide = {"image": torch.randn(count, 2048), "text": torch.randn(count, 4 * 768)}
        long = {"image": torch.randn(count, 2048), "text": torch.randn(count, 64, 768)}
        image = {**NEVER, "block": "bottleneck", "widths": [4, 8, 16, 512]}
        text = {**TINY_TEXT, "width": 768, "layers": 4, "frozen": True}
        frozen: dict[str, Any] = {"image": image, "text": text}
        found += [
            Case(
                f"vdafm on kept features, batch {count}",
                {"name": "vdafm", **frozen, "losses": {"negatives": "bank"}},
                batch(count, features=wide),
                "<= 4",
            ),
            Case(
                f"concat on kept features, batch {count}",
                {"name": "concat", **frozen},
                batch(count, features=long),
                "<= 4",
            ),
            Case(f"mlp 64-64, batch {count}", {"name": "mlp"}, batch(count), ""),
            Case(f"logistic, batch {count}", {"name": "logistic"}, batch(count), ""),
        ]
    return found


def _only(image: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": "image_only", "image": image}


def measure(case: Case, seconds: float) -> dict[str, Any]:
    """Ratios of a private step to an ordinary one, pair by pair, until so many seconds are over."""
    stream, size = Stream(), len(case.batch)

    def ordinary() -> Callable[[], None]:
        stack = case.stack()
        optimizer = build_optimizer(ADAM.optimizer, learning(stack).values())

        def step() -> None:
            optimizer.zero_grad()
            stack.losses(case.batch).sum().backward()
            optimizer.step()

        return step

    def private(kind: str, sigma: float) -> Callable[[], None]:
        stack = case.stack()
        parameters = learning(stack)
        optimizer = build_optimizer(ADAM.optimizer, parameters.values())
        engine: Engine = Loop(stack, case.batch, ADAM)
        if kind == "ghost":
            engine = choose(stack, case.batch, ADAM, "ghost", Draw(torch.arange(2), stream.seeds(2)))
            assert isinstance(engine, Ghost)

        def step() -> None:
            total = engine.clipped(Draw(torch.arange(size), stream.seeds(size)), 1.0, 0.0)
            for name, parameter in parameters.items():
                parameter.grad = add_noise(total[name], sigma, stream) / size
            optimizer.step()

        return step

    stack = case.stack()
    size_of_network = sum(parameter.numel() for parameter in learning(stack).values())
    kinds = ["loop", "ghost"] if size_of_network <= SMALL_ENOUGH or not case.batch.is_large else ["loop"]
    steps = {"plain": ordinary(), **{kind: private(kind, 1.0) for kind in kinds}}
    steps["without noise"] = private(kinds[-1], 0.0)
    times = _in_turn(steps, seconds)
    ratios = {
        name: clock.ratios(list(zip(own, times["plain"], strict=True)))["cpu"]
        for name, own in times.items()
        if name != "plain"
    }
    return {
        "parameters": size_of_network,
        "plain ms": clock.Spread.of([1000 * one.cpu for one in times["plain"]]),
        "target": case.target,
        **ratios,
    }


def _in_turn(steps: dict[str, Callable[[], None]], seconds: float) -> dict[str, list[clock.Seconds]]:
    """Each once to warm up, then all in turn, at least three times."""
    for step in steps.values():
        step()
    times: dict[str, list[clock.Seconds]] = {name: [] for name in steps}
    start = clock.now()
    while len(times["plain"]) < 3 or (clock.now() - start).cpu < seconds:
        for name, step in steps.items():
            times[name].append(clock.timed(step))
    return times


@app.command(epilog=EXAMPLE)
def main(
    out: Annotated[Path, typer.Option(help="folder for private.json; made if needed")] = Path("runs/benchmarks"),
    seconds: Annotated[float, typer.Option(min=0, help="processor seconds per network, warm-up apart")] = 4.0,
) -> None:
    """Measure what docs/benchmarks.md says of private steps. One to three minutes; one thread, processor time."""
    torch.set_num_threads(1)
    screen = Console(highlight=False, width=140)
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    table = Table("step", "ms", "loop", "ghost", "no noise", "target", box=None, pad_edge=False)
    for case in cases():
        screen.print(f"measuring {case.name}", markup=False)
        found[case.name] = one = measure(case, seconds)
        shown = [str(one.get(column, "")) for column in ("plain ms", "loop", "ghost", "without noise")]
        table.add_row(case.name, *shown, case.target)
    plain = json.loads(json.dumps({"machine": clock.machine(), **found}, default=asdict))
    write_json(out / "private.json", plain)
    screen.print(table)
    screen.print(f"written    {out / 'private.json'}", markup=False)


if __name__ == "__main__":
    console.run(app)
