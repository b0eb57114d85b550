"""Language models inside the hospital: what they are sent, which answers are taken, and every way outside that is closed."""

import base64
import io
import ipaddress
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from ich_client import report_writer
from ich_client.report_endpoint import Endpoint, EndpointOptions, inside, png, resolve
from ich_client.report_local import LocalModel
from ich_client.report_writer import ReportWriter, Written, choose, prompts, refusal
from ich_models.errors import ConfigurationError, RunError

TAKEN = "Left frontal lesion of moderate size with midline shift in the ASPECTS region M1."
"""Holds a term of every prompt."""


def slices(seed: int = 0, count: int = 3) -> list[NDArray[np.uint8]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (20, 30), dtype=np.uint8) for _ in range(count)]


# --- prompts and answers ----------------------------------------------------------------------------------------------


def test_five_prompts_of_which_the_severity_score_is_off() -> None:
    found = prompts()
    assert {one.name: one.by_default for one in found.prompts} == {
        "core_volume": True,
        "aspects": True,
        "lesion_areas": True,
        "mass_effect": True,
        "nihss_range": False,
    }
    hashes = {found.hash(one) for one in found.prompts}
    assert len(hashes) == 5
    changed = found.prompts[0].model_copy(update={"text": found.prompts[0].text + " "})
    assert found.hash(changed) not in hashes


def test_a_patients_prompt_is_the_same_whenever_it_is_asked_for_and_all_are_used() -> None:
    names = ["a", "b", "c", "d"]
    first = [choose(f"patient {n}", names, 42) for n in range(400)]
    assert first == [choose(f"patient {n}", names[::-1], 42) for n in range(400)]
    assert first != [choose(f"patient {n}", names, 43) for n in range(400)]
    assert all(70 < first.count(name) < 130 for name in names)  # 100 each, standard deviation 8.7


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (TAKEN, None),
        ("", "empty"),
        ("Left lesion. The prognosis is poor.", "says 'prognosis'"),
        ("Left lesion, NIHSS 12.", "says 'nihss'"),
        ("As an AI, I see a left lesion.", "says 'as an ai'"),
        ("Left lesion seen on 2024-03-09.", "holds what looks like a date"),
        ("Left lesion of A1001.", "holds what looks like the patient's own identifier"),
        ("Nothing to be said.", "says nothing of what was asked (left, right, bilateral, ...)"),
        ("The leftover.", "says nothing of what was asked (left, right, bilateral, ...)"),
        ("left " * 251, "more than 250 words"),
    ],
)
def test_answers_are_taken_or_refused_for_a_reason(answer: str, why: str | None) -> None:
    found = prompts()
    areas = next(one for one in found.prompts if one.name == "lesion_areas")
    assert refusal(answer, areas, found.forbidden, "a1001") == why


def test_only_its_own_prompt_lets_the_severity_score_pass() -> None:
    found = prompts()
    score = next(one for one in found.prompts if one.name == "nihss_range")
    assert refusal("NIHSS 5-15, since the core is large.", score, found.forbidden) is None
    assert refusal("NIHSS 5-15, outcome open.", score, found.forbidden) == "says 'outcome'"


# --- asked once, kept -------------------------------------------------------------------------------------------------


@dataclass
class Told:
    """A model that says what it was told to."""

    said: str = TAKEN
    identity: str = "told 1"
    asked: list[tuple[str, int, int]] = field(default_factory=list)

    def answer(self, prompt: str, shown: Any, seed: int) -> str:
        self.asked.append((prompt, len(shown), seed))
        return self.said


def test_a_model_is_asked_once_per_image_model_prompt_and_seed(tmp_path: Path) -> None:
    model = Told()
    writer = ReportWriter(model, tmp_path, 42)
    name = choose("p1", writer.names, 42)
    assert writer.write("p1", slices(), "template") == Written(TAKEN, "model", name)
    assert ReportWriter(model, tmp_path, 42).write("p1", slices(), "template").by == "model"
    assert len(model.asked) == 1
    for other, patient, image, seed in ((model, "p1", slices(1), 42), (Told(identity="told 2"), "p1", slices(), 42)):
        before = len(other.asked)
        ReportWriter(other, tmp_path, seed).write(patient, image, "template")
        assert len(other.asked) == before + 1
    turned = [one.reshape(30, 20) for one in slices()]
    assert ReportWriter(model, tmp_path, 42).write("p1", turned, "").by == "model"
    assert len(model.asked) == 3, "the same bytes in another form are another image"


def test_a_refused_answer_gives_way_to_the_template_and_is_not_asked_for_again(tmp_path: Path) -> None:
    model = Told("The patient will die.")
    for _ in range(2):
        written = ReportWriter(model, tmp_path, 42).write("p1", slices(), "age 71 years.")
        assert (written.text, written.by, written.refused) == ("age 71 years.", "template", "says 'die'")
    assert len(model.asked) == 1


