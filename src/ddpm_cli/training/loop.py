"""Algorithm 1: the training loop, as a generator of reports.

What step s does is a pure function of s and the configuration: which images, which flips, t, eps, dropout, learning
rate and EMA decay. A run is therefore its weights, their EMA, Adam's moments and the number of steps done, and a killed
run resumes as if it had never stopped. Each of several processes computes its rows of every batch, and all have the
same weights after each step.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from ..checkpoint import MOMENTS, Snapshot
from ..config import DiffusionConfig, TrainConfig, UNetConfig
from ..core.distributed import ALONE, World, failed_elsewhere
from ..core.pixels import to_float
from ..data import Images
from ..diffusion.bound import OBJECTIVES
from ..diffusion.process import Diffusion
from ..errors import DivergedError
from ..network.denoiser import NetworkDenoiser, Precision
from ..network.dropout import draw_masks
from ..network.unet import UNet, build, init_weights
from .batch import HostBatch, batch_at

ADAM_BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8


@dataclass(frozen=True)
class Execution:
    """How a run is computed. It decides nothing but how the sums of its arithmetic are rounded.

    Args:
        world: the processes that share each batch.
        accumulate: gradient accumulation: the number of micro-batches into which each process divides its rows of a
            batch, to save memory.
        recompute: activation checkpointing: activations are computed twice instead of kept, which takes a third longer.
        compile: have PyTorch compile the network, if that makes it faster.
    """

    world: World = ALONE
    accumulate: int = 1
    recompute: bool = False
    compile: bool = False

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        parts = {"accumulate": self.accumulate, "recompute": self.recompute, "compile": self.compile}
        return {"processes": self.world.size, **parts}


@dataclass(frozen=True)
class StepReport:
    """What is known after an optimizer step.

    Args:
        step: 1, 2, ...
        loss: that which is minimised, the mean since the last report.
        lr: learning rate of this step.
        grad_norm: 2-norm of the gradient at this step, before clipping.
        images_per_second: since the last report.
        seconds: spent on training since this process began to.
    """

    step: int
    loss: float
    lr: float
    grad_norm: float
    images_per_second: float
    seconds: float


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """The seconds of a forward and a backward pass, and the gradient of each parameter."""

    seconds: float
    gradients: list[torch.Tensor]


HERE = Execution()


class Training:
    """A network in training: weights, their EMA, Adam's moments, and the number of steps they have seen.

    Each of several processes needs at least one image of each batch, which `memory.fit` ensures.
    """

    def __init__(
        self,
        unet: UNetConfig,
        diffusion: DiffusionConfig,
        config: TrainConfig,
        device: torch.device,
        execution: Execution = HERE,
    ) -> None:
        self.config = config
        self.execution = execution
        self.diffusion_config = diffusion
        self.diffusion = Diffusion.from_config(diffusion)
        self.device = device
        self.step = 0
        self.unet = build(unet, device)
        init_weights(self.unet, config.seed)
        self.ema_unet = copy.deepcopy(self.unet).eval().requires_grad_(False)
        self.unet.train()
        if execution.recompute:
            self.unet.recompute_activations()
        self._network = self._shared()
        self._learner = NetworkDenoiser(self._network, self._precision)
        self.parameters: list[torch.Tensor] = list(self.unet.parameters())
        self._ema_parameters: list[torch.Tensor] = list(self.ema_unet.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, config.lr, ADAM_BETAS, ADAM_EPS, fused=True)
        # Whether the tensors are those of one step; not so within an update, nor after one that was broken off.
        self.whole = True
        # Once found_inf is set, every later update is void: what a non-finite step would have destroyed stays as it
        # was, and the host need not wait for a GPU at each step to know. A CPU knows at once.
        self._knows_at_once = device.type == "cpu"
        self._found_inf = torch.zeros((), device=device)
        self._bad_step = torch.zeros((), device=device)
        self._loss_sum = torch.zeros((), device=device)
        self._loss_count = 0
        self._grad_norm = torch.zeros((), device=device)
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.optimizer.found_inf = self._found_inf  # type: ignore[attr-defined]

    @property
    def denoiser(self) -> NetworkDenoiser:
        """The EMA network, which samples are made from."""
        return NetworkDenoiser(self.ema_unet, self._precision)

    @property
    def _precision(self) -> Precision:
        return "bf16" if self.config.precision == "bf16" else "fp32"

    def start_from(self, weights: dict[str, torch.Tensor]) -> None:
        """Begin with given weights instead of random ones. Of several processes, only rank 0; see `synchronize`."""
        self.unet.load_state_dict(weights)
        self.ema_unet.load_state_dict(weights)

    def restore(self, snapshot: Snapshot) -> None:
        """Resume from a snapshot. Of several processes, only rank 0; see `synchronize`."""
        self.step = snapshot.step
        self.unet.load_state_dict(snapshot.weights)
        self.ema_unet.load_state_dict(snapshot.ema)
        for name, parameter in self.unet.named_parameters():
            state = self.optimizer.state[parameter]
            state["step"] = torch.tensor(float(self.step), device=self.device)
            for moment in MOMENTS:
                state[moment] = torch.empty_like(parameter).copy_(snapshot.optimizer[f"{name}.{moment}"])
        self._loss_sum.fill_(snapshot.loss_sum)
        self._loss_count = snapshot.loss_count

    def synchronize(self) -> None:
        """Broadcast the state of rank 0, which has restored a snapshot or started from weights, to all processes.

        Raises:
            PeerError: another process has ended.
        """
        world = self.execution.world
        self.step, self._loss_count = world.all_reduce(
            np.array([self.step, self._loss_count]) * (world.rank == 0)
        ).tolist()
        tensors = [*self.parameters, *self._ema_parameters, self._loss_sum]
        if self.step:
            for parameter in self.parameters:
                state = self.optimizer.state[parameter]
                state["step"] = torch.tensor(float(self.step), device=self.device)
                tensors += [state.setdefault(moment, torch.zeros_like(parameter)) for moment in MOMENTS]
        with torch.no_grad():
            world.broadcast(tensors)

    def snapshot(self) -> Snapshot:
        """Everything that `restore` needs and a checkpoint holds. The tensors are those in training, not copies.

        Raises:
            RuntimeError: the last update was broken off, so the tensors are not those of one step.
        """
        if not self.whole:
            raise RuntimeError(f"step {self.step + 1} was broken off, so there is nothing to be saved")
        optimizer = {
            f"{name}.{moment}": self.optimizer.state[parameter].get(moment, torch.zeros_like(parameter))
            for name, parameter in self.unet.named_parameters()
            for moment in MOMENTS
        }
        return Snapshot(
            step=self.step,
            unet=self.unet.config,
            diffusion=self.diffusion_config,
            ema=self.ema_unet.state_dict(),
            weights=self.unet.state_dict(),
            optimizer=optimizer,
            loss_sum=self._loss_sum.item(),
            loss_count=self._loss_count,
        )

    def advance(self, batch: HostBatch) -> None:
        """One optimizer step of Algorithm 1. Nothing here waits for a GPU.

        Raises:
            DivergedError: the loss or a gradient is not finite, as a CPU knows at once. Nothing has changed then.
            PeerError: another process has ended. Nothing has changed then.
        """
        step, config = self.step + 1, self.config
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr_at(step)
        try:
            self._update(self._backward(batch, step), step)
        finally:
            self.optimizer.zero_grad(set_to_none=True)

    def rehearse(self, batch: HostBatch) -> Rehearsal:
        """The forward and backward passes of the next step, which change nothing."""
        began = time.perf_counter()
        try:
            self._backward(batch, self.step + 1).item()  # waits for a GPU
            seconds = time.perf_counter() - began
            return Rehearsal(seconds, [p.grad.clone() for p in self.parameters if p.grad is not None])
        finally:
            self.optimizer.zero_grad(set_to_none=True)

    def check(self) -> None:
        """Stop if a loss or gradient was not finite. On a GPU this waits for the steps that are under way.

        Raises:
            DivergedError: names the first such step. The training is as it was before it, and can be saved.
        """
        if self._found_inf.item():
            step = int(self._bad_step.item())
            self._loss_count -= self.step - (step - 1)  # the void steps since, of which the host did not know
            self.step = step - 1
            raise DivergedError(
                f"step {step}: the loss or its gradient is not finite, so the weights were not updated; "
                f"try a lower `lr` (it was {self.config.lr_at(step):g}) or `precision=fp32`"
            )

    def is_finite(self) -> bool:
        """Whether all weights, averages and moments are finite numbers. On a GPU this waits for them."""
        tensors = [*self.parameters, *self._ema_parameters]
        tensors += [state[moment] for state in self.optimizer.state.values() for moment in MOMENTS if moment in state]
        return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)

    def report(self, seconds: float, images_per_second: float) -> StepReport:
        """The means since the last report, which is a point where the host waits for the device."""
        self.check()
        loss = self._loss_sum.item() / max(self._loss_count, 1)
        self._loss_sum.zero_()
        self._loss_count = 0
        lr = self.config.lr_at(self.step)
        return StepReport(self.step, loss, lr, self._grad_norm.item(), images_per_second, seconds)

    def _shared(self) -> UNet:
        """The network; of several processes, one that adds up their gradients during the backward pass."""
        world = self.execution.world
        if world.size == 1:
            return self.unet
        with world.peer_errors():
            shared = DistributedDataParallel(self.unet, gradient_as_bucket_view=True)
        return cast(UNet, shared)

    def _backward(self, batch: HostBatch, step: int) -> torch.Tensor:
        """The gradient of the mean loss over the whole batch, one micro-batch after the other; returns that mean."""
        config, world = self.config, self.execution.world
        dtype = torch.bfloat16 if self._precision == "bf16" else torch.float32
        total = torch.zeros((), device=self.device)
        size = len(batch.t)
        parts = np.array_split(np.arange(size), min(self.execution.accumulate, size))
        for number, part in enumerate(parts, start=1):
            rows = slice(part[0], part[-1] + 1)
            x_0 = to_float(batch.images[rows].to(self.device, non_blocking=True)).permute(0, 3, 1, 2)
            eps, weights = (each[rows].to(self.device, non_blocking=True) for each in (batch.eps, batch.weights))
            names = [(step, batch.first + row) for row in part.tolist()]
            shapes = self.unet.dropout_shapes((x_0.shape[2], x_0.shape[3]))
            masks = draw_masks(shapes, self.unet.config.dropout, config.seed, names, self.device, dtype)
            denoiser = partial(self._learner, masks=masks)
            with world.peer_errors(), contextlib.nullcontext() if number == len(parts) else self._apart():
                losses = OBJECTIVES[config.loss](self.diffusion, denoiser, x_0, batch.t[rows], eps)
                loss = (losses * weights).sum() / config.batch_size
                # Gradients are averaged over the processes, where their sum is meant.
                (loss * world.size).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        world.all_reduce_(total)
        return total

    def _apart(self) -> contextlib.AbstractContextManager[None]:
        """Within, gradients are not yet added up over the processes."""
        if isinstance(self._network, DistributedDataParallel):
            return self._network.no_sync()
        return contextlib.nullcontext()

    @torch.no_grad()
    def _update(self, loss: torch.Tensor, step: int) -> None:
        """Clip the gradients, take Adam's step unless something is not finite, and update the EMA."""
        config = self.config
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        self._grad_norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
        bad = ~torch.isfinite(self._grad_norm + loss)
        self._bad_step.copy_(torch.where(bad & (self._found_inf == 0), float(step), self._bad_step))
        self._found_inf.copy_(torch.maximum(self._found_inf, bad.float()))
        if self._knows_at_once:
            self.check()
        if not self._knows_at_once or self._grad_norm > config.grad_clip:  # a GPU would have to be waited for
            torch.nn.utils.clip_grads_with_norm_(self.parameters, config.grad_clip, self._grad_norm, foreach=True)
        self.whole = False
        self.optimizer.step()
        if self._knows_at_once:
            torch._foreach_lerp_(self._ema_parameters, self.parameters, 1 - config.ema_at(step))
            self._loss_sum += loss
        else:
            # The same, or nothing if the step is void, which a rate that the host knows could not say.
            good = 1 - self._found_inf
            change = torch._foreach_sub(self.parameters, self._ema_parameters)
            torch._foreach_mul_(change, good * (1 - config.ema_at(step)))
            torch._foreach_add_(self._ema_parameters, change)
            self._loss_sum += torch.where(good > 0, loss, 0.0)
        self._loss_count += 1
        self.step = step
        self.whole = True


