"""Training is Algorithm 1 with Adam and a moving average, to be checked by hand; and step s depends on s alone."""

from __future__ import annotations

import copy
import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddpm_cli.checkpoint import Snapshot
from ddpm_cli.config import T_SAMPLINGS, TrainConfig
from ddpm_cli.data import Images
from ddpm_cli.diffusion.schedule import from_config, linear
from ddpm_cli.errors import DivergedError
from ddpm_cli.network.dropout import draw_masks
from ddpm_cli.network.unet import UNet
from ddpm_cli.training import batch
from ddpm_cli.training.batch import batch_at
from ddpm_cli.training.loop import HERE, Execution, StepReport, Training, train
from helpers.checkpoints import differences
from helpers.models import DIFFUSION, random_unet, tiny

CPU = torch.device("cpu")
T = DIFFUSION.timesteps
SCHEDULE = from_config(DIFFUSION)
NETWORK = replace(tiny(), dropout=0.2)
CONFIG = TrainConfig(batch_size=6, lr=2e-3, warmup=4, ema=0.9, flip=True, seed=3)


def images(n: int = 13, channels: int = 1, seed: int = 0) -> Images:
    return Images.from_array(np.random.default_rng(seed).integers(0, 256, (n, 8, 8, channels), dtype=np.uint8))


def training(config: TrainConfig = CONFIG, execution: Execution = HERE, **changes: Any) -> Training:
    """A training that starts from weights which all matter, not from an output of 0."""
    made = Training(replace(NETWORK, **changes), DIFFUSION, config, CPU, execution)
    made.start_from(random_unet(NETWORK, seed=1).state_dict())
    return made


def advance(made: Training, data: Images, steps: int) -> list[StepReport]:
    """Train for so many steps more; one report for each."""
    reports = train(made, data, steps=made.step + steps, log_every=1, stop=lambda: False)
    return [report for report in reports if report]


def kept(made: Training) -> Snapshot:
    """A snapshot that later steps do not change."""
    return copy.deepcopy(made.snapshot())


# What makes up a step.


@given(n=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 2**62), step=st.integers(1, 10**6))
def test_a_batch_is_a_function_of_its_step(n: int, batch: int, seed: int, step: int) -> None:
    data, config = images(n), TrainConfig(batch_size=batch, seed=seed)
    first = batch_at(data, config, SCHEDULE, step)
    batch_at(data, config, SCHEDULE, step + 1)  # whatever else is drawn
    again = batch_at(data, config, SCHEDULE, step)
    assert torch.equal(first.images, again.images)
    assert np.array_equal(first.t, again.t)
    assert torch.equal(first.eps, again.eps)
    assert first.images.shape == (batch, 8, 8, 1)
    assert first.images.dtype == torch.uint8
    assert first.eps.shape == (batch, 1, 8, 8)
    assert first.eps.dtype == torch.float32
    assert first.t.dtype == np.int64
    assert ((first.t >= 1) & (first.t <= T)).all()


def numbered(n: int) -> Images:
    """Images that are their own numbers, in every pixel."""
    pixels = np.empty((n, 8, 8, 1), np.uint8)
    pixels[:] = np.arange(n, dtype=np.uint8)[:, None, None, None]
    return Images.from_array(pixels)