def test_without_an_image_nobody_is_asked_and_of_many_slices_some_are_shown(tmp_path: Path) -> None:
    model = Told()
    writer = ReportWriter(model, tmp_path, 42)
    assert writer.write("p1", [], "template").text == "template"
    assert model.asked == []
    writer.write("p1", slices(count=33), "template")
    assert model.asked[0][1] == 17
    with pytest.raises(ValueError, match="a slice is float64"):
        writer.write("p1", [np.zeros((2, 2))], "template")  # type: ignore[list-item]


def test_a_damaged_answer_is_asked_for_again(tmp_path: Path) -> None:
    model = Told()
    writer = ReportWriter(model, tmp_path, 42)
    writer.write("p1", slices(), "template")
    (kept,) = tmp_path.rglob("*.json")
    kept.write_text("{")
    assert writer.write("p1", slices(), "template").by == "model"
    assert len(model.asked) == 2


def test_prompts_are_chosen_by_name(tmp_path: Path) -> None:
    assert ReportWriter(Told(), tmp_path, 42).names == ["core_volume", "aspects", "lesion_areas", "mass_effect"]
    assert ReportWriter(Told(), tmp_path, 42, ["aspects"]).write("p1", slices(), "").prompt == "aspects"
    with pytest.raises(ConfigurationError, match="no such prompts: outlook"):
        ReportWriter(Told(), tmp_path, 42, ["outlook"])


