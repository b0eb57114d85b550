"""Encoders built from configuration: one residual family for volumes and slices, DenseNet, BERT and ConvNeXt-V2."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from monai.networks.layers.factories import Conv
from monai.networks.layers.utils import get_norm_layer
from monai.networks.nets.densenet import DenseNet as MonaiDenseNet
from monai.networks.nets.resnet import ResNet as MonaiResNet
from torch import nn
from torch.nn.functional import relu
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertModel, ConvNextV2Config, ConvNextV2Model

from ich_models.batch import PADDING
from ich_models.networks.options import Bert, ConvNeXt, DenseNet, Normalised, ResNet
from ich_models.networks.staged import Encoder

NOT_IN_PLACE = ("relu", {"inplace": False})  # per-sample gradient hooks need what the layer was given


class _GroupNorm(nn.GroupNorm):
    """GroupNorm by channels per group, as MONAI's factory calls it."""

    def __init__(self, num_channels: int, channels: int) -> None:
        super().__init__(max(1, num_channels // channels), num_channels)


def _norm(options: Normalised, channels: int, dimensions: int) -> nn.Module:
    if options.normalisation == "batch":
        made: nn.Module = get_norm_layer(name="batch", spatial_dims=dimensions, channels=channels)
        return made
    return _GroupNorm(channels, options.group)


class _SqueezeExcite(nn.Module):
    """Channels weighted by a gate computed from their means (Hu et al. 2018)."""

    def __init__(self, channels: int, reduction: int, dimensions: int) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, dimensions]
        self.axes = tuple(range(2, 2 + dimensions))
        self.fc1 = conv(channels, channels // reduction, 1)
        self.fc2 = conv(channels // reduction, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate: torch.Tensor = self.fc2(relu(self.fc1(x.mean(self.axes, keepdim=True))))
        return x * torch.sigmoid(gate)


class _Block(nn.Module, ABC):
    """What MONAI's ResNet asks of a block; names of the parts are torchvision's."""

    expansion = 1

    def __init__(
        self,
        in_planes: int,
        planes: int,
        spatial_dims: int = 3,
        stride: int | tuple[int, ...] = 1,
        downsample: nn.Module | None = None,
        norm: Any = None,
        *,
        options: ResNet,
    ) -> None:
        super().__init__()
        self.conv, self.normalise = Conv[Conv.CONV, spatial_dims], partial(_norm, options, dimensions=spatial_dims)
        self._layers(in_planes, planes, stride, options)
        width = planes * self.expansion
        self.se = _SqueezeExcite(width, options.squeeze, spatial_dims) if options.squeeze else nn.Identity()
        self.downsample = downsample

    @abstractmethod
    def _layers(self, entering: int, planes: int, stride: int | tuple[int, ...], options: ResNet) -> None:
        """Make the parts; `entering` and `planes` channels, the latter times `expansion` in the end."""

    @abstractmethod
    def _body(self, x: torch.Tensor) -> torch.Tensor:
        """What is added to the shortcut."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        return relu(self.se(self._body(x)) + residual)


class Basic(_Block):
    """Two 3-wide convolutions (He et al. 2016)."""

    def _layers(self, entering: int, planes: int, stride: int | tuple[int, ...], options: ResNet) -> None:
        self.conv1 = self.conv(entering, planes, 3, stride, 1, bias=False)
        self.bn1 = self.normalise(planes)
        self.conv2 = self.conv(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = self.normalise(planes)

    def _body(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        return result


class Bottleneck(_Block):
    """1, 3 and 1 wide, the middle in `groups` (Xie et al. 2017), the stride in the middle; 4 times the planes go out."""

    expansion = 4

    def _layers(self, entering: int, planes: int, stride: int | tuple[int, ...], options: ResNet) -> None:
        inner = planes * options.group_width // 64 * options.groups
        self.conv1 = self.conv(entering, inner, 1, bias=False)
        self.bn1 = self.normalise(inner)
        self.conv2 = self.conv(inner, inner, 3, stride, 1, groups=options.groups, bias=False)
        self.bn2 = self.normalise(inner)
        self.conv3 = self.conv(inner, planes * self.expansion, 1, bias=False)
        self.bn3 = self.normalise(planes * self.expansion)

    def _body(self, x: torch.Tensor) -> torch.Tensor:
        middle = relu(self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))))
        result: torch.Tensor = self.bn3(self.conv3(middle))
        return result


class _ResNet(MonaiResNet):
    """MONAI's, with one normalisation in stem, blocks and shortcuts alike."""

    def __init__(self, options: ResNet, channels: int, dimensions: int) -> None:
        self.chosen = options  # before the layers, which `_make_layer` below makes while MONAI's __init__ runs
        block = {"basic": Basic, "bottleneck": Bottleneck}[options.block]
        kind = partial(block, options=options)
        kind.expansion = block.expansion  # type: ignore[attr-defined]
        stride = options.stem_stride if isinstance(options.stem_stride, int) else (1, 2, 2)[3 - dimensions :]
        super().__init__(
            block=kind,  # type: ignore[arg-type]
            layers=list(options.layers),
            block_inplanes=list(options.widths),
            spatial_dims=dimensions,
            n_input_channels=channels,
            conv1_t_size=options.stem,
            conv1_t_stride=stride,  # type: ignore[arg-type]
            no_max_pool=not options.max_pool,
            feed_forward=False,
            bias_downsample=False,
            act=NOT_IN_PLACE,
            norm="batch",
        )
        if options.normalisation == "group":
            self.bn1 = _norm(options, options.widths[0], dimensions)

    def _make_layer(self, *arguments: Any, **settings: Any) -> nn.Sequential:
        layer: nn.Sequential = super()._make_layer(*arguments, **settings)
        first: Any = layer[0]
        if first.downsample is not None and self.chosen.normalisation == "group":
            first.downsample[1] = _norm(
                self.chosen, first.downsample[0].out_channels, first.downsample[0].weight.ndim - 2
            )
        return layer


class ImageEncoder(Encoder):
    """(B, C, *space) -> (B, width). `last` is where class activation maps look."""

    def __init__(self, options: ResNet | DenseNet, channels: int, dimensions: int) -> None:
        super().__init__("image", (options.width,), options)
        self.net: nn.Module
        if isinstance(options, ResNet):
            self.net = _ResNet(options, channels, dimensions)
        else:
            self.net = densenet(options, channels, 1, dimensions)
            self.net.class_layers[-1] = nn.Identity()
        self.last = "net.layer4" if isinstance(options, ResNet) else "net.features"
        if options.checkpoint:
            inside = self.net if isinstance(options, ResNet) else self.net.features
            for name, layer in inside.named_children():  # type: ignore[union-attr]
                if name.startswith(("layer", "denseblock")):
                    _recompute(layer)
        self._settle()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.net(image)
        return features


def _recompute(layer: nn.Module) -> None:
    """Let a layer keep its input alone for the backward pass (Chen et al. 2016)."""
    forward = layer.forward

    def again(data: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return forward(data)  # type: ignore[no-any-return]
        return checkpoint(forward, data, use_reentrant=False)  # type: ignore[no-any-return]

    layer.forward = again


def densenet(options: DenseNet, channels: int, outputs: int, dimensions: int) -> MonaiDenseNet:
    """MONAI's DenseNet of 1, 2 or 3 dimensions with a linear layer of `outputs` at its end."""
    norm = "batch" if options.normalisation == "batch" else ("group", {"num_groups": options.growth // options.group})
    return MonaiDenseNet(
        spatial_dims=dimensions,
        in_channels=channels,
        out_channels=outputs,
        init_features=options.features,
        growth_rate=options.growth,
        block_config=options.layers,
        bn_size=options.bottleneck,
        act=NOT_IN_PLACE,
        norm=norm,
        dropout_prob=options.dropout,
    )


class TextEncoder(Encoder):
    """BERT. (B, L) token ids -> the last layer's tokens (B, L, width), padding zeroed; or with `last_layers` K > 0
    the first token of the last K layers, side by side: (B, K * width).
    """

    def __init__(self, options: Bert, *, last_layers: int = 0) -> None:
        shape = (last_layers * options.width,) if last_layers else (-1, options.width)
        super().__init__("text", shape, options)
        self.last_layers = last_layers
        settings: Any = BertConfig(
            vocab_size=options.vocabulary,
            hidden_size=options.width,
            num_hidden_layers=options.layers,
            num_attention_heads=options.heads,
            intermediate_size=options.feed_forward,
            max_position_embeddings=options.positions,
            hidden_dropout_prob=options.dropout,
            attention_probs_dropout_prob=options.dropout,
            pad_token_id=PADDING,
        )
        settings._attn_implementation = "eager"  # the only one that torch.func.vmap maps without a slow path
        self.bert: Any = BertModel(settings, add_pooling_layer=not last_layers)  # type: ignore[no-untyped-call]
        if options.checkpoint:
            self.bert.gradient_checkpointing_enable({"use_reentrant": False})
        self._settle()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        real = ids != PADDING
        # the mask as it is added to the scores, (B, 1, L, L): given a flat one, BERT would look into it at every call
        hidden = torch.zeros(ids.shape, dtype=self.bert.dtype, device=ids.device)
        hidden = hidden.masked_fill(~real, torch.finfo(hidden.dtype).min)[:, None, None].expand(-1, 1, ids.shape[1], -1)
        said = self.bert(ids, attention_mask=hidden, output_hidden_states=bool(self.last_layers))
        if self.last_layers:
            return torch.cat([layer[:, 0] for layer in said.hidden_states[-self.last_layers :]], dim=-1)
        tokens: torch.Tensor = said.last_hidden_state
        return tokens * real[..., None]

    def summary(self, tokens: torch.Tensor) -> torch.Tensor:
        """BERT's pooled first token: (B, L, width) -> (B, width)."""
        pooled: torch.Tensor = self.bert.pooler(tokens)
        return pooled


class ConvNeXtEncoder(Encoder):
    """ConvNeXt-V2 (Woo et al. 2023), in halves between which laboratory values enter, dense or masked.

    transformers' modules and names; the way through them is written out here, because the masked autoencoder needs the
    mask inside each block, and because convolutions must be given contiguous memory: per-sample gradient hooks are
    silently wrong otherwise.

    At random its layers start as torch's do, biases too. transformers' own start (biases of 0, weights of 0.02) leaves a
    narrow network nearly linear, and the first LayerNorm then takes from a patch how bright it is: of k times the patch it
    makes the same.
    """

    def __init__(self, options: ConvNeXt) -> None:
        super().__init__("image", (options.widths[-1],), options)
        self.net: Any = ConvNextV2Model(  # type: ignore[no-untyped-call]
            ConvNextV2Config(
                num_channels=options.channels,
                patch_size=options.patch,
                hidden_sizes=list(options.widths),
                depths=list(options.layers),
                drop_path_rate=options.drop_path,
            )
        )
        for layer in self.net.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.reset_parameters()
        self.seen = nn.Identity()  # where class activation maps look
        self.last = "seen"
        self._settle()

    def stem(self, image: torch.Tensor, visible: torch.Tensor | None = None) -> torch.Tensor:
        """(N, C, H, W) -> (N, widths[0], H / patch, W / patch). `visible`: (N, 1, h, w) of 0 and 1, or None."""
        return _seen(self.net.embeddings(image.contiguous()), visible)

    def through(
        self, features: torch.Tensor, stages: Sequence[int], visible: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Features (N, widths[i], h, w) through these stages; each but stage 0 halves h and w first."""
        for number in stages:
            stage: Any = self.net.encoder.stages[number]
            for layer in stage.downsampling_layer:
                features = layer(features.contiguous())
            features = _seen(features, visible)
            for layer in stage.layers:
                features = block(layer, features, visible)
        return features

    def pool(self, features: torch.Tensor) -> torch.Tensor:
        """(N, widths[-1], h, w) -> (N, widths[-1]): mean over the plane, LayerNorm."""
        pooled: torch.Tensor = self.net.layernorm(self.seen(features).mean((-2, -1)))
        return pooled

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.pool(self.through(self.stem(image), range(4)))


def block(layer: Any, features: torch.Tensor, visible: torch.Tensor | None = None) -> torch.Tensor:
    """One ConvNeXt-V2 block. With `visible` it is the dense equivalent of the sparse one: what is hidden is zero
    before the global response normalisation and at the end, so that it reaches nothing.
    """
    inner = layer.dwconv(features.contiguous()).permute(0, 2, 3, 1)
    inner = layer.act(layer.pwconv1(layer.layernorm(inner)))
    if visible is not None:
        inner = inner * _sized(visible, features).permute(0, 2, 3, 1)
    inner = layer.pwconv2(layer.grn(inner)).permute(0, 3, 1, 2)
    return _seen(features + layer.drop_path(inner), visible)


def _sized(visible: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """The mask at the resolution of the features, (N, 1, h, w)."""
    rows, columns = features.shape[-2] // visible.shape[-2], features.shape[-1] // visible.shape[-1]
    return visible.repeat_interleave(rows, -2).repeat_interleave(columns, -1).to(features.dtype)


def _seen(features: torch.Tensor, visible: torch.Tensor | None) -> torch.Tensor:
    return features if visible is None else features * _sized(visible, features)
