"""Encoders: published counts and names, other libraries as oracles, and the traps that were measured."""

from typing import Any

import pytest
import torch
from monai.networks.nets.resnet import ResNet as MonaiResNet
from small_networks import numbers
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ich_models.networks.encoders import ConvNeXtEncoder, ImageEncoder, TextEncoder
from ich_models.networks.options import TINY_SLICE, TINY_TEXT, TINY_VOLUME, Bert, ConvNeXt, DenseNet, ResNet

RESNET50 = ResNet()
RESNEXT50 = ResNet(groups=32, group_width=4)
SE_RESNET50 = ResNet(squeeze=16)
RESNET18 = ResNet(block="basic", layers=(2, 2, 2, 2))
SMALL = {
    "basic": ResNet.model_validate({**TINY_SLICE, "normalisation": "batch"}),
    "resnext": ResNet.model_validate({**TINY_SLICE, "block": "bottleneck", "groups": 4, "group_width": 16}),
    "se": ResNet.model_validate({**TINY_SLICE, "squeeze": 4}),
}


@pytest.mark.parametrize(
    ("options", "channels", "dimensions", "outputs", "want"),
    [
        (RESNET50, 1, 3, 0, 46_155_072),
        (RESNEXT50, 3, 2, 5, 22_990_149),
        (SE_RESNET50, 3, 2, 5, 26_049_269),
        (RESNET18, 3, 2, 0, 11_176_512),
        (RESNET50, 3, 2, 1000, 25_557_032),  # torchvision's resnet50
        (ResNet(block="basic"), 3, 2, 1000, 21_797_672),  # torchvision's resnet34
        (DenseNet(name="densenet"), 3, 2, 1000, 7_978_856),  # torchvision's densenet121
    ],
    ids=["3D ResNet-50", "ResNeXt-50", "SE-ResNet-50", "ResNet-18", "ResNet-50", "ResNet-34", "DenseNet-121"],
)
def test_published_counts(options: Any, channels: int, dimensions: int, outputs: int, want: int) -> None:
    with torch.device("meta"):
        encoder = ImageEncoder(options, channels, dimensions).eval()
        image = torch.empty(2, channels, *[64] * dimensions)
        assert encoder(image).shape == (2, options.width)
    assert numbers(encoder) + outputs * (options.width + 1) == want


def test_how_bright_a_plain_patch_is_reaches_what_convnext_sees() -> None:
    """LayerNorm after a layer without a bias would make the same of 0.2 and 0.4: a swelling of the flesh would be lost."""
    torch.manual_seed(0)
    encoder = ConvNeXtEncoder(ConvNeXt(widths=(8, 16, 32, 64), layers=(1, 1, 1, 1)))
    with torch.no_grad():
        dark, bright = (encoder.stem(torch.full((1, 3, 4, 4), grey)).flatten() for grey in (0.2, 0.4))
    assert torch.linalg.vector_norm(dark - bright) > 0.05 * torch.linalg.vector_norm(bright)


def test_published_counts_of_bert_and_convnext() -> None:
    with torch.device("meta"):
        assert numbers(TextEncoder(Bert())) == 108_310_272
        assert numbers(ConvNeXtEncoder(ConvNeXt())) == 87_692_800


def test_names_of_stem_and_shortcut_are_torchvisions() -> None:
    names = set(ImageEncoder(SMALL["resnext"], 3, 2).net.state_dict())
    assert {"conv1.weight", "bn1.weight", "layer1.0.conv2.weight", "layer2.0.downsample.0.weight"} <= names
    assert "layer2.0.downsample.0.bias" not in names
    assert "layer2.0.downsample.1.weight" in names


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_residual_family_computes_what_monais_does(block: str, dimensions: int) -> None:
    """The same weights in MONAI's own blocks give the same features, to the bit."""
    torch.manual_seed(0)
    ours = ImageEncoder(
        ResNet.model_validate({"block": block, "layers": [1, 2, 1, 1], "widths": [8, 8, 16, 16]}), 1, dimensions
    )
    theirs = MonaiResNet(
        block,
        [1, 2, 1, 1],
        [8, 8, 16, 16],
        spatial_dims=dimensions,
        n_input_channels=1,
        conv1_t_stride=2,
        feed_forward=False,
        bias_downsample=False,
    )
    for buffer in ours.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    theirs.load_state_dict(ours.net.state_dict())
    image = torch.randn(2, 1, *[32] * dimensions)
    for mode in (False, True):
        assert torch.equal(ours.train(mode)(image), theirs.train(mode)(image))


def test_grouped_blocks_divide_their_channels() -> None:
    encoder: Any = ImageEncoder(SMALL["resnext"], 3, 2)
    first = encoder.net.layer1[0]
    assert first.conv2.groups == 4
    assert first.conv2.weight.shape == (8, 2, 3, 3)  # 8 planes of width 16 / 64, times 4 groups: 8, in groups of 2


def test_squeeze_and_excitation_weighs_channels_by_their_means() -> None:
    """A gate whose second layer is zero lets half of everything through; one whose bias is large, everything."""
    torch.manual_seed(0)
    encoder: Any = ImageEncoder(SMALL["se"], 3, 2).eval()
    se, x = encoder.net.layer1[0].se, torch.randn(2, 8, 4, 4)
    nn.init.zeros_(se.fc2.weight)
    nn.init.zeros_(se.fc2.bias)
    torch.testing.assert_close(se(x), x / 2)
    nn.init.constant_(se.fc2.bias, 50.0)
    torch.testing.assert_close(se(x), x)


