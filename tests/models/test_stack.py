"""F copies trained side by side against F modules trained one after another."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ich_models.batch import Batch
from ich_models.exchange import constants
from ich_models.networks.options import Logistic, Mlp, Network
from ich_models.networks.registry import build
from ich_models.recipes import SGD, Adam, build_optimizer
from ich_models.stack import Stack, stackable

COLUMNS = 6
STEPS = 20

NETWORKS: dict[str, Network] = {
    "logistic": Logistic(name="logistic", init="random"),
    "mlp": Mlp(name="mlp", hidden=[16, 8]),
    "layer norm": Mlp(name="mlp", hidden=[16, 8], normalisation="layer"),
    "dropout": Mlp(name="mlp", hidden=[16, 8], dropout=0.3),
}
OPTIMIZERS: dict[str, SGD | Adam] = {
    "sgd": SGD(name="sgd", lr=0.05, momentum=0.9, weight_decay=0.01),
    "adam": Adam(name="adam", lr=0.01),
}


def patients(dtype: torch.dtype, count: int = 32) -> Batch:
    """A batch with missing values, and columns far from mean 0 and standard deviation 1."""
    generator = torch.Generator().manual_seed(5)
    table = 3 + 2 * torch.randn((count, COLUMNS), generator=generator, dtype=torch.float64)
    label = (table[:, 0] + table[:, 1] > 6.5).to(dtype)
    table[torch.rand(table.shape, generator=generator) < 0.1] = torch.nan
    return Batch(table.to(dtype), label)


def different(network: nn.Module, copies: int) -> list[nn.Module]:
    """Copies of a network with weights and constants of their own."""
    result = []
    for number in range(copies):
        copy = deepcopy(network)
        for name, tensor in [*copy.named_parameters(), *copy.named_buffers()]:
            generator = torch.Generator().manual_seed(number)
            noise = 0.2 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if name.startswith("input."):
                noise += {"fill": 3.0, "centre": 3.0, "scale": 0.5 - 1.0}[name.removeprefix("input.")]
            if tensor.is_floating_point():
                tensor.data.add_(noise.to(tensor.dtype))
        result.append(copy)
    return result


def stacked(modules: Sequence[nn.Module]) -> Stack:
    """One stack that holds these modules' tensors."""
    stack = Stack(deepcopy(modules[0]), len(modules))
    states = [module.state_dict() for module in modules]
    stack.load({name: torch.stack([state[name] for state in states]) for name in states[0]})
    return stack


def plain_loss(module: nn.Module, batch: Batch) -> torch.Tensor:
    return binary_cross_entropy_with_logits(module(batch).logits, batch.label)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=["f32", "f64"])
def test_copies_train_as_separate_modules(network: str, optimizer: str, dtype: torch.dtype, tolerance: float) -> None:
    options = NETWORKS[network].model_copy(update={"dtype": str(dtype).removeprefix("torch.")})
    modules = different(build(options, COLUMNS, seed=3), 4)  # type: ignore[arg-type]
    stack = stacked(modules)
    batch = patients(dtype)
    alone = [build_optimizer(OPTIMIZERS[optimizer], module.parameters()) for module in modules]
    together = build_optimizer(OPTIMIZERS[optimizer], stack.parameters.values())
    close: dict[str, Any] = {"rtol": tolerance, "atol": tolerance}
    start = stack.tensors()["output.weight"].clone()

    for step in range(STEPS):
        part = batch.take(torch.arange(step % 4, 32, 4 if step % 2 else 1))
        expected = []
        for module, own in zip(modules, alone, strict=True):
            torch.manual_seed(step)
            loss = plain_loss(module, part)
            own.zero_grad()
            loss.backward()
            own.step()
            expected.append(loss.detach())
        torch.manual_seed(step)
        losses = stack.losses(part)
        together.zero_grad()
        losses.sum().backward()
        together.step()
        torch.testing.assert_close(losses.detach(), torch.stack(expected), **close)
        for name, parameter in stack.parameters.items():
            gradients = [module.get_parameter(name).grad for module in modules]
            assert None not in gradients
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, torch.stack(gradients), **close, msg=f"gradient of {name}")  # type: ignore[arg-type]
    for name, value in stack.tensors().items():
        want = torch.stack([module.state_dict()[name] for module in modules])
        assert value.dtype == dtype
        torch.testing.assert_close(value, want, **close, msg=name)
    torch.testing.assert_close(
        stack.logits(batch), torch.stack([evaluated(module, batch) for module in modules]), **close
    )
    assert (stack.tensors()["output.weight"] - start).abs().max() > 0.01, "nothing was learnt"
    assert len({value.item() for value in losses}) == len(modules), "the copies were the same"