@given(n=st.integers(1, 60), batch=st.integers(1, 40), seed=st.integers(0, 2**62), epochs=st.integers(1, 3))
def test_each_epoch_shows_every_image_once_without_a_gap(n: int, batch: int, seed: int, epochs: int) -> None:
    data, config = numbered(n), TrainConfig(batch_size=batch, seed=seed)
    steps = -(-epochs * n // batch)
    shown = [int(i) for step in range(1, steps + 1) for i in batch_at(data, config, SCHEDULE, step).images[:, 0, 0, 0]]
    for epoch in range(epochs):
        assert sorted(shown[epoch * n : (epoch + 1) * n]) == list(range(n)), epoch


def test_each_epoch_has_its_own_order() -> None:
    orders = {
        tuple(
            batch_at(numbered(50), TrainConfig(batch_size=50, seed=seed), SCHEDULE, epoch).images[:, 0, 0, 0].tolist()
        )
        for seed in (0, 1)
        for epoch in (1, 2, 3)
    }
    assert len(orders) == 6


@pytest.mark.parametrize("seed", range(3))
def test_images_are_mirrored_half_the_time_or_as_they_are(seed: int) -> None:
    data = images(7, channels=3, seed=seed)
    config = replace(CONFIG, batch_size=7, seed=seed)
    originals = data.take(range(7))
    mirrored = 0
    for step in range(1, 201):
        for image in batch_at(data, config, SCHEDULE, step).images.numpy():
            plain = [i for i in range(7) if np.array_equal(image, originals[i])]
            flipped = [i for i in range(7) if np.array_equal(image, originals[i, :, ::-1])]
            assert len(plain) + len(flipped) == 1
            mirrored += len(flipped)
    assert abs(mirrored - 700) < 4 * np.sqrt(1400) / 2  # four standard deviations

    unflipped = batch_at(data, replace(config, flip=False), SCHEDULE, 1).images.numpy()
    assert Counter(row.tobytes() for row in unflipped) == Counter(row.tobytes() for row in originals)


def test_t_is_uniform_and_noise_is_normal() -> None:
    batches = [batch_at(images(), replace(CONFIG, batch_size=200), SCHEDULE, step) for step in range(1, 51)]
    counts = np.bincount(np.concatenate([batch.t for batch in batches]), minlength=T + 1)
    expected = 10_000 / T
    assert counts[0] == 0
    assert np.abs(counts[1:] - expected).max() < 5 * np.sqrt(expected)
    eps = torch.cat([batch.eps for batch in batches])
    assert eps.mean().abs() < 5 / eps.numel() ** 0.5
    assert (eps.var() - 1).abs() < 5 * (2 / eps.numel()) ** 0.5
    assert len({noise.numpy().tobytes() for noise in eps}) == len(eps)


def test_by_importance_t_follows_p_and_weights_undo_it() -> None:
    config = replace(CONFIG, batch_size=200, t_sampling="importance")
    batches = [batch_at(images(), config, SCHEDULE, step) for step in range(1, 51)]
    t = np.concatenate([batch.t for batch in batches])
    counts, expected = np.bincount(t, minlength=T + 1), 10_000 * SCHEDULE.importance
    assert counts[0] == 0
    assert (np.abs(counts - expected) <= 5 * np.sqrt(expected)).all()
    weights = torch.cat([batch.weights for batch in batches]).numpy()
    np.testing.assert_allclose(weights, 1 / (T * SCHEDULE.importance[t]), rtol=1e-6)
    # Their mean is that of the uniform 1, and their mean of t that of 1..T.
    for values, mean in ((weights, 1), (weights * t, (T + 1) / 2)):
        assert abs(values.mean() - mean) < 5 * values.std() / 100
    rows = range(40, 90)
    part = batch_at(images(), config, SCHEDULE, 7, rows)
    assert np.array_equal(part.t, batches[6].t[40:90])
    assert torch.equal(part.weights, batches[6].weights[40:90])


@pytest.mark.parametrize("T", [1, 2, 1000, 10_000])
def test_the_ends_of_the_unit_interval_are_steps(monkeypatch: pytest.MonkeyPatch, T: int) -> None:
    drawn = np.array([0.0, 0.5, 1 - 2.0**-53])
    monkeypatch.setattr(batch.rng, "uniform", lambda *_: drawn)
    t, weights = batch._times(replace(CONFIG, batch_size=3, t_sampling="importance"), linear(T), 1)
    assert (t[0], t[2]) == (1, T)
    assert 1 <= t[1] <= T
    assert ((weights > 0) & (weights <= 10)).all()
    if T == 1:
        assert (weights == 1).all()


def test_uniform_t_weigh_alike() -> None:
    assert torch.equal(batch_at(images(), CONFIG, SCHEDULE, 3).weights, torch.ones(CONFIG.batch_size))


# The step itself, by hand.


def loss_by_hand(network: UNet, data: Images, config: TrainConfig, step: int, predict: str) -> torch.Tensor:
    """Eq. 14, or its twin for another prediction, written out."""
    batch = batch_at(data, config, SCHEDULE, step)
    alpha_bar = torch.tensor(SCHEDULE.alpha_bar[batch.t], dtype=torch.float32)[:, None, None, None]
    x_0 = batch.images.permute(0, 3, 1, 2).float() / 127.5 - 1
    x_t = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * batch.eps
    v = alpha_bar.sqrt() * batch.eps - (1 - alpha_bar).sqrt() * x_0
    names = [(step, row) for row in range(config.batch_size)]
    shapes = network.dropout_shapes((x_t.shape[2], x_t.shape[3]))
    masks = draw_masks(shapes, network.config.dropout, config.seed, names, CPU, torch.float32)
    output = network(x_t, torch.from_numpy(batch.t) - 1, masks)
    return torch.mean((output - {"eps": batch.eps, "x0": x_0, "v": v}[predict]) ** 2)


@pytest.mark.parametrize("predict", ["eps", "x0", "v"])
def test_the_first_loss_by_hand(predict: str) -> None:
    network = random_unet(tiny(), seed=1)
    made = Training(tiny(), replace(DIFFUSION, predict=predict), CONFIG, CPU)
    made.start_from(network.state_dict())
    expected = loss_by_hand(network, images(), CONFIG, 1, predict)
    (report,) = advance(made, images(), 1)
    assert report.loss == pytest.approx(expected.item(), rel=1e-5)


def test_a_loss_by_importance_is_weighted() -> None:
    config, network = replace(CONFIG, t_sampling="importance"), random_unet(tiny(), seed=1)
    made = Training(tiny(), DIFFUSION, config, CPU)
    made.start_from(network.state_dict())
    batch = batch_at(images(), config, SCHEDULE, 1)
    assert len(set(batch.t)) > 1
    each = []
    for row in range(config.batch_size):
        a = float(SCHEDULE.alpha_bar[batch.t[row]])
        x_0, eps = batch.images[row : row + 1].permute(0, 3, 1, 2).float() / 127.5 - 1, batch.eps[row : row + 1]
        output = network(a**0.5 * x_0 + (1 - a) ** 0.5 * eps, torch.from_numpy(batch.t[row : row + 1]) - 1)
        each.append(batch.weights[row].item() * torch.mean((output - eps) ** 2).item())
    (report,) = advance(made, images(), 1)
    assert report.loss == pytest.approx(np.mean(each), rel=1e-5)


def test_a_new_network_predicts_nothing_so_its_loss_is_that_of_the_noise() -> None:
    made = Training(NETWORK, DIFFUSION, CONFIG, CPU)
    (report,) = advance(made, images(), 1)
    assert report.loss == pytest.approx(batch_at(images(), CONFIG, SCHEDULE, 1).eps.square().mean().item(), rel=1e-3)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_eight_steps_by_hand_with_plain_adam_and_torchs_average(dropout: float) -> None:
    config, data = replace(CONFIG, grad_clip=0.7, ema_warmup=False, ema=0.8), images()
    made = training(config, dropout=dropout)
    network = copy.deepcopy(made.unet)
    adam = torch.optim.Adam(network.parameters(), betas=(0.9, 0.999), eps=1e-8, foreach=False, fused=False)
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config.ema)
    )
    average.n_averaged += 1  # or its first update would copy instead of averaging
    clipped = 0
    for step, report in enumerate(advance(made, data, 8), start=1):
        loss = loss_by_hand(network, data, config, step, "eps")
        loss.backward()
        norm = torch.stack([p.grad.square().sum() for p in network.parameters() if p.grad is not None]).sum().sqrt()
        if norm > config.grad_clip:
            clipped += 1
            for parameter in network.parameters():
                assert parameter.grad is not None
                parameter.grad *= config.grad_clip / norm
        adam.param_groups[0]["lr"] = config.lr * min(step / 4, 1)
        adam.step()
        adam.zero_grad()
        average.update_parameters(network)
        assert report.step == step
        assert report.lr == pytest.approx(adam.param_groups[0]["lr"])
        assert report.loss == pytest.approx(loss.item(), rel=1e-3)
        assert report.grad_norm == pytest.approx(norm.item(), rel=1e-3)
    assert clipped > 0  # so that clipping had a part in it
    after = made.snapshot()
    for name, parameter in network.named_parameters():
        if name.endswith("to_k.bias"):
            continue  # its gradient is 0 but for rounding, which Adam makes as large as any other
        torch.testing.assert_close(after.weights[name], parameter.data, rtol=1e-3, atol=1e-4, msg=name)
        torch.testing.assert_close(after.ema[name], average.module.get_parameter(name), rtol=1e-3, atol=1e-4, msg=name)
        moments = adam.state[parameter]
        torch.testing.assert_close(after.optimizer[f"{name}.exp_avg"], moments["exp_avg"], rtol=1e-2, atol=1e-4)


