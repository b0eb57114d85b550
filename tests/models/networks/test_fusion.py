"""Fusion blocks against their formulas in plain NumPy."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from ich_models.networks.fusion import (
    Cross,
    Fusion,
    Halve,
    ImageMaps,
    OneWay,
    Perceiver,
    SelfAttention,
    TextMaps,
    ValueTokens,
    soft_pool,
)

Array = NDArray[np.float64]
BOTH = {"image": torch.tensor([True, True, True]), "text": torch.tensor([True, True, True])}


def double(module: Any) -> Any:
    return module.double().eval()


def softmax(scores: Array) -> Array:
    result: Array = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    return result


def linear(layer: Any, x: Array) -> Array:
    result: Array = x @ layer.weight.detach().numpy().reshape(len(layer.weight), -1).T + layer.bias.detach().numpy()
    return result


# --- SoftPool ---------------------------------------------------------------------------------------------------------


def test_soft_pool_is_its_definition() -> None:
    a = torch.randn(2, 3, 4, 6, dtype=torch.float64).numpy()
    want = np.zeros((2, 3, 2, 3))
    for n, c, i, j in np.ndindex(want.shape):
        window = a[n, c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        want[n, c, i, j] = (np.exp(window) * window).sum() / np.exp(window).sum()
    np.testing.assert_allclose(soft_pool(torch.from_numpy(a)).numpy(), want, rtol=1e-12)


def test_soft_pool_by_hand() -> None:
    """0, 0, 0, ln 3: weights 1, 1, 1, 3 of 6."""
    window = torch.tensor([[[[0.0, 0.0], [0.0, math.log(3)]]]])
    assert soft_pool(window).item() == pytest.approx(math.log(3) / 2)


def test_soft_pool_of_large_and_far_apart_numbers() -> None:
    """Each window by itself: a window of -1000s beside one of 1000s."""
    maps = torch.tensor([[[[-1000.0, -1000.0, 1000.0, 999.0], [-1000.0, -1000.0, 0.0, 0.0]]]])
    low, high = soft_pool(maps).flatten().tolist()
    assert low == -1000
    assert high == pytest.approx((1000 * math.e + 999) / (math.e + 1))


# --- ICHPro -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaled", [False, True])
def test_text_maps_are_widened_products(scaled: bool) -> None:
    torch.manual_seed(0)
    maps = double(TextMaps(16, 8, 8, scaled=scaled))
    tokens = torch.randn(2, 16, 5, dtype=torch.float64)
    for row in range(2):
        x = tokens[row].numpy()
        gram = x @ x.T / (math.sqrt(5) if scaled else 1)
        want = linear(maps.widen, gram).reshape(8, 8, 8)
        np.testing.assert_allclose(maps(tokens)[row].detach().numpy(), want, rtol=1e-10)


def test_published_shapes_and_counts_of_the_maps() -> None:
    with torch.device("meta"):
        text, image = TextMaps(64, 8, 32, scaled=False), ImageMaps(2048, 8, 32, group=None).eval()
        assert text(torch.empty(2, 64, 768)).shape == (2, 8, 32, 32)
        assert image(torch.empty(2, 2048)).shape == (2, 8, 32, 32)
        assert Halve(32)(torch.empty(2, 8, 32, 32)).shape == (2, 8, 256)
    assert text.widen.weight.shape == (128, 64)
    convolutions = [layer for layer in image.grow if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [64, 32, 16, 8]
    assert image.spread.out_features == 128 * 2 * 2


def test_tokens_that_do_not_fill_the_maps_are_refused() -> None:
    with pytest.raises(ValueError, match="12 tokens"):
        TextMaps(12, 8, 8, scaled=False)


def cross(width: int = 10) -> Any:
    torch.manual_seed(1)
    block = double(Cross(["image", "text"], 3, 4, width, gamma=2.0, attend=True))
    nn.init.constant_(block.gamma["text"], 5.0)
    return block


def maps_of(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(3, 3, 16, dtype=torch.float64, generator=generator) for name in ("image", "text")}


def plain_attended(block: Any, x: Array, y: Array) -> tuple[Array, Array]:
    """o_x and o_y of one patient, (maps, S), place by place."""
    part = {name: linear(layer, (x if name in ("q1", "k1", "v1") else y).T) for name, layer in block.attention.items()}
    places = x.shape[1]
    o_x, o_y = np.zeros_like(x), np.zeros_like(y)
    for j in range(places):
        beta = softmax(np.array([part["q1"][i] @ part["k2"][j] for i in range(places)]))
        o_x[:, j] = sum(beta[i] * part["v1"][i] for i in range(places))
    for i in range(places):
        rho = softmax(np.array([part["q2"][i] @ part["k1"][j] for j in range(places)]))
        o_y[:, i] = sum(rho[j] * part["v2"][j] for j in range(places))
    return o_x, o_y


def test_cross_attention_is_the_formula() -> None:
    block, maps = cross(), maps_of()
    met = block.attended(maps["image"], maps["text"])
    tokens = block(maps, BOTH).detach().numpy()
    for row in range(3):
        x, y = maps["image"][row].numpy(), maps["text"][row].numpy()
        o_x, o_y = plain_attended(block, x, y)
        np.testing.assert_allclose(met["image"][row].detach().numpy(), o_x, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(met["text"][row].detach().numpy(), o_y, rtol=1e-9, atol=1e-12)
        for index, (name, gamma, own, o) in enumerate((("image", 2, x, o_x), ("text", 5, y, o_y))):
            pooled = [soft_pool(torch.from_numpy(a.reshape(1, 3, 4, 4))).numpy().reshape(-1) for a in (o, own)]
            want = gamma * softmax(linear(block.token[name], pooled[0] + pooled[1]))
            np.testing.assert_allclose(tokens[row, index], want, rtol=1e-9)


def test_attention_is_a_weighted_mean() -> None:
    """Values that are the same at every place come out as they are, whatever the scores."""
    block, maps = cross(), maps_of()
    maps["image"] = torch.arange(3.0, dtype=torch.float64)[None, :, None].expand(3, 3, 16)
    value = block.attention["v1"](maps["image"])
    torch.testing.assert_close(block.attended(**{"x": maps["image"], "y": maps["text"]})["image"], value)


@pytest.mark.parametrize("missing", ["image", "text"])
def test_without_one_modality_the_other_goes_past_the_attention(missing: str) -> None:
    block, maps = cross(), maps_of()
    left = "text" if missing == "image" else "image"
    who = {missing: torch.tensor([True, False, True]), left: torch.tensor([True] * 3)}
    tokens = block(maps, who)
    alone = double(Cross([left], 3, 4, 10, gamma=1.0, attend=True))
    alone.load_state_dict({name: value for name, value in block.state_dict().items() if name in alone.state_dict()})
    torch.testing.assert_close(tokens[1], alone({left: maps[left]}, {left: who[left]})[1])
    torch.testing.assert_close(tokens[[0, 2]], block(maps, BOTH)[[0, 2]])


def test_self_attention_is_residual_and_normalised() -> None:
    torch.manual_seed(0)
    block = double(SelfAttention(8, 2))
    tokens = torch.randn(1, 2, 8, dtype=torch.float64)
    x = tokens[0].numpy()
    q, k, v = np.split(linear(Weights(block.attention.in_proj_weight, block.attention.in_proj_bias), x), 3, axis=1)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        rows = [softmax(q[i, head] @ k[:, head].T / 2) @ v[:, head] for i in range(2)]
        heads.append(np.stack(rows))
    summed = x + linear(block.attention.out_proj, np.concatenate(heads, axis=1))
    want = (summed - summed.mean(1, keepdims=True)) / np.sqrt(summed.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(block(tokens, torch.ones(1, 2, dtype=torch.bool))[0].detach().numpy(), want, rtol=1e-9)


class Weights:
    """A linear layer's two tensors."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self.weight, self.bias = weight, bias


