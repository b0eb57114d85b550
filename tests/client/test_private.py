"""Private training as a whole: what is refused, what a step is made of, and where noise, clip and strategy stand in it."""

import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_networks import COLUMNS, options, patients, tiny
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ich_client import self_test
from ich_client.gradients import Draw, EngineName, Loop, choose, learning, norm
from ich_client.private import Terms, fit_private
from ich_client.tasks import RefusedError
from ich_client.train import Direction, fit
from ich_models.batch import Batch, Output
from ich_models.errors import Code
from ich_models.losses import PerSample, Term, outcome
from ich_models.networks.options import TINY_VOLUME
from ich_models.networks.registry import build
from ich_models.recipes import Recipe
from ich_models.stack import Stack
from ich_strategies.fedprox import FedProx
from ich_strategies.scaffold import Scaffold

QUIET = Terms(sigma=0.0, clip=math.inf, rate=1.0, steps=3, expected=8)
"""Neither noise nor clip, and everybody in each batch: ordinary training."""


def recipe(**settings: Any) -> Recipe:
    plain = {"epochs": 3, "batch": "all", "optimizer": {"name": "sgd", "lr": 0.5}}
    return Recipe.model_validate({**plain, **settings})


def mlp(**settings: Any) -> Stack:
    return Stack(build(options("mlp", **{"hidden": [8, 6], **settings}), COLUMNS, 1), 1)


def table(count: int = 8, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(torch.randn(count, COLUMNS, generator=generator), (torch.arange(count) % 2).float())


def weights(stack: Stack) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in stack.parameters.values()])


def private(stack: Stack, batch: Batch, terms: Terms, **more: Any) -> torch.Tensor:
    fit_private(stack, batch, more.pop("recipe", recipe()), terms, **more)
    return weights(stack)


def draw(count: int) -> Draw:
    return Draw(torch.arange(count), torch.arange(count))


# --- the step ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [{"name": "sgd", "lr": 0.5, "momentum": 0.9}, {"name": "adam", "lr": 0.01}])
@pytest.mark.parametrize("engine", ["loop", "ghost"])
def test_without_noise_and_clip_it_is_ordinary_training(engine: EngineName, optimizer: dict[str, Any]) -> None:
    settings = recipe(optimizer=optimizer, schedule={"name": "cosine", "warm_up": 1})
    ours, plain = mlp(), mlp()
    done = fit_private(ours, table(), settings, QUIET, rounds_before=1, rounds=4, engine=engine)
    want = fit(plain, table(), settings, rounds_before=1, rounds=4, seed=(1,))
    assert float((weights(ours) - weights(plain)).abs().max()) <= 1e-6
    assert done.rate == pytest.approx(want.rate)
    assert done.losses.isnan().all(), "the loss is the patients' own"


@pytest.mark.parametrize(("name", "settings"), [("dlmi", {}), ("mednvc", {"throw": 0.0})], ids=lambda value: str(value))
def test_of_networks_with_images_too(name: str, settings: dict[str, Any]) -> None:
    ours, plain = (Stack(tiny(name, **settings).double(), 1) for _ in range(2))
    batch, settings = patients(name, 3, dtype=torch.float64), recipe(epochs=2)
    fit_private(ours, batch, settings, Terms(0.0, math.inf, 1.0, 2, 3))
    fit(plain, batch, settings, seed=(1,))
    assert float((weights(ours) - weights(plain)).abs().max()) <= 1e-6


