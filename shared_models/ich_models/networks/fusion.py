"""How modalities meet: feature maps that attend to each other, tokens that attend to each other, one way or both."""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import softmax

from ich_models.networks.staged import only

MAPPED: Final = ("image", "text")
"""The modalities of ICHPro, in the order of its tokens."""

MAPPABLE: Final = SDPBackend.MATH
"""The attention that torch.func.vmap maps without a slow path, and whose dropout is then the same."""


def perceptron(entering: int, widths: Sequence[int], dropout: float) -> nn.Sequential:
    """Linear, LayerNorm, GELU, dropout for each width."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(entering, width), nn.LayerNorm(width), nn.GELU(), nn.Dropout(dropout)]
        entering = width
    return nn.Sequential(*layers)


def soft_pool(maps: torch.Tensor) -> torch.Tensor:
    """SoftPool of 2 x 2 windows (Stergiou et al. 2021): (B, C, H, W) -> (B, C, H / 2, W / 2).

    sum(e^a a) / sum(e^a) within window and channel: a mean weighted by the window's softmax.
    """
    count, channels, height, width = maps.shape
    windows = maps.reshape(count, channels, height // 2, 2, width // 2, 2).transpose(3, 4).flatten(4)
    return (softmax(windows, dim=-1) * windows).sum(-1)


# --- ICHPro -----------------------------------------------------------------------------------------------------------


class TextMaps(nn.Module):
    """TRT: the products of L tokens' features, (B, L, D) -> (B, L, L), widened to 2L and laid out as (B, maps, side, side)."""

    def __init__(self, tokens: int, maps: int, side: int, *, scaled: bool) -> None:
        super().__init__()
        if 2 * tokens * tokens != maps * side * side:
            raise ValueError(
                f"{tokens} tokens make {2 * tokens * tokens} numbers, {maps} maps of {side} x {side} do not"
            )
        self.shape = (maps, side, side)
        self.scaled = scaled
        self.widen = nn.Linear(tokens, 2 * tokens)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        gram = tokens @ tokens.transpose(1, 2)
        if self.scaled:
            gram = gram / tokens.shape[-1] ** 0.5
        widened: torch.Tensor = self.widen(gram)
        return widened.reshape(-1, *self.shape)