def test_the_average_follows_its_formula_from_the_first_step() -> None:
    config = replace(CONFIG, ema=0.5)  # reached at step 8, after (1 + s) / (10 + s)
    made = training(config)
    expected = {name: weight.double().clone() for name, weight in made.snapshot().weights.items()}
    for step in range(1, 13):
        advance(made, images(), 1)
        rate = min(0.5, (1 + step) / (10 + step))
        for name, weight in made.snapshot().weights.items():
            expected[name] = rate * expected[name] + (1 - rate) * weight.double()
    for name, weight in made.snapshot().ema.items():
        torch.testing.assert_close(weight.double(), expected[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("t_sampling", T_SAMPLINGS)
@pytest.mark.parametrize("parts", [2, 3, 4, 6])
def test_a_batch_computed_in_parts_is_the_same_batch(parts: int, t_sampling: str) -> None:
    config = replace(CONFIG, t_sampling=t_sampling)
    whole, divided = (training(config, Execution(accumulate=k)) for k in (1, parts))
    reports = [advance(made, images(), 1)[0] for made in (whole, divided)]
    assert reports[1].loss == pytest.approx(reports[0].loss, rel=1e-5)
    assert reports[1].grad_norm == pytest.approx(reports[0].grad_norm, rel=1e-4)
    ours, theirs = divided.snapshot().optimizer, whole.snapshot().optimizer
    for name in ours:
        if name.endswith(".exp_avg"):  # a tenth of the gradient
            scale = theirs[name].abs().max().item()
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4 * scale + 1e-9, msg=name)


def test_the_loss_goes_down_on_images_that_are_alike() -> None:
    pixels = np.full((16, 8, 8, 1), 255, np.uint8)
    pixels[:, 2:6, 2:6] = 0
    made = Training(tiny(), DIFFUSION, replace(CONFIG, batch_size=16, lr=5e-3), CPU)
    losses = [report.loss for report in advance(made, Images.from_array(pixels), 60)]
    assert np.mean(losses[:5]) > 0.8
    assert np.mean(losses[-10:]) < 0.3


# What a report says.


def test_reports_come_when_they_are_due_and_are_means_since_the_last() -> None:
    every = [report.loss for report in advance(training(), images(), 10)]
    made, seen = training(), []
    for number, report in enumerate(train(made, images(), steps=10, log_every=4, stop=lambda: False), start=1):
        assert made.step == number
        if report:
            seen.append(report)
    assert [report.step for report in seen] == [4, 8, 10]
    for report, first in zip(seen, (0, 4, 8), strict=True):
        assert report.loss == pytest.approx(np.mean(every[first : report.step]), rel=1e-5)
        assert report.lr == CONFIG.lr_at(report.step)
        assert report.images_per_second > 0
    assert all(a.seconds < b.seconds for a, b in pairwise(seen))


def test_without_a_log_there_is_still_a_last_report() -> None:
    reports = list(train(training(), images(), steps=5, log_every=0, stop=lambda: False))
    assert [report is not None for report in reports] == [False] * 4 + [True]


def test_stop_ends_it_after_the_step_under_way() -> None:
    made, stop = training(), threading.Event()
    reports = train(made, images(), steps=100, log_every=0, stop=stop.is_set)
    next(reports)
    next(reports)
    stop.set()
    assert list(reports) == []
    assert made.step == 2
    assert list(train(made, images(), steps=100, log_every=0, stop=stop.is_set)) == []


def test_whoever_leaves_early_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    reports = train(training(), images(), steps=100, log_every=1, stop=lambda: False)
    next(reports)
    assert threading.active_count() == before + 1
    reports.close()
    assert threading.active_count() == before


# Nothing but weights, averages, moments and the step makes up a run.


@pytest.mark.parametrize("_", range(3))
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_in_parts_equals_a_run_in_one_bit_for_bit(seed: int, precision: str, _: int) -> None:
    draw = random.Random(seed)
    sampling = draw.choice(list(T_SAMPLINGS))
    config = replace(CONFIG, seed=draw.randrange(2**60), precision=precision, t_sampling=sampling)
    execution = Execution(accumulate=draw.randint(1, 3), recompute=draw.random() < 0.5)
    n, steps = draw.randint(1, 20), draw.randint(5, 9)
    whole = training(config, execution)
    advance(whole, images(n), steps)
    made = training(config, execution)
    for part in np.diff([0, *sorted(draw.sample(range(1, steps), 2)), steps]):
        fresh = Training(NETWORK, DIFFUSION, config, CPU, execution)  # from other weights, which restore replaces
        if made.step:
            fresh.restore(kept(made))
            made = fresh
        advance(made, images(n), int(part))
    assert differences(kept(made), kept(whole)) == []


def test_losses_since_the_last_report_survive_too() -> None:
    def losses(interrupted: int) -> list[tuple[int, float]]:
        made, seen, event = training(), [], threading.Event()
        for report in train(made, images(), steps=9, log_every=3, stop=event.is_set):
            if report:
                seen.append((report.step, report.loss))
            if made.step == interrupted:
                fresh = Training(NETWORK, DIFFUSION, CONFIG, CPU)
                fresh.restore(kept(made))
                rest = train(fresh, images(), steps=9, log_every=3, stop=event.is_set)
                return seen + [(report.step, report.loss) for report in rest if report]
        return seen

    assert [step for step, _ in losses(0)] == [3, 6, 9]
    for interrupted in (1, 3, 5, 8):
        assert losses(interrupted) == losses(0)


def test_a_snapshot_before_the_first_step_is_one_to_go_on_from() -> None:
    start = kept(training())
    assert start.step == 0
    fresh, whole = Training(NETWORK, DIFFUSION, CONFIG, CPU), training()
    fresh.restore(start)
    assert differences(kept(fresh), start) == []
    for made in (fresh, whole):
        advance(made, images(), 3)
    assert differences(kept(fresh), kept(whole)) == []


def test_the_global_generators_neither_matter_nor_change() -> None:
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
        made = Training(NETWORK, DIFFUSION, CONFIG, CPU)
        advance(made, images(), 4)
        after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
        assert torch.equal(before[0], after[0])
        assert before[1:] == after[1:]
        results.append(kept(made))
    assert differences(*results) == []


def test_two_trainings_side_by_side_do_not_disturb_each_other() -> None:
    alone = training()
    advance(alone, images(), 5)
    together, other = training(), training(replace(CONFIG, seed=9))
    for _ in range(5):
        advance(together, images(), 1)
        advance(other, images(4), 1)
    assert differences(kept(together), kept(alone)) == []
    assert differences(kept(other), kept(alone)) != []


@pytest.mark.parametrize("change", [{"seed": 4}, {"flip": False}, {"lr": 1e-3}, {"ema": 0.1}, {"grad_clip": 0.1}])
def test_every_setting_has_its_effect(change: dict[str, Any]) -> None:
    plain, changed = training(), training(replace(CONFIG, **change))
    for made in (plain, changed):
        advance(made, images(), 3)
    assert differences(kept(changed), kept(plain)) != []


# A loss that is not finite.


def spoil_a_weight(made: Training, value: float) -> None:
    with torch.no_grad():
        made.unet.conv_in.weight[0, 0, 0, 0] = value


def spoil_a_gradient(made: Training, value: float) -> None:
    made.unet.conv_in.weight.register_hook(lambda gradient: torch.full_like(gradient, value))


@pytest.mark.parametrize("spoil", [spoil_a_weight, spoil_a_gradient])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_step_that_is_not_finite_is_not_taken(spoil: Callable[[Training, float], None], value: float) -> None:
    made = training()
    advance(made, images(), 3)
    spoil(made, value)
    before = kept(made)
    adam_steps = [state["step"].item() for state in made.optimizer.state.values()]
    with pytest.raises(DivergedError, match=rf"step 4: .*{CONFIG.lr:g}") as caught:
        advance(made, images(), 5)
    assert caught.value.exit_code == 5
    after = kept(made)
    for part in ("weights", "optimizer"):
        for name, tensor in getattr(before, part).items():
            assert torch.equal(getattr(after, part)[name].view(torch.int32), tensor.view(torch.int32)), name
    assert [state["step"].item() for state in made.optimizer.state.values()] == adam_steps
    with pytest.raises(DivergedError, match="step 4"):  # for good, and the first such step is named
        made.advance(batch_at(images(), CONFIG, SCHEDULE, 5))


def test_where_the_host_does_not_wait_a_void_step_leaves_all_as_before_it() -> None:
    made, waiting = training(), training()
    made._knows_at_once = False  # as on a GPU
    for each in (made, waiting):
        advance(each, images(), 3)
    for name, weight in waiting.snapshot().ema.items():  # the average by another formula, and rounding
        torch.testing.assert_close(made.snapshot().ema[name], weight, rtol=1e-6, atol=1e-7)
    spoil_a_gradient(made, float("nan"))
    before = kept(made)
    for step in (4, 5, 6):  # nobody has looked yet
        made.advance(batch_at(images(), CONFIG, SCHEDULE, step))
    for _ in range(2):
        with pytest.raises(DivergedError, match="step 4"):
            made.check()
    assert differences(kept(made), before) == []
    assert [state["step"].item() for state in made.optimizer.state.values()] == [3.0] * len(made.parameters)
    assert made.is_finite()
    spoil_a_weight(made, float("inf"))
    assert not made.is_finite()


def test_an_update_that_was_broken_off_cannot_be_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    made = training()
    advance(made, images(), 2)
    monkeypatch.setattr(torch, "_foreach_lerp_", lambda *_: 1 / 0)  # after the optimizer's step
    with pytest.raises(ZeroDivisionError):
        advance(made, images(), 1)
    monkeypatch.undo()
    assert not made.whole
    with pytest.raises(RuntimeError, match="step 3"):
        made.snapshot()


@pytest.mark.parametrize("found", [0.0, 1.0])
def test_found_inf_and_grad_scale_of_the_fused_adam_are_heeded(found: float) -> None:
    """They are no part of PyTorch's documented interface; its GradScaler sets them too."""
    parameter, twin = (torch.nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
    adam, plain = (torch.optim.Adam([each], 0.1, fused=True) for each in (parameter, twin))
    adam.grad_scale = None  # type: ignore[attr-defined]
    adam.found_inf = torch.zeros(())  # type: ignore[attr-defined]
    for step in range(3):
        for each in (parameter, twin):
            each.grad = torch.tensor([0.5, 3.0 + step])
        adam.found_inf.fill_(found if step == 2 else 0.0)  # type: ignore[attr-defined]
        adam.step()
        if step < 2 or not found:
            plain.step()
    assert torch.equal(parameter, twin)
    for key, value in plain.state[twin].items():
        assert torch.equal(adam.state[parameter][key], value), key


def test_a_learning_rate_far_too_high_ends_in_the_error_and_finite_weights() -> None:
    made = training(replace(CONFIG, lr=1e3, warmup=0))
    with pytest.raises(DivergedError):
        advance(made, images(), 300)
    assert all(torch.isfinite(weight).all() for weight in made.snapshot().weights.values())
