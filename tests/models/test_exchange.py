"""What travels, what stays and what is constant; rows of numbers there and back."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ich_models.exchange import Layout, constants, exchanged, is_normalisation, kept_local, row
from ich_models.networks.options import Logistic, Mlp
from ich_models.networks.registry import build

Shapes = dict[str, tuple[int, ...]]
NAMED_SHAPES = st.dictionaries(
    st.text("abc._", min_size=1, max_size=4), st.lists(st.integers(1, 4), max_size=3).map(tuple), max_size=5
)


def layout_of(shapes: Shapes) -> Layout:
    return Layout({name: torch.Size(shape) for name, shape in shapes.items()})


def perceptron(**options: Any) -> nn.Module:
    return build(Mlp.model_validate({"name": "mlp", "hidden": [4, 3], **options}), 5, seed=1)


def nowhere(_: nn.Module) -> bool:
    """Nothing stays local."""
    return False


@given(NAMED_SHAPES, st.integers(1, 4), st.sampled_from([torch.float32, torch.float64]))
def test_round_trip(shapes: Shapes, copies: int, dtype: torch.dtype) -> None:
    layout = layout_of(shapes)
    rows = torch.arange(copies * layout.size, dtype=dtype).reshape(copies, layout.size)
    tensors = layout.unpack(rows)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        name: (copies, *shape) for name, shape in shapes.items()
    }
    packed = layout.pack(tensors, rows)
    assert packed.dtype == dtype
    assert torch.equal(packed, rows)
    # by name, not by the order in which they are handed over
    assert torch.equal(layout.pack(dict(reversed(tensors.items())), rows), rows)


def test_order_within_a_row_by_hand() -> None:
    """Tensors one after another in the layout's order, each row by row."""
    layout = layout_of({"b": (2, 2), "a": (), "c": (1,)})
    tensors = layout.unpack(torch.tensor([[1.0, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]]))
    assert layout.size == 6
    assert tensors["b"].tolist() == [[[1, 2], [3, 4]], [[7, 8], [9, 10]]]
    assert tensors["a"].tolist() == [5, 11]
    assert tensors["c"].tolist() == [[6], [12]]


def test_unpacking_makes_views_and_packing_copies() -> None:
    layout = layout_of({"a": (2,)})
    rows = torch.zeros(2, 2)
    layout.unpack(rows)["a"][1, 0] = 5.0
    assert rows.tolist() == [[0, 0], [5, 0]]
    weight = torch.ones(2, 2, requires_grad=True)
    packed = layout.pack({"a": weight}, rows)
    assert not packed.requires_grad
    packed += 1
    assert weight.tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize("numbers", [5, 7, 12, 0])
def test_wrong_length(numbers: int) -> None:
    with pytest.raises(ValueError, match=rf"{numbers} numbers for a layout of 6"):
        layout_of({"a": (2, 3)}).unpack(torch.zeros(2, numbers))


def test_packing_needs_every_tensor() -> None:
    with pytest.raises(KeyError):
        layout_of({"a": (1,), "b": (1,)}).pack({"a": torch.zeros(1, 1)}, torch.zeros(1, 2))


@pytest.mark.parametrize("normalisation", ["none", "batch", "layer"])
def test_everything_has_one_place(normalisation: str) -> None:
    """Constants, exchanged and local tensors are all of the state but the integer counters, in its order, once."""
    network = perceptron(normalisation=normalisation)
    state = network.state_dict()
    layouts = [constants(network), exchanged(network, is_normalisation), kept_local(network, is_normalisation)]
    names = [name for layout in layouts for name in layout.shapes]
    assert len(names) == len(set(names))
    assert set(names) == {name for name, tensor in state.items() if tensor.is_floating_point()}
    for layout in layouts:
        assert list(layout.shapes) == [name for name in state if name in layout.shapes]
        assert all(layout.shapes[name] == state[name].shape for name in layout.shapes)