# --- traps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("dimensions", [2, 3])
def test_group_normalisation_reaches_every_layer(kind: str, dimensions: int) -> None:
    """MONAI's own `norm` argument stops at the stem."""
    options = SMALL[kind].model_copy(update={"normalisation": "group"})
    encoder = ImageEncoder(options, 3, dimensions)
    assert not [name for name, module in encoder.named_modules() if isinstance(module, _BatchNorm)]
    groups = {
        module.num_channels // module.num_groups for module in encoder.modules() if isinstance(module, nn.GroupNorm)
    }
    assert groups == {4}


@pytest.mark.parametrize("kind", ["basic", "resnext", "se", "densenet"])
def test_nothing_is_changed_in_place(kind: str) -> None:
    """What a layer was given is what it was given after the forward pass, as per-sample gradient hooks need it."""
    options = SMALL.get(kind) or DenseNet(name="densenet", features=8, growth=4, layers=(2, 2))
    encoder = ImageEncoder(options, 3, 2)
    given: list[tuple[torch.Tensor, torch.Tensor]] = []
    for module in encoder.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, args, out: given.append((args[0], args[0].detach().clone())))
            module.register_forward_hook(lambda module, args, out: given.append((out, out.detach().clone())))
    encoder(torch.randn(2, 3, 32, 32)).sum().backward()
    assert len(given) > 20
    assert all(torch.equal(now, then) for now, then in given)


def test_convolutions_of_convnext_are_given_contiguous_memory() -> None:
    """Otherwise per-sample gradient hooks are silently wrong; transformers' own forward pass hands on permuted memory."""
    encoder = ConvNeXtEncoder(ConvNeXt(widths=(8, 16, 32, 64), layers=(1, 2, 1, 1)))
    seen: list[bool] = []
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda module, args: seen.append(args[0].is_contiguous()))
    image = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    encoder(image)
    assert len(seen) == 1 + 5 + 3
    assert all(seen)
    seen.clear()
    encoder.net(image)
    assert not all(seen), "the hook tells nothing"


def test_convnext_computes_what_transformers_does() -> None:
    torch.manual_seed(0)
    encoder = ConvNeXtEncoder(ConvNeXt(widths=(8, 16, 32, 64), layers=(1, 2, 1, 1)))
    for name, parameter in encoder.named_parameters():
        if "grn" in name:
            nn.init.normal_(parameter)
    image = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(encoder(image), encoder.net(image).pooler_output, rtol=1e-5, atol=1e-6)


def test_a_frozen_encoder_stays_as_it_is_in_training() -> None:
    """A frozen BatchNorm in training mode would use, and keep, the batch's statistics."""
    encoder = ImageEncoder(SMALL["basic"].model_copy(update={"frozen": True}), 3, 2)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    around = nn.Sequential(encoder).train()
    assert not any(module.training for module in encoder.modules())
    image = torch.randn(4, 3, 32, 32) * 5 + 3
    whole = around(image)
    torch.testing.assert_close(whole[:1], around(image[:1]))
    assert not whole.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


# --- text -------------------------------------------------------------------------------------------------------------


def test_padding_changes_nothing_and_is_zero() -> None:
    torch.manual_seed(0)
    encoder = TextEncoder(Bert(**TINY_TEXT)).eval()
    ids = torch.randint(110, 500, (2, 12))
    padded = torch.cat([ids, torch.zeros(2, 8, dtype=torch.int64)], dim=1)
    tokens = encoder(padded)
    torch.testing.assert_close(tokens[:, :12], encoder(ids))
    assert torch.equal(tokens[:, 12:], torch.zeros(2, 8, 64))
    theirs = encoder.bert(padded, attention_mask=(padded != 0).long()).last_hidden_state
    torch.testing.assert_close(tokens[:, :12], theirs[:, :12])


def test_summary_is_berts_pooled_first_token() -> None:
    encoder = TextEncoder(Bert(**TINY_TEXT)).eval()
    ids = torch.randint(110, 500, (2, 12))
    torch.testing.assert_close(encoder.summary(encoder(ids)), encoder.bert(ids).pooler_output)


def test_first_tokens_of_the_last_layers_side_by_side() -> None:
    encoder = TextEncoder(Bert(**TINY_TEXT), last_layers=2).eval()
    ids = torch.randint(110, 500, (2, 12))
    layers = encoder.bert(ids, output_hidden_states=True).hidden_states
    assert len(layers) == 3
    torch.testing.assert_close(encoder(ids), torch.cat([layers[1][:, 0], layers[2][:, 0]], dim=1))
    assert encoder.bert.pooler is None


def test_thick_slices_keep_their_number_in_the_stem() -> None:
    encoder: Any = ImageEncoder(ResNet.model_validate(TINY_VOLUME), 1, 3)
    assert encoder.net.conv1(torch.randn(1, 1, 16, 32, 32)).shape == (1, 8, 16, 16, 16)
    flat: Any = ImageEncoder(ResNet.model_validate(TINY_VOLUME), 1, 2)
    assert flat.net.conv1(torch.randn(1, 1, 32, 32)).shape == (1, 8, 16, 16)