def test_schedules_and_fading_terms_count_epochs_over_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs spread over five steps, in the third of the rounds, after seven epochs of earlier stages."""
    seen: list[float] = []
    clipped = Loop.clipped

    def noted(self: Loop, drawn: Draw, clip: float, epoch: float, without: int | None = None) -> Any:
        seen.append(epoch)
        return clipped(self, drawn, clip, epoch, without)

    monkeypatch.setattr(Loop, "clipped", noted)
    terms = Terms(0.0, math.inf, 0.5, 5, 4)
    settings = recipe(epochs=2, schedule={"name": "step", "every": 5, "gamma": 0.1})
    done = fit_private(mlp(), table(), settings, terms, rounds_before=2, rounds=3, epochs_before=7, engine="loop")
    assert seen == [11, 11, 11, 12, 12]
    assert done.rate == pytest.approx(3 * 0.5 + 2 * 0.05)


def test_the_sum_is_divided_by_the_public_number() -> None:
    """Half the patients, and a quarter of the step: what is there does not count."""
    start = weights(mlp())
    whole = private(mlp(), table(8), Terms(0.0, 0.1, 1.0, 1, 8), recipe=recipe(epochs=1)) - start
    quarter = private(mlp(), table(8), Terms(0.0, 0.1, 1.0, 1, 32), recipe=recipe(epochs=1)) - start
    assert torch.allclose(whole, 4 * quarter, atol=1e-7)


def test_noise_is_sigma_times_clip_within_a_hundredth() -> None:
    """Nobody is there: one step of learning rate 1 is the noise over 10 alone, of 300,000 numbers."""
    stack = mlp(hidden=[512, 512])
    start = weights(stack)
    moved = private(
        stack,
        table(0),
        Terms(sigma=1.7, clip=0.3, rate=0.5, steps=1, expected=10),
        recipe=recipe(optimizer={"name": "sgd", "lr": 1.0}),
    )
    assert len(start) > 250_000
    assert float((moved - start).std()) == pytest.approx(1.7 * 0.3 / 10, rel=0.01)


def test_every_step_has_noise_of_its_own_though_the_batch_is_empty() -> None:
    """Four steps' noises add up like independent ones: twice the deviation of one. Chance of a patient: 1e-9."""
    stack = mlp(hidden=[256, 256])
    start = weights(stack)
    terms = Terms(sigma=1.0, clip=1.0, rate=1e-9, steps=4, expected=1)
    moved = private(stack, table(), terms, recipe=recipe(optimizer={"name": "sgd", "lr": 1.0}))
    assert float((moved - start).std()) == pytest.approx(2.0, rel=0.02)


def test_two_runs_with_one_seed_differ() -> None:
    """In noise, and without noise in who is in the batch; torch's seed changes nothing."""
    noisy, sampled = Terms(1.0, 1.0, 1.0, 1, 8), Terms(0.0, 1.0, 0.5, 20, 4)
    for terms in (noisy, sampled):
        runs = []
        for _ in range(2):
            torch.manual_seed(3)
            runs.append(private(mlp(), table(), terms))
        assert not torch.equal(*runs)


@pytest.mark.parametrize("engine", ["loop", "ghost"])
def test_what_random_layers_draw_is_secret_too(engine: EngineName) -> None:
    """Everybody is in the one batch and there is no noise: what differs between two runs is whom dropout hides what from."""
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        terms = Terms(sigma=0.0, clip=1.0, rate=1.0, steps=1, expected=8)
        runs.append(private(mlp(dropout=0.5), table(), terms, engine=engine))
    assert not torch.equal(*runs)


def test_torchs_own_generator_is_left_as_it_was() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    private(mlp(dropout=0.3), table(), Terms(1.0, 1.0, 0.5, 2, 4))
    assert torch.equal(torch.get_rng_state(), before)


def test_one_broken_patient_does_not_break_the_model() -> None:
    batch = table()
    assert batch.table is not None
    batch.table[2] = torch.inf
    for engine in ("loop", "ghost"):
        assert torch.isfinite(private(mlp(), batch, QUIET, engine=engine)).all()


def test_nothing_to_learn_reports_nothing() -> None:
    stack = mlp()
    stack.network.requires_grad_(False)
    done = fit_private(stack, table(), recipe(), QUIET)
    assert done.losses.isnan().all()
    assert done.rate == 0


def test_folds_train_one_after_another() -> None:
    stack = Stack(build(options("mlp", hidden=[4]), COLUMNS, 1), 2)
    with pytest.raises(ValueError, match="2 models at once"):
        fit_private(stack, table(), recipe(), QUIET)