def test_constants_never_travel() -> None:
    network = perceptron(normalisation="batch")
    assert list(constants(network).shapes) == ["input.fill", "input.centre", "input.scale"]
    assert constants(network).size == 15
    travels = exchanged(network, nowhere).shapes
    assert not [name for name in travels if name.startswith("input.")]
    assert not kept_local(network, nowhere).shapes
    assert not [name for name in kept_local(network, lambda _: True).shapes if name.startswith("input.")]


def test_counters_never_travel() -> None:
    """Stock FedAvg averages BatchNorm's step counter into a float64; its running statistics do travel."""
    network = perceptron(normalisation="batch")
    assert "body.1.num_batches_tracked" in network.state_dict()
    assert "body.1.running_var" in exchanged(network, nowhere).shapes
    for layout in (exchanged(network, nowhere), kept_local(network, is_normalisation), constants(network)):
        assert not [name for name in layout.shapes if "num_batches" in name]


@pytest.mark.parametrize(("normalisation", "numbers"), [("batch", 2 * 2 * (4 + 3)), ("layer", 2 * (4 + 3))])
def test_normalisation_split(normalisation: str, numbers: int) -> None:
    """BatchNorm has weight, bias and two running statistics per unit; LayerNorm has weight and bias."""
    network = perceptron(normalisation=normalisation)
    local, travels = kept_local(network, is_normalisation), exchanged(network, is_normalisation)
    assert {name.rsplit(".", 1)[0] for name in local.shapes} == {"body.1", "body.4"}
    assert local.size == numbers
    assert travels.size == (5 * 4 + 4) + (4 * 3 + 3) + (3 + 1)
    assert exchanged(network, nowhere).size == travels.size + local.size


def test_schema_is_about_names_shapes_and_order() -> None:
    shapes: Shapes = {"a": (2, 3), "b": (4,)}
    different: list[Shapes] = [
        {"a": (3, 2), "b": (4,)},
        {"a": (2, 3), "b": (5,)},
        {"a": (2, 3), "b": (4, 1)},
        {"a": (2, 3), "c": (4,)},
        {"b": (4,), "a": (2, 3)},
        {"a": (2, 3)},
        {"a": (23,), "b": (4,)},
        {},
    ]
    schemas = [layout_of(each).schema for each in [shapes, *different]]
    assert len(set(schemas)) == len(schemas)
    assert layout_of(dict(shapes)).schema == schemas[0]
    assert all(len(schema) == 64 for schema in schemas)


def test_schema_of_networks() -> None:
    """The seed does not change it; a width does."""
    first, again = (build(Logistic(name="logistic", init="random"), 5, seed) for seed in (1, 2))
    wider = build(Logistic(name="logistic"), 6, 1)
    assert exchanged(first, nowhere).schema == exchanged(again, nowhere).schema
    assert exchanged(first, nowhere).schema != exchanged(wider, nowhere).schema
    assert exchanged(perceptron(), nowhere).schema != exchanged(perceptron(hidden=[3, 4]), nowhere).schema
    assert constants(first).schema != constants(wider).schema


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_row_is_a_copy_of_the_weights(dtype: str) -> None:
    network = perceptron(dtype=dtype)
    layout = exchanged(network, nowhere)
    numbers = row(network, layout)
    expected = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
    assert torch.equal(numbers, expected[None])
    assert str(numbers.dtype) == f"torch.{dtype}"
    assert not numbers.requires_grad
    numbers += 1
    assert torch.equal(row(network, layout), expected[None])
    single = Layout({"output.weight": torch.Size((1, 3))})
    row(network, single).add_(1)
    assert torch.equal(row(network, layout), expected[None]), "one tensor alone is copied too"
    nothing = row(network, kept_local(network, nowhere))
    assert nothing.shape == (1, 0)
    assert str(nothing.dtype) == f"torch.{dtype}"
