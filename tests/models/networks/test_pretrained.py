"""Published weights into encoders: every layout loads strictly, a wrong one is refused with its keys, and hashes are checked."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_networks import COLUMNS, options
from transformers import BertConfig, BertForMaskedLM, ConvNextV2Config, ConvNextV2ForImageClassification

from ich_models.errors import ConfigurationError
from ich_models.networks.encoders import ConvNeXtEncoder, ImageEncoder, TextEncoder
from ich_models.networks.options import TINY_TEXT, Bert, ConvNeXt, ResNet
from ich_models.networks.pretrained import load_pinned, load_weights
from ich_models.networks.registry import build

State = dict[str, torch.Tensor]
BOTTLENECK = ResNet(layers=(1, 1, 1, 1), widths=(8, 8, 16, 16))
SE = ResNet(layers=(1, 1, 1, 1), widths=(16, 16, 16, 16), squeeze=16)


def residual_layout(options: ResNet, channels: int, dimensions: int) -> State:
    """A state dict written down from the published layout, not taken from our encoder."""
    state: State = {}

    def conv(name: str, out: int, into: int, size: int) -> None:
        state[f"{name}.weight"] = torch.randn(out, into, *[size] * dimensions)

    def norm(name: str, width: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.{part}"] = torch.rand(width) + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    conv("conv1", options.widths[0], channels, 7)
    norm("bn1", options.widths[0])
    entering = options.widths[0]
    for layer, (count, width) in enumerate(zip(options.layers, options.widths, strict=True), start=1):
        for index in range(count):
            name = f"layer{layer}.{index}"
            conv(f"{name}.conv1", width, entering, 1)
            conv(f"{name}.conv2", width, width, 3)
            conv(f"{name}.conv3", 4 * width, width, 1)
            for number, size in ((1, width), (2, width), (3, 4 * width)):
                norm(f"{name}.bn{number}", size)
            if options.squeeze:
                for part, out, into in (("fc1", width // 4, 4 * width), ("fc2", 4 * width, width // 4)):
                    conv(f"{name}.se_module.{part}", out, into, 1)
                    state[f"{name}.se_module.{part}.bias"] = torch.randn(out)
            if index == 0:
                conv(f"{name}.downsample.0", 4 * width, entering, 1)
                norm(f"{name}.downsample.1", 4 * width)
            entering = 4 * width
    return state


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


def test_medicalnet_was_saved_by_parallel_training() -> None:
    published = residual_layout(BOTTLENECK, 1, 3)
    encoder: Any = ImageEncoder(BOTTLENECK, 1, 3)
    load_weights(encoder, prefixed(published, "module."))
    assert torch.equal(encoder.net.layer4[0].conv2.weight, published["layer4.0.conv2.weight"])
    assert torch.equal(encoder.net.bn1.running_var, published["bn1.running_var"])


def test_kinetics_stem_of_three_channels_is_summed_to_one() -> None:
    """Grey repeated three times gives the same as one channel through the summed stem."""
    published = {**residual_layout(BOTTLENECK, 3, 3), "fc.weight": torch.zeros(400, 64), "fc.bias": torch.zeros(400)}
    grey, colour = ImageEncoder(BOTTLENECK, 1, 3).eval(), ImageEncoder(BOTTLENECK, 3, 3).eval()
    load_weights(grey, published)
    load_weights(colour, published)
    image = torch.randn(2, 1, 16, 32, 32)
    torch.testing.assert_close(grey(image), colour(image.expand(-1, 3, -1, -1, -1)), rtol=1e-3, atol=1e-3)


def test_torchvision_layout_with_its_head_and_without_counters() -> None:
    published = {**residual_layout(BOTTLENECK, 3, 2), "fc.weight": torch.zeros(1000, 64), "fc.bias": torch.zeros(1000)}
    old = {name: value for name, value in published.items() if not name.endswith("num_batches_tracked")}
    encoder: Any = ImageEncoder(BOTTLENECK, 3, 2)
    load_weights(encoder, old)
    assert torch.equal(encoder.net.conv1.weight, published["conv1.weight"])


def test_se_resnet_layout() -> None:
    published = residual_layout(SE, 3, 2)
    stem = {f"layer0.{name}": published.pop(name) for name in list(published) if name.startswith(("conv1", "bn1"))}
    head = {"last_linear.weight": torch.zeros(1000, 64), "last_linear.bias": torch.zeros(1000)}
    encoder: Any = ImageEncoder(SE, 3, 2)
    load_weights(encoder, {**stem, **published, **head})
    assert torch.equal(encoder.net.bn1.weight, stem["layer0.bn1.weight"])
    assert torch.equal(encoder.net.layer1[0].se.fc1.weight, published["layer1.0.se_module.fc1.weight"])


@pytest.mark.parametrize("old_names", [False, True])
@pytest.mark.parametrize("last_layers", [0, 2])
def test_bert_with_its_language_head(old_names: bool, last_layers: int) -> None:
    """As masked-language training saves it; BERT's first release wrote gamma and beta."""
    chosen = Bert(**TINY_TEXT)
    config = BertConfig(
        vocab_size=512,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
    )
    published = dict(BertForMaskedLM(config).state_dict())
    published |= {"bert.pooler.dense.weight": torch.randn(64, 64), "bert.pooler.dense.bias": torch.randn(64)}
    if old_names:
        for new, old in (("weight", "gamma"), ("bias", "beta")):
            published = {name.replace(f"LayerNorm.{new}", f"LayerNorm.{old}"): v for name, v in published.items()}
    encoder = TextEncoder(chosen, last_layers=last_layers)
    load_weights(encoder, published)
    name = "embeddings.word_embeddings.weight"
    assert torch.equal(encoder.bert.state_dict()[name], published[f"bert.{name}"])