def test_missing_tokens_are_neither_asked_nor_answered() -> None:
    block = double(SelfAttention(8, 2))
    tokens = torch.randn(3, 2, 8, dtype=torch.float64)
    there = torch.tensor([[True, True], [True, False], [False, False]])
    found = block(tokens, there)
    alone = block(tokens[1:2, :1], torch.tensor([[True]]))
    torch.testing.assert_close(found[1:2, :1], alone)
    assert torch.equal(found[1, 1], torch.zeros(8))
    assert torch.equal(found[2], torch.zeros(2, 8))


ORDERS = [["cross"], ["self"], ["cross", "self"], ["self", "cross"], ["cross", "cross"], ["self", "self"]]


@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
def test_every_order_runs_and_every_parameter_learns(order: list[Any]) -> None:
    torch.manual_seed(0)
    fusion = double(Fusion(order, ["image", "text"], 4, 4, 16, 4, 16.0))
    maps = {name: torch.randn(3, 4, 16, dtype=torch.float64) for name in ("image", "text")}
    tokens = fusion(maps, BOTH)
    assert tokens.shape == (3, 2, 16)
    (tokens * torch.randn(3, 2, 16)).sum().backward()
    assert [name for name, parameter in fusion.named_parameters() if parameter.grad is None] == []


