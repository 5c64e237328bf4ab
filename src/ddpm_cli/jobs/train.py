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
from ..core import threads
from ..core.allocator import keep_freed_memory
from ..core.distributed import PEER_TIMEOUT, World, init_world, local_device, under_torchrun
from ..core.files import printable
from ..core.pixels import COLOURS
from ..core.signals import SIGNALS
from ..data import Images
from ..errors import ArgumentError
from ..network.denoiser import choose_device
from ..training.compiling import Compiled, keep_compiled
from ..training.estimate import Cost, estimate
from ..training.loop import Execution
from ..training.memory import fit
from ..training.plan import Plan, TrainOptions, check, plan, resumed
from ..training.record import (
    Origin,
    RunRecord,
    check_same,
    other_images,
    read_record,
    record_from_json,
    record_to_json,
)
from ..training.run import Progress, run
from ..ui.console import Screen, as_json, duration, plural, size
from ..ui.results import put_text
from .images import load_images
from .models import find_model


@dataclass(frozen=True)
class Job:
    """One call of ``ddpm train``, as the user gave it; what is None was not given.

    Args:
        images: their name; a run that has begun knows its own.
        words: of the command line after ``ddpm train``, kept with the run that it begins.
        peer_timeout: seconds to wait for processes that hang.
    """

    images: str | None
    folder: Path
    size: tuple[int, int] | None
    channels: int | None
    start: str | None
    device: str
    options: TrainOptions
    words: tuple[str, ...] = ()
    peer_timeout: float = PEER_TIMEOUT

    def run(self, screen: Screen, *, dry_run: bool, as_json: bool) -> int:
        """Do it; returns the exit code: 0, or 128 + the signal that stopped it after a clean save."""
        began = time.monotonic()
        keep_freed_memory()
        if self.options.compile:
            keep_compiled()
        device = choose_device(local_device(self.device))
        with init_world(str(device), self.peer_timeout) as world:
            record = self._record(world)
            start = self._start(screen, record)
            check(self.options, start)
            what = self._resumed(record) if record else None
            images = self._open(screen, record, start, device.type, world)
            if what is None:
                what = plan(self.options, images.shape, images.digest, start, device, self._origin())
            elif images.digest != what.config.digest:
                raise ArgumentError(other_images(self.folder))
            return self._run(screen, device, start, world, images, what, began, dry_run=dry_run, as_json=as_json)

    def _record(self, world: World) -> RunRecord | None:
        """The run to resume; None for a new one. Other processes than rank 0 may not see its folder, and are told."""
        record = None
        with world.together():
            if world.rank == 0:
                record = read_record(self.folder)
                if record and not record.has_checkpoints and self.images is not None:
                    record = None  # nothing was kept that others would resume from
                if record is None and self.images is None:
                    raise ArgumentError(
                        f"{printable(self.folder)} holds no run to resume; name the images to train on, or the folder "
                        "of a run"
                    )
        return record_from_json(world.all_gather(record_to_json(record))[0])

    def _start(self, screen: Screen, record: RunRecord | None) -> StoredModel | None:
        """The model to fine-tune; a run that has checkpoints needs it no more."""
        if record is not None and record.has_checkpoints:
            return None
        name = self.start if record is None else record.config.start
        return find_model(name, screen) if name else None

    def _open(
        self, screen: Screen, record: RunRecord | None, start: StoredModel | None, device: str, world: World
    ) -> Images:
        size, channels, wanted = self.size, self.channels, ""
        if record is not None:
            height, width, known = record.config.shape[1:]
            size, channels, wanted = size or (height, width), channels or known, record.config.digest
        elif start is not None:
            size, channels = size or start.unet.size, channels or start.unet.in_channels
        limit = 32 if device == "cpu" else 64
        return load_images(
            self._source(record), screen, size=size, channels=channels, limit=limit, wanted=wanted, world=world
        )

    def _source(self, record: RunRecord | None) -> str:
        if self.images is not None:
            return self.images
        known = record.config.origin.images if record else None
        if known is None:
            raise ArgumentError(
                f"the run in {printable(self.folder)} does not say where its images are; name them to resume it"
            )
        return known

    def _resumed(self, record: RunRecord) -> Plan:
        """The run to resume, which this command is to agree with; what an earlier release did not note is noted now."""
        given = self.size, self.channels, self.start
        what = resumed(self.options, record, self.folder, *given)
        if what.config.origin.images is not None or self.images is None:
            return what
        return replace(what, config=replace(what.config, origin=replace(self._origin(), preset=what.preset)))

    def _origin(self) -> Origin:
        """Where the run that this command begins comes from."""
        name = self.images or ""
        return Origin(self.words, name if name.startswith("builtin:") else str(Path(name).absolute()))

    def _run(
        self,
        screen: Screen,
        device: torch.device,
        start: StoredModel | None,
        world: World,
        images: Images,
        what: Plan,
        began: float,
        *,
        dry_run: bool,
        as_json: bool,
    ) -> int:
        check_same(_identity(what, device), world)
        _keep_threads(screen, what, device)
        with world.together():
            execution = fit(what, device, world)
        with world.together():
            if world.rank == 0:
                price = estimate(what, device, execution)
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

    def _announce(
        self, screen: Screen, images: Images, what: Plan, price: Cost, device: str, execution: Execution
    ) -> None:
        n, height, width, channels = images.shape
        config, cadence = what.config, what.cadence
        name = f"fine-tuned from {config.start}" if config.start else what.preset or "as before"
        widths = ", ".join(map(str, config.unet.block_out_channels))
        batch, d = config.train.batch_size, config.diffusion
        rows = [
            ("images", f"{n:,} of {height}x{width}, {COLOURS[channels]}, from {self.images or config.origin.images}"),
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
            screen.say(f"resuming from step {first.step:,}")
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
            screen.say(f"stopped at step {last.step:,} of {steps:,}, saved; run the same command again to resume")
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


def _keep_threads(screen: Screen, what: Plan, device: torch.device) -> None:
    """Compute with as many threads as the run did before: other numbers round its sums in other ways."""
    before = what.before.threads if what.before else None
    if device.type != "cpu" or before is None or before == torch.get_num_threads():
        return
    if before <= threads.available_cores() and not threads.set_by_user():
        torch.set_num_threads(before)
    else:
        screen.say(
            f"this run was computed with {plural(before, 'thread')} so far, and now with {torch.get_num_threads()}: "
            "its sums are rounded differently from here on"
        )


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
    parts = f"; gradient accumulation over {execution.accumulate} micro-batches" if execution.accumulate > 1 else ""
    return parts + ("; activation checkpointing" if execution.recompute else "")


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