@pytest.mark.parametrize(
    "broken",
    [
        {"sigma": -1.0},
        {"clip": 0.0},
        {"rate": 0.0},
        {"rate": 1.5},
        {"steps": -1},
        {"expected": 0.0},
        {"clip": math.inf},
        {"sigma": math.nan},
        {"expected": math.inf},
    ],
    ids=str,
)
def test_terms_without_meaning_cannot_be_made(broken: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no such terms"):
        Terms(**{"sigma": 1.0, "clip": 1.0, "rate": 0.5, "steps": 3, "expected": 4.0, **broken})


# --- strategies -------------------------------------------------------------------------------------------------------


def test_fedprox_pulls_after_the_clip() -> None:
    """Two steps by hand: the pull of the second is ten times what the clip would let through."""
    mu, clip, lr = 40.0, 1e-3, 1.0
    stack, by_hand = mlp(), mlp()
    starts = {name: parameter.detach().clone()[None] for name, parameter in stack.parameters.items()}
    strategy = FedProx(mu)
    direction: Direction = lambda name, gradient, weight: strategy.direction(gradient, weight, starts[name], {}, {})  # noqa: E731
    terms = Terms(0.0, clip, 1.0, 2, 1)
    settings = recipe(optimizer={"name": "sgd", "lr": lr}, epochs=2)
    private(stack, table(1), terms, recipe=settings, direction=direction)
    loop = Loop(by_hand, table(1), settings)
    with torch.no_grad():
        for _ in range(2):
            with torch.enable_grad():
                sums = loop.clipped(draw(1), clip, 0.0)
            pulls = {name: mu * (p - starts[name][0]) for name, p in by_hand.parameters.items()}
            for name, parameter in by_hand.parameters.items():
                parameter.sub_(lr * (sums[name] + pulls[name]))
    assert norm(list(pulls.values())) > 10 * clip
    assert float((weights(stack) - weights(by_hand)).abs().max()) <= 1e-6


def test_scaffolds_variate_is_made_of_noised_gradients() -> None:
    """Option II: the new variate is the mean of what the steps were given before correction, noise and all."""
    stack = mlp(hidden=[64])
    strategy = Scaffold(1.0)
    size = len(weights(stack))
    server, client = torch.full((1, size), 0.02), torch.full((1, size), -0.01)
    start = weights(stack)[None].clone()
    places: dict[str, slice] = {}
    at = 0
    for name, parameter in stack.parameters.items():
        places[name] = slice(at, at := at + parameter.numel())
    given: list[torch.Tensor] = []

    def direction(name: str, gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        given.append(gradient.clone().flatten())
        own = {"variate": client[:, places[name]].reshape(gradient.shape)}
        theirs = {"variate": server[:, places[name]].reshape(gradient.shape)}
        return strategy.direction(gradient, weight, weight, theirs, own)

    terms = Terms(sigma=2.0, clip=0.05, rate=0.5, steps=4, expected=4)
    done = fit_private(stack, table(), recipe(), terms, direction=direction)
    end = weights(stack)[None]
    report = strategy.report(start, end, {"variate": server}, {"variate": client}, done.rate)
    noised = torch.cat(given).reshape(terms.steps, size)
    assert float(noised.std()) == pytest.approx(2.0 * 0.05 / 4, rel=0.1)
    assert torch.allclose(report.kept["variate"][0], noised.mean(0), atol=1e-5)
    assert torch.allclose(report.sent["variate"], report.kept["variate"] - client, atol=1e-6)


# --- what is not private, one case each -------------------------------------------------------------------------------


class Lone(nn.Module):
    """A network of a table with terms of its own; `work(table)` makes logits."""

    def __init__(self, *terms: Term, **parts: nn.Module) -> None:
        super().__init__()
        self.terms = terms or (Term("bce", outcome, per_sample=True),)
        for name, part in parts.items():
            self.add_module(name, part)
        self.first, self.output = nn.Linear(COLUMNS, 8), nn.Linear(8, 1)

    def work(self, values: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.first(values))

    def forward(self, batch: Batch) -> Output:
        assert batch.table is not None
        hidden = self.work(batch.table.nan_to_num())
        return Output(self.output(hidden).squeeze(-1), {"hidden": hidden})


def refused(network: nn.Module, batch: Batch | None = None, **more: Any) -> str:
    with pytest.raises(RefusedError) as problem:
        fit_private(
            Stack(network, 1), table() if batch is None else batch, recipe(), Terms(1.0, 0.1, 0.5, 2, 4), **more
        )
    assert problem.value.code is Code.PRIVACY
    return str(problem.value)


def right(network: nn.Module, batch: Batch, *, engine: str) -> None:
    """Taken with this engine, of ratio 1, each patient's gradient that of backward on the patient alone."""
    stack = Stack(network.train(), 1)
    taken = choose(stack, batch, recipe(), "auto", draw(3))
    assert taken.name == engine
    parameters = learning(stack)
    lengths = []
    for row in range(len(batch)):
        for parameter in parameters.values():
            parameter.grad = None
        torch.manual_seed(row)
        stack.losses(batch.take(torch.tensor([row]))).sum().backward()
        want = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in parameters.items()}
        got = taken.clipped(Draw(torch.tensor([row]), torch.tensor([row])), math.inf, 0.0)
        lengths.append(norm(list(want.values())))
        assert norm([got[n] - want[n] for n in want]) <= 1e-5 * lengths[-1]
    ratio = self_test.leave_one_out(taken, draw(len(batch)), min(lengths) / 2)
    assert 1 - 1e-4 < ratio <= 1 + self_test.LEEWAY


@pytest.mark.parametrize("kind", ["trained", "frozen", "affine-free", "without statistics"])
def test_batch_normalisation_in_training_mode_is_refused(kind: str) -> None:
    made = {
        "trained": nn.BatchNorm1d(8),
        "frozen": nn.BatchNorm1d(8).requires_grad_(False),
        "affine-free": nn.BatchNorm1d(8, affine=False),
        "without statistics": nn.BatchNorm1d(8, track_running_stats=False),
    }[kind]

    class Normed(Lone):
        def work(self, values: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.norm(self.first(values)))  # type: ignore[operator]

    assert refused(Normed(norm=made)) == "layers that use or keep statistics of a batch: norm"


def test_batch_normalisation_at_rest_is_private() -> None:
    class Normed(Lone):
        def work(self, values: torch.Tensor) -> torch.Tensor:
            return self.norm(self.first(values))  # type: ignore[no-any-return, operator]

        def train(self, mode: bool = True) -> "Normed":
            super().train(mode)
            self.norm.eval()
            return self

    right(Normed(norm=nn.BatchNorm1d(8)), table(4), engine="ghost")


def test_coupled_losses_are_refused() -> None:
    def contrast(output: Output, batch: Batch) -> torch.Tensor:
        hidden = output.embeddings["hidden"]
        return (hidden @ hidden.T).log_softmax(1).diagonal().mean()

    term = Term("contrast", contrast, per_sample=False)
    assert refused(Lone(term)) == "losses that compare patients with one another: contrast"
    assert "imima, sdm" in refused(tiny("ichpro"), patients("ichpro", 3))


def test_a_loss_that_says_it_is_per_sample_and_is_not_reaches_nobody() -> None:
    """In the loop there is nobody else; the mapped pass sees one patient at a time as well."""

    def centred(output: Output, batch: Batch) -> PerSample:
        return PerSample((output.logits - output.logits.mean() - batch.label).square())

    network = Lone(Term("centred", centred, per_sample=True), Term("bce", outcome, per_sample=True))
    right(network, table(4), engine="ghost")


def test_packed_sequences_are_right() -> None:
    class Packed(Lone):
        def work(self, values: torch.Tensor) -> torch.Tensor:
            lengths = (values.abs() > 0.2).sum(1).clamp(min=1)
            packed = pack_padded_sequence(values[..., None], lengths.cpu(), batch_first=True, enforce_sorted=False)
            read, _ = pad_packed_sequence(self.reader(packed)[0], batch_first=True)  # type: ignore[operator]
            return read[torch.arange(len(values)), lengths - 1]  # type: ignore[no-any-return]

    right(Packed(reader=nn.LSTM(1, 8, batch_first=True)), table(4), engine="loop")


def test_slices_folded_into_the_batch_are_one_patient() -> None:
    """A patient with the same slice three times has one gradient, and one clip: not three."""
    stack = Stack(tiny("hohoho").train(), 1)
    stack.network.eval()
    batch = patients("hohoho", 2)
    assert batch.image is not None
    batch.image[1] = batch.image[1, :1]
    batch.label[1] = batch.label[1, :1]
    single = Batch(None, batch.label[1:, :1], image=batch.image[1:, :1])
    want = Loop(stack, single, recipe()).clipped(draw(1), 1e-3, 0.0)
    got = Loop(stack, batch, recipe()).clipped(Draw(torch.tensor([1]), torch.tensor([0])), 1e-3, 0.0)
    assert norm(list(got.values())) == pytest.approx(1e-3, rel=1e-6)
    assert norm([got[name] - want[name] for name in got]) <= 1e-7


def test_a_penalty_in_the_loss_is_clipped_with_the_rest() -> None:
    class Penalised(Lone):
        def penalty(self, output: Output, batch: Batch) -> PerSample:
            return PerSample(self.first.weight.square().sum().expand(len(batch)))

    network = Penalised()
    network.terms = (Term("bce", outcome, per_sample=True), Term("penalty", network.penalty, per_sample=True))
    right(network, table(4), engine="loop")


def test_convolutions_of_memory_that_is_not_contiguous_are_right() -> None:
    class Turned(Lone):
        def work(self, values: torch.Tensor) -> torch.Tensor:
            image = values[:, :, None] * values[:, None]
            image = torch.stack([image, image.cos()], dim=-1).permute(0, 3, 2, 1)
            assert len(values) == 1 or not image.is_contiguous()
            return self.conv(image).tanh().mean((2, 3))  # type: ignore[no-any-return, operator]

    right(Turned(conv=nn.Conv2d(2, 8, 3)), table(4), engine="ghost")


class Tied(Lone):
    """A word's embedding is the weight that says it again, as in a tied language head."""

    def __init__(self) -> None:
        super().__init__(said=nn.Linear(8, 30, bias=False), words=nn.Embedding(30, 8))
        self.said.weight = self.words.weight  # type: ignore[assignment]
        self.terms = (Term("words", self.again, per_sample=True), Term("bce", outcome, per_sample=True))

    def ids(self, values: torch.Tensor) -> torch.Tensor:
        return (values.abs() * 7).long().clamp(max=29)

    def work(self, values: torch.Tensor) -> torch.Tensor:
        return self.words(self.ids(values)).mean(1)  # type: ignore[no-any-return, operator]

    def again(self, output: Output, batch: Batch) -> PerSample:
        assert batch.table is not None
        scores = self.said(output.embeddings["hidden"]).log_softmax(-1)  # type: ignore[operator]
        return PerSample(-scores.gather(1, self.ids(batch.table)).mean(1))


def test_tied_heads_are_right() -> None:
    right(Tied(), table(4), engine="loop")


def test_a_weight_that_is_used_again_by_hand_is_right() -> None:
    class Again(Lone):
        def work(self, values: torch.Tensor) -> torch.Tensor:
            once = torch.tanh(self.first(values))
            return torch.tanh(nn.functional.linear(once @ self.first.weight, self.first.weight))

    right(Again(), table(4), engine="loop")


def test_a_layer_that_is_called_twice_is_right() -> None:
    """Its gradient is the sum over both calls, so it is written down; the others' are not."""

    class Twice(Lone):
        def work(self, values: torch.Tensor) -> torch.Tensor:
            once = torch.tanh(self.second(torch.tanh(self.first(values))))  # type: ignore[operator]
            return torch.tanh(self.second(once))  # type: ignore[no-any-return, operator]

    right(Twice(second=nn.Linear(8, 8)), table(4), engine="ghost")


class Remembering(Lone):
    """Each patient is compared with the one before: a queue, outside of the tensors that anybody lists."""

    def __init__(self) -> None:
        super().__init__()
        self.before = torch.zeros(8)

    def work(self, values: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(values))
        seen = hidden * (1 + 50 * self.before)
        self.before = hidden.detach()[-1]
        return seen


def test_a_network_that_remembers_patients_fails_the_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ich_client.private.TRIED", 8)
    message = refused(Remembering(), table(), engine="loop")
    assert "times the clip, with engine loop" in message
    assert float(message.split("by ")[1].split(" ")[0]) > 1.001


def test_moving_averages_are_refused() -> None:
    class Moving(Lone):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(8))

        def work(self, values: torch.Tensor) -> torch.Tensor:
            hidden = torch.tanh(self.first(values))
            self.mean.mul_(0.9).add_(hidden.detach().mean(0))  # type: ignore[operator]
            return hidden

    message = refused(Moving(), table(), engine="loop")
    assert message == "training changes tensors that are no parameters, past the noise: mean"