# --- an endpoint ------------------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Answers what it is told to, and keeps what it was asked."""

    daemon_threads = True
    status = 200
    headers: dict[str, str] = {}
    body: bytes = b""
    seen: list[tuple[str, dict[str, Any]]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server: Any = self.server
        server.seen.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
        self.send_response(server.status)
        for name, value in server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(server.body)))
        self.end_headers()
        self.wfile.write(server.body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as made:
        made.seen = []
        made.body = json.dumps({"choices": [{"message": {"role": "assistant", "content": TAKEN}}]}).encode()
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def endpoint(url: str) -> Endpoint:
    return Endpoint(EndpointOptions(url=url, model="vision-7b"))


def test_an_endpoint_is_shown_slices_and_a_fixed_prompt_and_nothing_else(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    image = slices()
    written = ReportWriter(endpoint(server.url), tmp_path, 42).write("CANARY-1", image, "CANARY template")
    assert (written.text, written.by) == (TAKEN, "model")
    ((path, asked),) = server.seen
    assert path == "/v1/chat/completions"
    assert "CANARY" not in json.dumps(asked)
    ((message),) = asked.pop("messages")
    assert {key: value for key, value in asked.items() if key != "seed"} == {
        "model": "vision-7b",
        "temperature": 0.7,
        "top_p": 0.8,
        "max_tokens": 250,
        "n": 1,
        "stream": False,
    }
    text, *pictures = message["content"]
    assert text["text"] == next(one.text for one in prompts().prompts if one.name == written.prompt)
    for picture, expected in zip(pictures, image, strict=True):
        kind, _, data = picture["image_url"]["url"].partition(",")
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as decoded:
            assert decoded.info == {}
            np.testing.assert_array_equal(np.asarray(decoded), expected)
    assert TAKEN in next(tmp_path.rglob("*.json")).read_text()


@pytest.mark.parametrize(
    ("status", "headers", "body", "message"),
    [
        (302, {"Location": "http://203.0.113.9/v1"}, b"", "it redirects elsewhere, which is not followed"),
        (307, {"Location": "/elsewhere"}, b"", "it redirects elsewhere, which is not followed"),
        (500, {}, b"out of memory", "it answers 500: 'out of memory'"),
        (200, {}, b"hello", "its answer is no chat completion"),
        (200, {}, b'{"choices": []}', "its answer is no chat completion"),
        (200, {}, b'{"choices": [{"message": {"content": null}}]}', "its answer is no chat completion"),
        (200, {}, b" " * 1_000_001, "its answer is larger than 1,000,000 bytes"),
    ],
)
def test_anything_but_an_answer_ends_the_command_and_is_not_kept(
    server: Server, status: int, headers: dict[str, str], body: bytes, message: str, tmp_path: Path
) -> None:
    server.status, server.headers, server.body = status, headers, body
    with pytest.raises(RunError) as caught:
        ReportWriter(endpoint(server.url), tmp_path, 42).write("p1", slices(), "template")
    assert message in str(caught.value)
    assert len(server.seen) == 1
    assert list(tmp_path.iterdir()) == []


def test_an_endpoint_that_is_not_there(server: Server) -> None:
    url = server.url
    server.server_close()
    with pytest.raises(RunError, match=r"it cannot be asked: .*\n    is it running"):
        endpoint(url).answer("prompt", slices(), 1)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://8.8.8.8/v1", r"'8.8.8.8' leads outside the hospital"),
        ("https://[2001:4860:4860::8888]/v1", "leads outside the hospital"),
        ("https://169.254.169.254/v1", "leads outside the hospital"),
        ("http://0.0.0.0/v1", "leads outside the hospital"),
        ("http://[::ffff:8.8.8.8]/v1", "leads outside the hospital"),
        ("http://10.1.2.3/v1", "is another machine, and http would show the images"),
        ("https://no-such-host.invalid/v1", "'no-such-host.invalid' is not known"),
    ],
)
def test_ways_outside_are_closed_before_anything_is_sent(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        endpoint(url)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        *((one, True) for one in ("127.0.0.1", "::1", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.7.7")),
        *((one, True) for one in ("fd00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1")),
        *((one, False) for one in ("172.32.0.1", "100.64.0.1", "192.0.2.1", "169.254.1.1", "fe80::1", "224.0.0.1")),
        *((one, False) for one in ("0.0.0.0", "::", "::ffff:1.1.1.1", "64:ff9b::808:808")),
    ],
)
def test_inside_is_this_machine_and_private_addresses(address: str, expected: bool) -> None:
    assert inside(ipaddress.ip_address(address)) is expected


def test_this_machine_is_known_by_name() -> None:
    assert all(address.is_loopback for address in resolve("localhost", 80))


@pytest.mark.parametrize(
    "url",
    ["ftp://127.0.0.1/v1", "127.0.0.1:8000", "http://", "http://me:secret@127.0.0.1/v1", "http://127.0.0.1/v1?a=b"],
)
def test_an_address_is_plain(url: str) -> None:
    with pytest.raises(ValidationError, match="is no address of an endpoint"):
        EndpointOptions(url=url, model="m")


@pytest.mark.parametrize("shape", [(1, 1), (7, 13), (64, 64)])
def test_png_is_read_by_another_library(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    with Image.open(io.BytesIO(png(image))) as decoded:
        assert decoded.mode == "L"
        np.testing.assert_array_equal(np.asarray(decoded), image)


# --- a model in a folder ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision-language model of random weights (LLaVA's layout), small enough for a test."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    made = tmp_path_factory.mktemp("model")
    words = ["<pad>", "<unk>", "<s>", "</s>", "<image>", "lesion", "in", "the", "left", "core", "aspects", "shift"]
    engine = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    engine.pre_tokenizer = pre_tokenizers.Whitespace()
    tokeniser: Any = PreTrainedTokenizerFast(
        tokenizer_object=engine, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    width = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    vision: Any = CLIPVisionConfig(**width, num_hidden_layers=2, image_size=32, patch_size=16)
    language: Any = LlamaConfig(
        **width, num_hidden_layers=1, num_key_value_heads=2, vocab_size=len(words),
        pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    settings: Any = LlavaConfig(vision_config=vision, text_config=language, image_token_index=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = LlavaForConditionalGeneration(settings)
    images: Any = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    template = (
        "{% for m in messages %}{% for c in m['content'] %}"
        "{{ '<image> ' if c['type'] == 'image' else c['text'] }}{% endfor %}{% endfor %}"
    )
    processor: Any = LlavaProcessor(
        image_processor=images, tokenizer=tokeniser, patch_size=16, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=template,
    )  # fmt: skip
    model.save_pretrained(made)
    processor.save_pretrained(made)
    return made


def test_a_model_in_a_folder_answers_the_same_for_the_same_seed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ich_client.report_local.MOST_TOKENS", 12)
    model = LocalModel(folder)
    first, again, other = (model.answer("core of the lesion", slices(), seed) for seed in (1, 1, 2))
    assert first == again != other
    assert first
    assert model.identity == LocalModel(folder).identity
    written = ReportWriter(model, tmp_path, 42, ["lesion_areas"]).write("p1", slices(), "template")
    kept = json.loads(next(tmp_path.rglob("*.json")).read_text())["answer"]
    assert written.text == (kept if written.by == "model" else "template")


def copy(folder: Path, to: Path) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def test_a_model_that_brings_code_or_other_formats_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no model in this folder"):
        LocalModel(tmp_path)
    coded = copy(folder, tmp_path / "coded")
    (coded / "modeling.py").write_text("raise SystemExit")
    with pytest.raises(ConfigurationError, match=r"the folder holds code: modeling\.py"):
        LocalModel(coded)
    mapped = copy(folder, tmp_path / "mapped")
    content = json.loads((mapped / "config.json").read_text()) | {"auto_map": {"AutoModel": "modeling.Model"}}
    (mapped / "config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match="the model asks for code of its own"):
        LocalModel(mapped)
    pickled = copy(folder, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ConfigurationError, match=r"no \*\.safetensors in this folder"):
        LocalModel(pickled)
    mute = copy(folder, tmp_path / "mute")
    (mute / "chat_template.jinja").unlink()
    with pytest.raises(ConfigurationError, match="the model has no chat template"):
        LocalModel(mute)
    cut = copy(folder, tmp_path / "cut")
    (cut / "processor_config.json").write_text("{")
    with pytest.raises(ConfigurationError, match="not JSON"):
        LocalModel(cut)


def test_another_weight_is_another_identity(folder: Path, tmp_path: Path) -> None:
    other = copy(folder, tmp_path / "other")
    assert LocalModel(other).identity == LocalModel(folder).identity
    raw = bytearray((other / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (other / "model.safetensors").write_bytes(raw)
    assert LocalModel(other).identity != LocalModel(folder).identity


def test_the_module_says_how_it_samples() -> None:
    assert (report_writer.TEMPERATURE, report_writer.TOP_P, report_writer.MOST_TOKENS) == (0.7, 0.8, 250)
