"""Clipped gradients of single patients: both engines against the ordinary backward pass, Opacus, and each other."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from small_networks import COLUMNS, options, patients, tiny
from torch import nn

from ich_client.gradients import Draw, Engine, Ghost, Loop, Tensors, choose, learning, norm
from ich_client.noise import Stream
from ich_client.self_test import LEEWAY, leave_one_out
from ich_models.batch import Batch
from ich_models.networks.options import TINY_SLICE, TINY_TEXT, TINY_VOLUME
from ich_models.networks.registry import build
from ich_models.networks.staged import enter
from ich_models.recipes import Recipe
from ich_models.stack import Stack

PLAIN = Recipe.model_validate({"epochs": 1, "batch": "all", "optimizer": {"name": "sgd", "lr": 1.0}})
FROZEN = {"image": {**TINY_VOLUME, "frozen": True}, "text": {**TINY_TEXT, "frozen": True}}
ICHPRO = {"imima": 1.0, "negatives": "bank", "prototypes": 0.5, "sdm": 0.0}
VDAFM = {"negatives": "none", "prototypes": 0.2}
GROUPED = {**TINY_SLICE, "group": 2}

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ichpro": ("ichpro", "train", {"losses": ICHPRO}),
    "ichpro, encoders": ("ichpro", "encoders", {"losses": {**ICHPRO, "negatives": "none"}}),
    "ichpro, fusion": ("ichpro", "fusion", {}),
    "vdafm": ("vdafm", "train", {"losses": VDAFM}),
    "vdafm, frozen encoders": ("vdafm", "train", {"losses": {**VDAFM, "negatives": "bank"}, **FROZEN}),
    "mednvc": ("mednvc", "train", {}),
    "mednvc, pretrain": ("mednvc", "pretrain", {}),
    "hohoho, pretrain": ("hohoho", "pretrain", {"losses": {"negatives": "bank"}}),
    "hohoho": ("hohoho", "encoder", {}),
    "hohoho, sequence": ("hohoho", "sequence", {"bidirectional": True}),
    "dlmi": ("dlmi", "train", {}),
    "concat, frozen encoders": ("concat", "train", FROZEN),
    "image_only": ("image_only", "train", {}),
    "ichpro, whole": ("ichpro", "train", {"losses": {**ICHPRO, "mlm": 0.0}}),
    "vdafm, whole": ("vdafm", "train", {"losses": {**VDAFM, "negatives": "bank"}}),
    "hohoho, whole": ("hohoho", "encoder", {}),
    "dlmi, whole": ("dlmi", "train", {}),
    "mlp": ("mlp", "train", {"hidden": [8, 6], "normalisation": "layer", "dropout": 0.2}),
    "logistic": ("logistic", "train", {"init": "random"}),
}
DRAWING = {"hohoho, pretrain", "mednvc, pretrain"}
"""They draw turns and masks in evaluation, too."""

HEADS = ["ichpro, fusion", "vdafm, frozen encoders", "concat, frozen encoders", "mlp", "logistic"]
GHOSTS = [*HEADS, "image_only", *(case for case in CASES if case.endswith("whole") or case.startswith("mednvc"))]
"""Whose patients can be mapped: nobody lacks what is picked out for an encoder."""


def stack_of(case: str, dtype: torch.dtype = torch.float32) -> Stack:
    name, stage, settings = CASES[case]
    if name in ("mlp", "logistic"):
        network = build(options(name, **settings), COLUMNS, 1)
    else:
        network = tiny(name, **settings)
    enter(network, stage)
    return Stack(network.to(dtype).train(), 1)


def people(case: str, stack: Stack, count: int = 4, dtype: torch.dtype = torch.float32) -> Batch:
    """Several slices or views each, not all real; the first has no image, the second no text. "whole": all have all."""
    name = CASES[case][0]
    batch = patients("concat" if name in ("mlp", "logistic") else name, count, dtype=dtype)
    if name in ("mlp", "logistic"):
        batch = replace(batch, image=None, text=None, present={})
    there = torch.arange(count) != 0
    if case.endswith("whole"):
        return batch
    if name in ("ichpro", "vdafm", "concat"):
        batch = replace(batch, present={"image": there, "text": torch.arange(count) != 1})
    if name in ("hohoho", "dlmi", "mednvc"):
        real = torch.arange(3) <= torch.arange(count)[:, None]
        batch = replace(batch, slices=real, present={"image": there})
    if name in ("hohoho", "dlmi"):
        label = batch.label.clone()
        label[2, 0] = torch.nan
        batch = replace(batch, label=label)
    return stack.with_features(batch)


def quiet(network: nn.Module) -> nn.Module:
    """Without random layers; batch statistics there are none."""
    return network.eval()


def draw(count: int = 4) -> Draw:
    return Draw(torch.arange(count), torch.arange(count) + 17)


def engines(case: str, stack: Stack, batch: Batch, recipe: Recipe = PLAIN) -> list[Engine]:
    found: list[Engine] = [Loop(stack, batch, recipe)]
    if case in GHOSTS:
        found.append(choose(stack, batch, recipe, "ghost", draw(2)))
        assert isinstance(found[1], Ghost)
    return found


def apart(one: Tensors, other: Tensors) -> float:
    assert one.keys() == other.keys()
    return norm([one[name] - other[name] for name in one])


@pytest.mark.parametrize("case", sorted(CASES.keys() - DRAWING))
def test_gradients_of_patients_are_those_of_batches_of_one(case: str) -> None:
    """Opacus' micro-batch oracle: backward on one patient alone; and, since losses are means, on all of them together."""
    dtype = torch.float64
    stack = stack_of(case, dtype)
    batch = people(case, stack, dtype=dtype)
    quiet(stack.network)
    parameters = learning(stack)

    def backward(rows: torch.Tensor) -> Tensors:
        for parameter in parameters.values():
            parameter.grad = None
        stack.losses(batch.take(rows)).sum().backward()
        return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in parameters.items()}

    alone = [backward(torch.tensor([row])) for row in range(len(batch))]
    for engine in engines(case, stack, batch):
        for row, want in enumerate(alone):
            got = engine.clipped(Draw(torch.tensor([row]), torch.tensor([3])), math.inf, 0.0)
            assert apart(got, want) <= 1e-5 * max(norm(list(want.values())), 1e-3), (engine.name, row)
        together = engine.clipped(draw(len(batch)), math.inf, 0.0)
        want = {name: torch.stack([one[name] for one in alone]).sum(0) for name in parameters}
        assert apart(together, want) <= 1e-5 * norm(list(want.values()))