def train(
    training: Training, images: Images, *, steps: int, log_every: int = 1, stop: Callable[[], bool] = lambda: False
) -> Iterator[StepReport | None]:
    """Train to step ``steps``, or until ``stop`` is true in any process; it is asked before each step.

    Yields:
        after every step a report if it is a multiple of ``log_every`` or the last, else None. The consumer may save,
        sample and leave between any two steps.

    Raises:
        DivergedError: the loss or a gradient is not finite.
        InputError: images cannot be read.
        PeerError: another process has failed, or ended.
    """
    began = last_time = time.monotonic()
    last_step = training.step
    config, world, schedule = training.config, training.execution.world, training.diffusion.schedule
    pin = training.device.type == "cuda"
    rows = world.shard(config.batch_size)
    with ThreadPoolExecutor(1, "ddpm-batches") as pool:
        ahead: Future[HostBatch] = pool.submit(batch_at, images, config, schedule, training.step + 1, rows, pin=pin)
        while training.step < steps:
            problem = ahead.exception()
            stopped, failed = world.any(stop(), problem is not None)
            if problem is not None:
                raise problem
            if failed:
                raise failed_elsewhere()
            if stopped:
                return
            batch = ahead.result()
            ahead = pool.submit(batch_at, images, config, schedule, training.step + 2, rows, pin=pin)
            training.advance(batch)
            if not (training.step == steps or (log_every and training.step % log_every == 0)):
                yield None
                continue
            if pin:
                torch.cuda.synchronize(training.device)
            now = time.monotonic()
            speed = (training.step - last_step) * config.batch_size / max(now - last_time, 1e-9)
            last_step, last_time = training.step, now
            yield training.report(now - began, speed)