def test_convnext_as_a_classifier_was_saved() -> None:
    config = ConvNextV2Config(hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1], num_labels=10)
    published = ConvNextV2ForImageClassification(config).state_dict()
    encoder = ConvNeXtEncoder(ConvNeXt(widths=(8, 16, 32, 64), layers=(1, 1, 1, 1)))
    load_weights(encoder, published)
    found = encoder.net.encoder.stages[3].layers[0].dwconv.weight
    assert torch.equal(found, published["convnextv2.encoder.stages.3.layers.0.dwconv.weight"])


def test_a_wrong_layout_is_refused_with_its_first_keys() -> None:
    published = residual_layout(BOTTLENECK, 1, 3)
    del published["layer1.0.conv1.weight"]
    published["layer1.0.conv1.bias"] = torch.zeros(8)
    published["layer2.0.conv2.weight"] = torch.zeros(8, 8, 1, 1, 1)
    encoder = ImageEncoder(BOTTLENECK, 1, 3)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    with pytest.raises(ConfigurationError) as caught:
        load_weights(encoder, published, where="weights.pth")
    problem = caught.value.problems[0]
    assert problem.where == "weights.pth"
    assert "3 of the weights do not fit" in problem.message
    assert "no tensor 'layer1.0.conv1.weight'" in problem.message
    assert "'layer1.0.conv1.bias' is not in the encoder" in problem.message
    assert "'layer2.0.conv2.weight' is (8, 8, 1, 1, 1), and the encoder's (8, 8, 3, 3, 3)" in problem.message
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


# --- pinned files -----------------------------------------------------------------------------------------------------


def network_with(sha256: str) -> Any:
    image = {**BOTTLENECK.model_dump(), "frozen": True, "weights": {"name": "medicalnet-resnet50", "sha256": sha256}}
    return build(options("image_only", image=image), COLUMNS, 0)


def hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("wrapped", [None, "state_dict", "safetensors"])
def test_a_pinned_file_is_loaded_if_its_hash_is_right(tmp_path: Path, wrapped: str | None) -> None:
    published = residual_layout(BOTTLENECK, 1, 3)
    path = tmp_path / ("weights.safetensors" if wrapped == "safetensors" else "weights.pth")
    if wrapped == "safetensors":
        save_file(published, path)
    else:
        torch.save({"state_dict": published, "epoch": 3} if wrapped else published, path)
    network = network_with(hash_of(path))
    load_pinned(network, {"medicalnet-resnet50": path}, frozen=True)
    assert torch.equal(network.image.net.conv1.weight, published["conv1.weight"])
    assert not network.image.net.conv1.weight.requires_grad


def test_another_hash_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(residual_layout(BOTTLENECK, 1, 3), path)
    with pytest.raises(ConfigurationError, match="SHA-256 is " + hash_of(path)):
        load_pinned(network_with("0" * 64), {"medicalnet-resnet50": path}, frozen=True)


def test_a_file_that_is_not_named_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no file is given"):
        load_pinned(network_with("0" * 64), {}, frozen=True)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_pinned(network_with("0" * 64), {"medicalnet-resnet50": tmp_path / "nowhere.pth"}, frozen=True)


class Malicious:
    def __reduce__(self) -> Any:
        return (print, ("code from a weight file ran",))


@pytest.mark.parametrize("content", ["code", "text", "list", "empty"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_anything_else_is_refused_and_runs_no_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, suffix: str
) -> None:
    path = tmp_path / f"weights{suffix}"
    if content in ("code", "list"):
        torch.save(Malicious() if content == "code" else [torch.zeros(2)], path)
    else:
        path.write_text("not weights" if content == "text" else "")
    with pytest.raises(ConfigurationError) as caught:
        load_pinned(network_with(hash_of(path)), {"medicalnet-resnet50": path}, frozen=True)
    assert caught.value.problems[0].where == str(path)
    assert "ran" not in capsys.readouterr().out