@pytest.mark.parametrize(("case", "matter"), [("hohoho", 3), ("dlmi", 3), ("mednvc", 1)])
def test_a_patients_one_gradient_is_of_all_scans(case: str, matter: int) -> None:
    """The last patient has three. Each of them moves the gradient (of views the highest decides), which has one clip."""
    stack = stack_of(case, torch.float64)
    batch = people(case, stack, dtype=torch.float64)
    quiet(stack.network)
    assert batch.slices is not None
    assert batch.image is not None
    assert batch.slices.sum(1).tolist() == [1, 2, 3, 3]
    last, moved = Draw(torch.tensor([3]), torch.tensor([3])), 0
    whole = Loop(stack, batch, PLAIN).clipped(last, math.inf, 0.0)
    for scan in range(3):
        image = batch.image.clone()
        image[3, scan] += 1
        loop = Loop(stack, replace(batch, image=image), PLAIN)
        moved += apart(loop.clipped(last, math.inf, 0.0), whole) > 1e-3 * norm(list(whole.values()))
        assert norm(list(loop.clipped(last, 1e-3, 0.0).values())) == pytest.approx(1e-3)
    assert moved >= matter


@pytest.mark.parametrize("case", ["hohoho, pretrain", "mednvc, pretrain", "ichpro"])
def test_what_is_drawn_for_a_patient_follows_the_patients_own_seed(case: str) -> None:
    """Turned views, hidden patches, hidden words, dropout: the same whoever else is in the batch."""
    stack = stack_of(case, torch.float64)
    batch = people(case, stack, dtype=torch.float64)
    loop = Loop(stack, batch, PLAIN)
    one, other = Draw(torch.tensor([2]), torch.tensor([5])), Draw(torch.tensor([3]), torch.tensor([9]))
    both = Draw(torch.tensor([2, 3]), torch.tensor([5, 9]))
    alone = [loop.clipped(each, math.inf, 0.0) for each in (one, other)]
    want = {name: alone[0][name] + alone[1][name] for name in alone[0]}
    assert apart(loop.clipped(both, math.inf, 0.0), want) <= 1e-9 * norm(list(want.values()))
    parameters = learning(stack)
    torch.manual_seed(5)
    stack.losses(batch.take(torch.tensor([2]))).sum().backward()
    want = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in parameters.items()}
    assert apart(alone[0], want) <= 1e-9 * norm(list(want.values()))


