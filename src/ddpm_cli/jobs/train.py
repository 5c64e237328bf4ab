"""What ``ddpm train`` does once its options are known: look at the images, say what will be done, do it, show it."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..checkpoint import StoredModel, newest
from ..config import T_SAMPLINGS
from ..core.allocator import keep_freed_memory
from ..core.distributed import PEER_TIMEOUT, World, init_world, local_device, under_torchrun
from ..core.pixels import COLOURS
from ..core.signals import SIGNALS
from ..data import Images
from ..network.denoiser import choose_device
from ..training.compiling import Compiled, keep_compiled
from ..training.estimate import Cost, estimate
from ..training.loop import Execution
from ..training.memory import fit
from ..training.plan import Plan, TrainOptions, check, plan
from ..training.run import Progress, check_folder, data_digest, run
from ..training.settings import check_same
from ..ui.console import Screen, as_json, duration, plural, size
from ..ui.results import put_text
from .images import open_images
from .models import find_model


@dataclass(frozen=True)
class Job:
    """One call of ``ddpm train``, as the user gave it."""

    images: str
    folder: Path
    size: tuple[int, int] | None
    channels: int | None
    start: str | None
    device: str
    options: TrainOptions
    peer_timeout: float = PEER_TIMEOUT

    def run(self, screen: Screen, *, dry_run: bool, as_json: bool) -> int:
        """Do it; returns the exit code: 0, or 128 + the signal that stopped it after a clean save."""
        began = time.monotonic()
        keep_freed_memory()
        if self.options.compile:
            keep_compiled()
        device = choose_device(local_device(self.device))
        start = find_model(self.start, screen) if self.start else None
        check(self.options, start)
        with init_world(str(device), self.peer_timeout) as world:
            return self._run(screen, device, start, world, began, dry_run=dry_run, as_json=as_json)

    def _run(
        self,
        screen: Screen,
        device: torch.device,
        start: StoredModel | None,
        world: World,
        began: float,
        *,
        dry_run: bool,
        as_json: bool,
    ) -> int:
        images = self._open(screen, start, device.type, world)
        what = plan(self.options, self.images, images.shape, images.digest, start, device)
        check_same(_identity(what, device), world)
        with world.together():
            if world.rank == 0:
                check_folder(self.folder, what.config)
            execution = fit(what, device, world)
        with world.together():
            if world.rank == 0:
                price = estimate(what, device, execution, paper=dry_run)
                self._announce(screen, images, what, price, str(device), execution)
                self._warn(screen, what, start)
        if dry_run:
            if as_json and world.rank == 0:
                _print_json(_as_dict(what, price, execution))
            return 0
        if what.compile:
            screen.say("compiling the network first, which takes a minute or more, and less the next time")
        cadence = what.cadence
        if cadence.max_time is not None:  # since the command was given
            cadence = replace(cadence, max_time=max(cadence.max_time - (time.monotonic() - began), 0))
        with stopping(alone=world.size == 1 and not under_torchrun()) as interruption:
            progress = run(
                self.folder,
                what.config,
                cadence,
                images,
                device,
                start,
                interruption.event,
                execution,
            )
            last = self._follow(screen, progress, what)
        if as_json and world.rank == 0:
            _print_json(
                {"step": last.step, "checkpoint": str(last.checkpoint or newest(self.folder)), "run": str(self.folder)}
            )
        return self._conclude(screen, last, what, interruption.signal)

    def _open(self, screen: Screen, start: StoredModel | None, device: str, world: World) -> Images:
        size, channels = self.size, self.channels
        if start is not None:
            size = size or start.unet.size
            channels = channels or start.unet.in_channels
        limit = 32 if device == "cpu" else 64
        wanted = ""
        with world.together():
            if world.rank == 0:  # others may not see the folder
                wanted = data_digest(self.folder) or ""
        wanted = world.all_gather(wanted.encode())[0].decode()
        return open_images(self.images, screen, size=size, channels=channels, limit=limit, wanted=wanted, world=world)

    def _announce(
        self, screen: Screen, images: Images, what: Plan, price: Cost, device: str, execution: Execution
    ) -> None:
        n, height, width, channels = images.shape
        config, cadence = what.config, what.cadence
        name = f"fine-tuned from {self.start}" if self.start else what.preset
        widths = ", ".join(map(str, config.unet.block_out_channels))
        batch, d = config.train.batch_size, config.diffusion
        rows = [
            ("images", f"{n:,} of {height}x{width}, {COLOURS[channels]}, from {self.images}"),
            ("network", f"{name}: channels {widths}; {price.parameters:,} parameters"),
            ("training", f"L_{config.train.loss} of {d.predict}, {d.variance}, {d.schedule}, T = {d.timesteps}"),
            ("", f"batches of {batch}, learning rate {config.train.lr:g}, t {T_SAMPLINGS[config.train.t_sampling]}"),
            ("device", f"{device}, {config.train.precision}{_shared(execution, batch)}"),
            ("memory", f"about {size(price.memory)}{_divided(execution)}"),
            (
                "time",
                f"about {duration(price.total_seconds)} for {plural(cadence.steps, 'step')} of {batch} images",
            ),
        ]
        if cadence.max_time is not None:
            rows.append(("limit", f"{duration(cadence.max_time)} (--max-time)"))
        if price.paper and what.preset != price.paper.preset:
            rows.append(
                ("paper", f"its {price.paper.preset} run would take about {duration(price.paper.seconds)} here")
            )
        rows.append(("output", str(self.folder.absolute())))
        screen.table(rows)
        if n < batch:
            screen.say(f"fewer images than a batch has places ({batch}): each step shows images more than once")

    def _warn(self, screen: Screen, what: Plan, start: StoredModel | None) -> None:
        d = what.config.diffusion
        if d.predict == "mu" and what.config.train.loss != "vlb":
            screen.warn("the paper found the unweighted error of mu unstable (Table 2); --loss vlb weights it")
        if start is not None:
            for name in ("predict", "schedule", "timesteps"):
                knows, asked = getattr(start.diffusion, name), getattr(d, name)
                if knows != asked:
                    screen.warn(
                        f"--{name} {asked}: {start.source} was trained with {knows}, so most of what it knows is lost"
                    )

    def _follow(self, screen: Screen, progress: Iterator[Progress], what: Plan) -> Progress:
        first = last = next(progress)
        if first.step:
            screen.say(f"going on from step {first.step:,}")
        if first.compiled:
            screen.say(_account(first.compiled))
        checkpoint = None
        for last in screen.progress(
            progress,
            what.cadence.steps,
            "training",
            start=first.step,
            amount=lambda event: int(event.advanced),
            note=_note,
        ):
            checkpoint = last.checkpoint or checkpoint
            if last.preview:
                screen.detail(f"step {last.step:,}: preview {last.preview}")
            if last.checkpoint:
                screen.detail(f"saved {last.checkpoint}")
        return Progress(last.step, checkpoint=checkpoint)

    def _conclude(self, screen: Screen, last: Progress, what: Plan, received: int | None) -> int:
        steps = what.cadence.steps
        if last.step > steps:
            screen.say(f"nothing to do: the run is at step {last.step:,}, beyond --steps {steps}")
        elif last.step == steps:
            screen.say(f"done: {plural(last.step, 'step')}; more with --steps {2 * last.step}")
        else:
            screen.say(f"stopped at step {last.step:,} of {steps:,}, saved; give the same command again to go on")
        screen.say(f"ddpm sample -m {shlex.quote(str(self.folder))} -n 64 -o grid.png")
        return 0 if received is None else 128 + received


@dataclass
class Interruption:
    """Which signal came, if any, and the event that it sets."""

    event: threading.Event = field(default_factory=threading.Event)
    signal: int | None = None


@contextlib.contextmanager
def stopping(*, alone: bool = True) -> Iterator[Interruption]:
    """Within, the first SIGINT, SIGTERM or SIGHUP asks to save and stop; the second ends the process at once.

    Not so where torchrun is above it: what a scheduler sends to all its processes comes once more from torchrun, which
    ends those itself that take too long.

    A signal that is ignored from outside, as ``nohup`` does with SIGHUP, stays ignored.
    """
    interruption = Interruption()

    def handle(number: int, _: Any) -> None:
        if interruption.signal is not None:
            if alone:
                os._exit(128 + number)
            return
        interruption.signal = number
        interruption.event.set()

    heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heeded}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _note(event: Progress) -> str | None:
    if event.report is None:
        return None
    return f"loss {event.report.loss:.4f}, {event.report.images_per_second:.0f} images/s"


def _identity(what: Plan, device: torch.device) -> dict[str, Any]:
    """What all processes of a run must have in common."""
    given = what.config.to_json() | {"cadence": asdict(what.cadence), "compile": what.compile}
    return given | {"device": device.type, "ddpm": __version__, "torch": torch.__version__}


def _shared(execution: Execution, batch: int) -> str:
    size = execution.world.size
    if size == 1:
        return ""
    each = f"{batch // size}" if batch % size == 0 else f"{batch // size} or {batch // size + 1}"
    return f"; {size} processes, {each} images of a batch each"


def _divided(execution: Execution) -> str:
    parts = f"; batches in {execution.accumulate} parts" if execution.accumulate > 1 else ""
    return parts + ("; activations are computed twice to save memory" if execution.recompute else "")


def _account(compiled: Compiled) -> str:
    times = f"forward and backward take {compiled.after:.3g} s instead of {compiled.before:.3g}"
    if not compiled.right:
        return (
            f"not used: compiling took {duration(compiled.seconds)}, and the compiled network's gradients are off by "
            f"{compiled.error:.1%}, where rounding explains {compiled.allowed:.0%}"
        )
    if compiled.kept:
        return f"compiled in {duration(compiled.seconds)}: {times}, which pays from {compiled.steps_to_earn:,} steps on"
    return f"not used: compiling took {duration(compiled.seconds)}, and {times}"


def _as_dict(what: Plan, price: Cost, execution: Execution) -> dict[str, Any]:
    config = what.config.to_json() | {"execution": execution.to_json()}
    return {"preset": what.preset, **config, "cadence": asdict(what.cadence), "cost": asdict(price)}


def _print_json(data: dict[str, Any]) -> None:
    put_text(as_json(data))