def test_orders_are_different_networks() -> None:
    maps = {name: torch.randn(3, 4, 16) for name in ("image", "text")}
    found = []
    for order in ORDERS:
        torch.manual_seed(0)
        found.append(Fusion(order, ["image", "text"], 4, 4, 16, 4, 16.0)(maps, BOTH))  # type: ignore[arg-type]
    assert all(not torch.allclose(a, b) for i, a in enumerate(found) for b in found[:i])


# --- the others -------------------------------------------------------------------------------------------------------


def test_perceiver_conditions_text_on_vision() -> None:
    """v~ and t' are the two tokens of one encoder layer; t~ is made of t^ alone."""
    torch.manual_seed(0)
    block = double(Perceiver(16, 32, 4, 64, 0.5))
    image, text = torch.randn(3, 16, dtype=torch.float64), torch.randn(3, 16, dtype=torch.float64)
    seen, read, back = block(image, text, BOTH)
    layer = nn.TransformerEncoderLayer(16, 4, 64, activation="gelu", batch_first=True).double().eval()
    layer.load_state_dict(block.layer.state_dict())
    want = layer(torch.stack([block.into_text(image), text], dim=1))
    torch.testing.assert_close(seen, want[:, 0])
    torch.testing.assert_close(read, want[:, 1])
    torch.testing.assert_close(back, block.back(read))
    moved = block(image + 1, text, BOTH)
    assert not torch.allclose(moved[1], read), "the image does not reach the text"


def test_one_token_per_value_keeps_the_softmax_from_being_constant() -> None:
    torch.manual_seed(0)
    tokens, block = double(ValueTokens(4, 8)), double(OneWay(8, 2, 4))
    queries, values = torch.randn(1, 5, 8, dtype=torch.float64), torch.randn(1, 4, dtype=torch.float64)
    laboratory = tokens(values)
    assert laboratory.shape == (1, 4, 8)
    want = tokens.value.weight[:, 0] * values[0, 2] + tokens.value.bias + tokens.which[2]
    torch.testing.assert_close(laboratory[0, 2], want)
    answers, shares = block.attention(queries, laboratory, laboratory)
    assert shares.std(dim=1).min() > 1e-4, "every query asks the same"
    assert answers.std(dim=1).min() > 0


def test_a_query_learns_which_value_is_large_and_how_large_it_is() -> None:
    """At the start two values exchanged change the answer about as much as two others do, and 2 is not 1."""
    torch.manual_seed(0)
    tokens, block = double(ValueTokens(4, 32)), double(OneWay(32, 4, 4))
    queries = torch.randn(1, 20, 32, dtype=torch.float64)

    def answer(*values: float) -> torch.Tensor:
        with torch.no_grad():
            return block(queries, tokens(torch.tensor([values], dtype=torch.float64)))

    def apart(one: torch.Tensor, other: torch.Tensor) -> float:
        return float(torch.linalg.vector_norm(one - other))

    other = apart(answer(1, 0, 0, 0), answer(-1, 0, 0, 0))
    assert apart(answer(1, 0, 0, 0), answer(0, 1, 0, 0)) > 0.2 * other
    assert apart(answer(2, 0, 0, 0), answer(1, 0, 0, 0)) > 0.2 * other


def test_only_queries_are_changed_by_one_way_attention() -> None:
    """Each query's answer depends on that query and the tokens, not on the other queries."""
    block = double(OneWay(8, 2, 4))
    queries, tokens = torch.randn(1, 5, 8, dtype=torch.float64), torch.randn(1, 4, 8, dtype=torch.float64)
    found = block(queries, tokens)
    other = queries.clone()
    other[0, 3] += 1
    changed = (block(other, tokens) != found).any(-1)[0]
    assert changed.tolist() == [False, False, False, True, False]