class ImageMaps(nn.Module):
    """VRT: (B, D) -> 2 x 2 maps, doubled in side and halved in number up to (B, maps, side, side)."""

    def __init__(self, width: int, maps: int, side: int, *, group: int | None) -> None:
        """`group`: channels per group of GroupNorm; None: BatchNorm."""
        super().__init__()
        steps = (side // 2).bit_length() - 1
        self.channels = maps * 2**steps
        self.spread = nn.Linear(width, self.channels * 4)
        blocks: list[nn.Module] = []
        for step in range(steps):
            entering, leaving = self.channels >> step, self.channels >> (step + 1)
            norm = nn.BatchNorm2d(leaving) if group is None else nn.GroupNorm(max(1, leaving // group), leaving)
            blocks += [nn.Upsample(scale_factor=2), nn.Conv2d(entering, leaving, 3, padding=1), norm, nn.ReLU()]
        self.grow = nn.Sequential(*blocks)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        grown: torch.Tensor = self.grow(self.spread(features).reshape(-1, self.channels, 2, 2))
        return grown


class Halve(nn.Module):
    """One linear layer from the S = side^2 places of a map to a quarter of them: (B, maps, side, side) -> (B, maps, S / 4)."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.linear = nn.Linear(side * side, side * side // 4)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        halved: torch.Tensor = self.linear(maps.flatten(2))
        return halved


class Cross(nn.Module):
    """CMAF: maps x of the image and y of the text (B, maps, S) -> two tokens (B, 2, width).

    Where a patient lacks one of the two, nothing is attended to: the other's maps alone make its token, and the missing
    one's token is zero. With `attend` False that is so for everyone.
    """

    def __init__(
        self, modalities: Sequence[str], maps: int, side: int, width: int, *, gamma: float, attend: bool
    ) -> None:
        super().__init__()
        self.side = side
        self.attend = attend and len(modalities) == len(MAPPED)
        if self.attend:
            self.attention = nn.ModuleDict(
                {name: nn.Conv1d(maps, maps, 1) for name in ("q1", "k1", "v1", "q2", "k2", "v2")}
            )
        self.token = nn.ModuleDict({name: nn.Linear(maps * side * side // 4, width) for name in modalities})
        self.gamma = nn.ParameterDict({name: nn.Parameter(torch.tensor(gamma)) for name in modalities})

    def attended(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        """o_x and o_y, (B, maps, S) each.

        beta[j,i] = softmax over i of (Q1 x_i) (K2 y_j), rho[j,i] = softmax over j of (Q2 y_i) (K1 x_j);
        o_x[:,j] = sum_i beta[j,i] V1 x_i, o_y[:,i] = sum_j rho[j,i] V2 y_j.
        """
        part = self.attention
        beta = softmax(part["k2"](y).transpose(1, 2) @ part["q1"](x), dim=2)
        rho = softmax(part["k1"](x).transpose(1, 2) @ part["q2"](y), dim=1)
        return {"image": part["v1"](x) @ beta.transpose(1, 2), "text": part["v2"](y) @ rho}

    def _pooled(self, maps: torch.Tensor) -> torch.Tensor:
        return soft_pool(maps.unflatten(2, (self.side, self.side))).flatten(1)

    def forward(self, maps: Mapping[str, torch.Tensor], who: Mapping[str, torch.Tensor]) -> torch.Tensor:
        met = self.attended(maps["image"], maps["text"]) if self.attend else {}
        tokens: dict[str, torch.Tensor] = {}
        for name, layer in self.token.items():
            pooled = self._pooled(maps[name])
            if met:
                pooled = pooled + only(self._pooled(met[name]), who["image"] & who["text"])
            tokens[name] = only(self.gamma[name] * softmax(layer(pooled), dim=-1), who[name])
        empty = torch.zeros_like(next(iter(tokens.values())))
        return torch.stack([tokens.get(name, empty) for name in MAPPED], dim=1)


class SelfAttention(nn.Module):
    """MHSAF: tokens (B, T, width) attend to one another; residual, LayerNorm. Missing tokens are neither asked nor answered."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        hidden = ~there & there.any(1, keepdim=True)  # someone with nothing at all still needs a finite softmax
        # a float mask: torch's fast path for boolean ones is not made for torch.func.vmap
        bias = torch.zeros(hidden.shape, dtype=tokens.dtype, device=tokens.device).masked_fill(hidden, -torch.inf)
        with sdpa_kernel(MAPPABLE):
            answer, _ = self.attention(tokens, tokens, tokens, key_padding_mask=bias, need_weights=False)
        return torch.where(there[..., None], self.norm(tokens + answer), torch.zeros_like(tokens))


class Fusion(nn.Module):
    """Cross and self-attention in a configured order: maps (B, maps, S) by modality -> tokens (B, 2, width)."""

    def __init__(
        self,
        order: Sequence[Literal["cross", "self"]],
        modalities: Sequence[str],
        maps: int,
        side: int,
        width: int,
        heads: int,
        gamma: float,
    ) -> None:
        super().__init__()
        self.maps = maps
        steps: list[nn.Module] = []
        if order[0] == "self":  # tokens are needed first
            steps.append(Cross(modalities, maps, side, width, gamma=gamma, attend=False))
        for name in order:
            if name == "self":
                steps.append(SelfAttention(width, heads))
            else:
                steps.append(Cross(modalities, maps, side, width, gamma=gamma, attend=True))
        self.steps = nn.ModuleList(steps)
        again = [str(index) for index, step in enumerate(steps) if index and isinstance(step, Cross)]
        self.spread = nn.ModuleDict(
            {
                index: nn.ModuleDict({name: nn.Linear(width, maps * side * side) for name in modalities})
                for index in again
            }
        )

    def forward(self, maps: Mapping[str, torch.Tensor], who: Mapping[str, torch.Tensor]) -> torch.Tensor:
        nobody = torch.zeros_like(next(iter(who.values())))
        there = torch.stack([who.get(name, nobody) for name in MAPPED], dim=1)
        tokens = torch.empty(0)
        for index, step in enumerate(self.steps):
            if not isinstance(step, Cross):
                tokens = step(tokens, there)
                continue
            if index:
                layers: nn.ModuleDict = self.spread[str(index)]  # type: ignore[assignment]
                maps = {
                    name: layer(tokens[:, MAPPED.index(name)]).unflatten(1, (self.maps, -1))
                    for name, layer in layers.items()
                }
            tokens = step(maps, who)
        return tokens


# --- VDAFM ------------------------------------------------------------------------------------------------------------


class Perceiver(nn.Module):
    """Vision-text perceiver: v', t' (B, width) -> v^, t^ and t~, each (B, width).

    v~ = MLP(v') in text space; one Transformer encoder layer over [v~; t'] gives v^ and t^; t~ = MLP(t^).
    """

    def __init__(self, width: int, hidden: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.into_text = perceptron(width, [hidden, width], dropout)
        self.layer = nn.TransformerEncoderLayer(width, heads, feed_forward, dropout, activation="gelu")
        # tokens come first in it, so that dropout meets the same memory layout whether or not folds are mapped
        self.back = perceptron(width, [hidden, width], dropout)

    def forward(
        self, image: torch.Tensor, text: torch.Tensor, who: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        pair = torch.stack([only(self.into_text(image), who["image"]), text], dim=0)
        with sdpa_kernel(MAPPABLE):
            seen, read = self.layer(pair).unbind(0)
        return seen, read, self.back(read)


# --- MedNVC -----------------------------------------------------------------------------------------------------------


class ValueTokens(nn.Module):
    """Laboratory values (B, D) -> one token each (B, D, width): embedding of the value plus embedding of which it is.

    The two begin as large as each other: where all values look alike, attention can only tell their mean.
    """

    def __init__(self, columns: int, width: int) -> None:
        super().__init__()
        self.value = nn.Linear(1, width)
        self.which = nn.Parameter(torch.randn(columns, width))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = self.value(values[..., None]) + self.which
        return tokens


class OneWay(nn.Module):
    """Queries (N, Q, width) ask tokens (N, K, width), not the other way; then a perceptron. Pre-norm, residual.

    Queries alone are normalised: of a token it would take away how large its value is.
    """

    def __init__(self, width: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.norm_queries, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, mlp * width), nn.GELU(), nn.Linear(mlp * width, width))

    def forward(self, queries: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(MAPPABLE):
            answer, _ = self.attention(self.norm_queries(queries), tokens, tokens, need_weights=False)
        queries = queries + answer
        result: torch.Tensor = queries + self.mlp(self.norm(queries))
        return result