@pytest.mark.parametrize("case", CASES)
def test_one_patient_moves_the_sum_by_no_more_than_the_clip(case: str) -> None:
    """With random layers at work, at a clip that bites."""
    stack = stack_of(case)
    batch = people(case, stack, 3)
    for engine in engines(case, stack, batch):
        assert 1 - 1e-4 < leave_one_out(engine, draw(3), 1e-3) <= 1 + LEEWAY, engine.name


def test_a_wide_clip_leaves_gradients_as_they_are() -> None:
    for case in ("mlp", "dlmi"):
        stack = stack_of(case)
        quiet(stack.network)
        batch = people(case, stack)
        for engine in engines(case, stack, batch):
            lengths = [norm(list(engine.clipped(one, math.inf, 0.0).values())) for one in _singles(len(batch))]
            assert leave_one_out(engine, draw(), 2 * max(lengths)) == pytest.approx(0.5, rel=1e-5)


def test_the_norm_of_many_numbers_is_right_to_a_millionth() -> None:
    """Against NumPy in float64. One norm in float32 of as many is off by 1e-5 and more."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator) for shape in ((3000, 1001), (4096,), (7,), (), (0,))]
    want = math.sqrt(sum(float((tensor.double().numpy() ** 2).sum()) for tensor in tensors))
    assert norm(tensors) == pytest.approx(want, rel=1e-7)
    assert norm([]) == 0


def _singles(count: int) -> list[Draw]:
    return [Draw(torch.tensor([row]), torch.tensor([row + 17])) for row in range(count)]


@pytest.mark.parametrize("case", [*HEADS, "dlmi, whole", "mednvc, pretrain"])
def test_the_engines_agree_with_random_layers_at_work(case: str) -> None:
    """One patient at a time they draw the same numbers; at rest, together too, in whatever pieces."""
    stack = stack_of(case)
    batch = people(case, stack)
    loop, ghost = engines(case, stack, batch)
    for one in _singles(len(batch)):
        want = loop.clipped(one, 0.1, 0.0)
        assert apart(ghost.clipped(one, 0.1, 0.0), want) <= 2e-5 * norm(list(want.values()))
    assert isinstance(ghost, Ghost)
    assert ghost.linear
    if case not in DRAWING:
        quiet(stack.network)
        want = loop.clipped(draw(), 0.1, 0.0)
        assert apart(ghost.clipped(draw(), 0.1, 0.0), want) <= 2e-5 * norm(list(want.values()))


def test_the_step_is_opacus_own() -> None:
    """Opacus' hooks and optimiser are right on plain linear layers: the same clipped sums."""

    def made() -> Any:
        return build(options("mlp", hidden=[8, 6], normalisation="layer"), COLUMNS, 1).train()

    stack, network = Stack(made(), 1), made()
    batch = people("mlp", stack, 8)
    theirs = GradSampleModule(nn.Sequential(network.input, *network.body, network.output), strict=False)
    optimizer = DPOptimizer(
        torch.optim.SGD(theirs.parameters(), lr=1.0), noise_multiplier=0.0, max_grad_norm=0.05, expected_batch_size=8
    )
    nn.functional.binary_cross_entropy_with_logits(theirs(batch.table).squeeze(-1), batch.label).backward()
    optimizer.clip_and_accumulate()
    want = {name: parameter.summed_grad for name, parameter in network.named_parameters()}
    for engine in engines("mlp", stack, batch):
        got = engine.clipped(draw(8), 0.05, 0.0)
        assert apart(got, want) <= 2e-5 * norm(list(want.values()))  # Opacus adds 1e-6 to each norm


def test_an_empty_batch_is_zero() -> None:
    for case in ("mlp", "image_only"):
        stack = stack_of(case)
        for engine in engines(case, stack, people(case, stack)):
            assert norm(list(engine.clipped(draw(0), 1.0, 0.0).values())) == 0