@torch.no_grad()
def evaluated(module: nn.Module, batch: Batch) -> torch.Tensor:
    """Logits in evaluation mode."""
    training = module.training
    logits: torch.Tensor = module.eval()(batch).logits
    module.train(training)
    return logits


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("network", [*NETWORKS, "batch norm"])
def test_one_copy_is_the_module_to_the_bit(network: str, optimizer: str) -> None:
    options = NETWORKS.get(network) or Mlp(name="mlp", hidden=[16, 8], normalisation="batch")
    module = different(build(options, COLUMNS, seed=3), 1)[0]  # type: ignore[arg-type]
    stack = Stack(deepcopy(module), 1)
    batch = patients(torch.float32)
    alone = build_optimizer(OPTIMIZERS[optimizer], module.parameters())
    together = build_optimizer(OPTIMIZERS[optimizer], stack.parameters.values())
    for step in range(STEPS):
        for own in (alone, together):
            torch.manual_seed(step)
            loss = plain_loss(module, batch) if own is alone else stack.losses(batch).sum()
            own.zero_grad()
            loss.backward()
            own.step()
        for name, parameter in stack.parameters.items():
            want = module.get_parameter(name).grad
            assert parameter.grad is not None
            assert want is not None
            assert torch.equal(parameter.grad, want)
    for name, value in module.state_dict().items():
        assert torch.equal(stack.tensors()[name], value[None])
    assert torch.equal(stack.logits(batch), evaluated(module, batch)[None])
    assert stack.losses(batch).shape == (1,)


@pytest.mark.parametrize(
    ("normalisation", "possible"), [("none", True), ("layer", True), ("batch", False)], ids=["none", "layer", "batch"]
)
def test_stackable(normalisation: str, possible: bool) -> None:
    options = Mlp.model_validate({"name": "mlp", "hidden": [4], "normalisation": normalisation})
    assert stackable(build(options, COLUMNS, seed=0)) is possible


def test_only_running_statistics_prevent_stacking() -> None:
    assert stackable(nn.BatchNorm1d(4, track_running_stats=False))
    assert stackable(nn.InstanceNorm1d(4))
    assert not stackable(nn.InstanceNorm1d(4, track_running_stats=True))
    assert not stackable(nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm2d(2))))


@pytest.mark.parametrize("copies", [1, 3])
def test_tensors_are_the_stack_itself(copies: int) -> None:
    """Every tensor is there with the copy as its first axis, and writing to it writes to the stack."""
    network = build(NETWORKS["mlp"], COLUMNS, seed=3)  # type: ignore[arg-type]
    stack = Stack(network, copies)
    batch = patients(torch.float32)
    assert {name: tensor.shape[1:] for name, tensor in stack.tensors().items()} == {
        name: tensor.shape for name, tensor in network.state_dict().items()
    }
    assert {len(tensor) for tensor in stack.tensors().values()} == {copies}
    before = stack.losses(batch)
    stack.tensors()["output.bias"][-1] += 1.0
    moved = stack.losses(batch) != before
    assert moved.tolist() == [False] * (copies - 1) + [True]
    with pytest.raises(KeyError):
        stack.load({"nowhere": torch.zeros(copies)})


def test_constants_differ_by_copy() -> None:
    """scale 0 in copy 1: it says the same of every patient; copy 0 goes on as it was."""
    network = build(NETWORKS["logistic"], COLUMNS, seed=3)  # type: ignore[arg-type]
    stack = Stack(network, 2)
    batch = patients(torch.float32)
    rows = torch.stack(
        [torch.cat([torch.full((COLUMNS,), v) for v in values]) for values in ((3.0, 3.0, 0.5), (3.0, 3.0, 0.0))]
    )
    stack.load(constants(network).unpack(rows))
    first, second = stack.logits(batch)
    weight, bias = network.state_dict()["output.weight"][0], network.state_dict()["output.bias"]
    assert batch.table is not None
    torch.testing.assert_close(first, (torch.nan_to_num(batch.table, 3.0) - 3.0) * 0.5 @ weight + bias)
    torch.testing.assert_close(second, bias.expand(len(batch)))


@pytest.mark.parametrize("copies", [1, 3])
def test_logits_leave_no_trace(copies: int) -> None:
    """Evaluation draws no dropout, keeps no graph and leaves the network in the mode it was in."""
    network = build(NETWORKS["dropout"], COLUMNS, seed=3)  # type: ignore[arg-type]
    stack = Stack(network, copies)
    batch = patients(torch.float32)
    for mode in (True, False):
        network.train(mode)
        assert torch.equal(stack.logits(batch), stack.logits(batch))
        assert network.training is mode
    assert not stack.logits(batch).requires_grad
    assert stack.logits(batch).shape == (copies, len(batch))
    network.train()
    torch.manual_seed(0)
    assert not torch.equal(stack.losses(batch), stack.losses(batch)), "training draws dropout"


def test_a_wide_stack_leaves_the_module_alone() -> None:
    """The folds' weights are their own: the module that they were copied from does not learn."""
    network = build(NETWORKS["mlp"], COLUMNS, seed=3)  # type: ignore[arg-type]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    stack = Stack(network, 2)
    stack.losses(patients(torch.float32)).sum().backward()
    build_optimizer(SGD(name="sgd", lr=0.1), stack.parameters.values()).step()
    assert not torch.equal(stack.tensors()["output.weight"][0], before["output.weight"])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