def test_an_encoder_that_keeps_something_while_it_makes_features_is_refused() -> None:
    """It rests, and is asked once before the first step: what it then remembers of patients would leave without noise."""
    network = tiny("image_only", image={**TINY_VOLUME, "frozen": True})
    network.image.register_buffer("seen", torch.zeros(()))

    def keep(module: nn.Module, given: tuple[torch.Tensor], _output: torch.Tensor) -> None:
        module.seen.add_(given[0].sum())  # type: ignore[operator]

    network.image.register_forward_hook(keep)
    message = refused(network, patients("image_only", 3))
    assert message == "training changes tensors that are no parameters, past the noise: image.seen"


def test_the_self_test_runs_once_for_a_network_and_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[int] = []
    run: Callable[..., None] = self_test.run
    monkeypatch.setattr(self_test, "run", lambda *given: (times.append(1), run(*given))[1])
    stack = mlp()
    for _ in range(3):
        private(stack, table(), Terms(1.0, 0.1, 0.5, 1, 4))
    assert len(times) == 1
    private(mlp(), table(), Terms(1.0, 0.1, 0.5, 1, 4))
    assert len(times) == 2
    for hospital in ("north", "south", "north"):  # in a simulation they share a network, and its patients are others
        private(stack, table(), Terms(1.0, 0.1, 0.5, 1, 4), hospital=hospital)
    assert len(times) == 4


def test_the_log_says_nothing_of_patients(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        private(mlp(), table(), Terms(1.0, 0.1, 0.5, 3, 4))
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("ich_")]
    assert ours == ["private gradients: ghost, all patients of a step in one pass (a table and kept features alone)"]