def test_a_patient_with_numbers_out_of_range_adds_nothing() -> None:
    """Infinity in the table gives a gradient that is not finite: the others' sum is as without that patient."""
    stack = stack_of("mlp")
    quiet(stack.network)
    batch = people("mlp", stack)
    assert batch.table is not None
    table = batch.table.clone()
    table[3, 2] = torch.inf
    broken = replace(batch, table=table)
    for engine in engines("mlp", stack, broken):
        got = engine.clipped(draw(4), 0.1, 0.0)
        want = engine.clipped(Draw(torch.tensor([0, 1, 2]), torch.zeros(3, dtype=torch.int64)), 0.1, 0.0)
        assert norm(list(want.values())) > 0
        assert apart(got, want) <= 1e-6


def test_augmentation_changes_each_patient_alone() -> None:
    changes = [{"name": "affine", "degrees": 30}, {"name": "intensity"}, {"name": "noise", "sd": 0.1, "p": 1.0}]
    recipe = Recipe.model_validate({**PLAIN.model_dump(), "augment": changes})
    for case in ("image_only", "concat, frozen encoders"):
        stack = stack_of(case)
        batch = people(case, stack)
        for plain, changed in zip(engines(case, stack, batch), engines(case, stack, batch, recipe), strict=True):
            assert apart(plain.clipped(draw(3), 1.0, 0.0), changed.clipped(draw(3), 1.0, 0.0)) > 1e-3
            assert leave_one_out(changed, draw(3), 1e-3) <= 1 + LEEWAY


def test_layers_that_are_computed_again_are_clipped_alike() -> None:
    """`checkpoint: true`, whose re-entrant form breaks hooks: the same gradients as without."""
    sums = []
    for checkpoint in (False, True):
        network = tiny("image_only", image={**TINY_VOLUME, "checkpoint": checkpoint}).train()
        loop = Loop(Stack(network, 1), patients("image_only", 2), PLAIN)
        sums.append(loop.clipped(draw(2), 1e-3, 0.0))
    assert apart(*sums) <= 1e-8


# --- which engine -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_ghost_is_taken_for_heads_and_tables(case: str, caplog: pytest.LogCaptureFixture) -> None:
    stack = stack_of(case)
    with caplog.at_level("INFO"):
        taken = choose(stack, people(case, stack), PLAIN, "auto", draw(2)).name
    assert taken == ("ghost" if case in GHOSTS else "loop")
    reason = {
        "hohoho, sequence": "an LSTM learns",
        **dict.fromkeys(GHOSTS, "parameters, encoders included"),
        **dict.fromkeys(HEADS, "a table and kept features alone"),
    }.get(case, "torch.func cannot map the network for these patients")
    assert caplog.messages == [f"private gradients: {taken}, {_what(taken)} ({caplog.messages[0].split('(')[1]}"]
    assert reason in caplog.messages[0]


def _what(taken: str) -> str:
    return {"ghost": "all patients of a step in one pass", "loop": "one patient at a time"}[taken]


def test_large_networks_with_encoders_are_for_the_loop(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = stack_of("dlmi, whole")
    size = sum(parameter.numel() for parameter in learning(stack).values())
    monkeypatch.setattr("ich_client.gradients.SMALL", size - 1)
    with caplog.at_level("INFO"):
        assert choose(stack, people("dlmi, whole", stack), PLAIN, "auto", draw(2)).name == "loop"
    assert f"encoders learn, {size:,} parameters in all" in caplog.text
    monkeypatch.setattr("ich_client.gradients.SMALL", size)
    assert choose(stack, people("dlmi, whole", stack), PLAIN, "auto", draw(2)).name == "ghost"


def test_the_loop_can_be_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    stack = stack_of("mlp")
    with caplog.at_level("INFO"):
        assert choose(stack, people("mlp", stack), PLAIN, "loop", draw(2)).name == "loop"
    assert "(asked for)" in caplog.text


def test_one_pass_in_pieces_is_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = stack_of("mlp")
    quiet(stack.network)
    batch = people("mlp", stack)
    ghost = choose(stack, batch, PLAIN, "ghost", draw(2))
    whole = ghost.clipped(draw(4), 0.1, 0.0)
    monkeypatch.setattr("ich_client.gradients._LARGEST", 1)
    assert apart(ghost.clipped(draw(4), 0.1, 0.0), whole) <= 1e-6


def test_the_stream_gives_seeds_that_torch_takes() -> None:
    """A hundred, none twice, of which each begins other numbers."""
    seeds = Stream().seeds(100).tolist()
    assert all(0 <= seed < 2**63 for seed in seeds)
    first = {
        float(torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)) for seed in seeds
    }
    assert len(set(seeds)) == len(first) == 100
