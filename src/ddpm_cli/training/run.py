"""Training in a run folder: what is written when, and how the same command resumes."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import Provenance, Saver, StoredModel, newest, read_provenance, read_snapshot, run_lock
from ..config import UNetConfig
from ..core.files import check_space, disk_errors, printable, write_file
from ..core.pixels import encode_png, grid, grid_shape, sheet_scale, to_image
from ..data import Images
from ..diffusion.process import Diffusion
from ..errors import ArgumentError, DdpmError, DivergedError, PeerError
from ..network.denoiser import NetworkDenoiser
from ..sampling import generate
from ..sampling.settings import Sampling
from .batch import batch_at
from .compiling import Compiled, compile_if_faster
from .loop import HERE, Execution, StepReport, Training, train
from .record import CONFIG, Cadence, RunConfig, check_same_run, read_record

PREVIEWS = 16
PREVIEW_SAMPLING = Sampling(sampler="ddim")


@dataclass(frozen=True)
class Progress:
    """What happened.

    Args:
        step: where training is.
        advanced: whether a step was done; not so at the start, and for the checkpoint at the end.
        report: at the steps that are logged.
        checkpoint: the folder of the last one that was saved since the event before, perhaps of an earlier step, as
            training continues while it is written; ``preview`` is the picture, where one was made.
        compiled: what compiling the network came to, at the start of a run that was to do that.
    """

    step: int
    advanced: bool = True
    report: StepReport | None = None
    checkpoint: Path | None = None
    preview: Path | None = None
    compiled: Compiled | None = None


def run(
    folder: Path,
    config: RunConfig,
    cadence: Cadence,
    images: Images,
    device: torch.device,
    start: StoredModel | None,
    stop: threading.Event,
    execution: Execution = HERE,
) -> Iterator[Progress]:
    """Train in a run folder, from its newest checkpoint if it has one, and leave a checkpoint of the last step.

    Of several processes each does the same, but for the folder: only rank 0 reads it and writes to it.

    Args:
        start: the model that a new run starts from; None for random weights.
        stop: set it, in any of the processes, to save and stop after the step under way.

    Yields:
        first the step that the run starts from, then each step done.

    Raises:
        ArgumentError: the folder holds a run with other settings, or something that is no run.
        InputError: it has checkpoints, and none of them is whole; or images cannot be read.
        LockedError: another process is training in it.
        DivergedError: the loss or a gradient is not finite; the last checkpoint is from before.
        DiskError: something cannot be written; the last checkpoint stays whole.
        PeerError: another process has failed, or ended.
    """
    world = execution.world
    with contextlib.ExitStack() as lock:
        with world.together():
            if world.rank == 0:
                read_record(folder)  # before a lock is put into a folder that holds something else
                lock.enter_context(run_lock(folder))
                check_same_run(folder, config)  # under the lock: another process may have begun a run meanwhile
        training = Training(config.unet, config.diffusion, config.train, device, execution)
        past = Provenance()
        with world.together():
            if world.rank == 0:
                past = _restored(folder, training, start)
                if training.step < cadence.steps:
                    # weights, average and two moments: better to know now than after the first hours
                    need = 4 * sum(parameter.nbytes for parameter in training.parameters)
                    advice = "make room, or use a folder on another disk"
                    check_space(folder, need, what="a checkpoint", advice=advice)
                content = config.to_json() | {"cadence": asdict(cadence), "execution": _computed(execution, device)}
                write_file(folder / CONFIG, (json.dumps(content, indent=2) + "\n").encode())
                _forget_after(folder / "metrics.jsonl", training.step)
        training.synchronize()
        compiled = None
        if execution.compile and training.step < cadence.steps:
            rows = world.shard(config.train.batch_size)
            ready = batch_at(images, config.train, training.diffusion.schedule, training.step + 1, rows)
            compiled = compile_if_faster(training, ready)
        yield Progress(training.step, advanced=False, compiled=compiled)
        yield from _steps(folder, training, cadence, images, past, stop)


def _computed(execution: Execution, device: torch.device) -> dict[str, Any]:
    """How the run is computed, for config.json; see `Computed`."""
    return execution.to_json() | {"threads": torch.get_num_threads() if device.type == "cpu" else None}


def _restored(folder: Path, training: Training, start: StoredModel | None) -> Provenance:
    """Put a training where its run folder left off, or at its start; returns what is known of the run's past."""
    latest = newest(folder)
    if latest:
        snapshot = read_snapshot(latest)
        # config.json may be gone
        if (snapshot.unet, snapshot.diffusion) != (training.unet.config, training.diffusion_config):
            raise ArgumentError(f"{printable(latest)} is of another network or diffusion; use another folder")
        training.restore(snapshot)
    elif start is not None:
        training.start_from(start.weights)
    # Which model that was, exactly: its name may have come to stand for another since.
    began = read_provenance(latest).start if latest else start.identity if start else None
    return Provenance(start=began, loss=training.config.loss)


def _steps(
    folder: Path, training: Training, cadence: Cadence, images: Images, past: Provenance, stop: threading.Event
) -> Iterator[Progress]:
    world = training.execution.world
    deadline = None if cadence.max_time is None else time.monotonic() + cadence.max_time
    writes, begun, saved = world.rank == 0, training.step, training.step

    def ends() -> bool:
        late = deadline is not None and time.monotonic() > deadline
        return stop.is_set() or (late and training.step > begun)  # or a start that takes longer would never get on

    with Saver(folder, keep=cadence.keep, past=past) as saver:

        def save() -> None:
            nonlocal saved
            saved = training.step
            if writes:
                saver.begin(training.snapshot())

        try:
            for report in train(training, images, steps=cadence.steps, log_every=cadence.log_every, stop=ends):
                step = training.step
                if writes and report and cadence.log_every:
                    _append(folder / "metrics.jsonl", report)
                due = step < cadence.steps and _due(step, cadence.save_every)
                checkpoint = saver.finished(wait=due)
                if due:
                    training.check()
                    save()
                preview = _preview(folder, training) if writes and _due(step, cadence.sample_every) else None
                yield Progress(step, True, report, checkpoint, preview)
        except Exception as error:
            if _is_whole(training, error) and saved < training.step:
                save()
            raise
        preview = None
        if saved != training.step or saved == 0:
            training.check()
            save()
            missing = writes and cadence.sample_every and not _due(training.step, cadence.sample_every)
            preview = _preview(folder, training) if missing and not stop.is_set() else None
        checkpoint = saver.finished(wait=True)
    if checkpoint or preview:
        yield Progress(training.step, False, None, checkpoint, preview)


def _is_whole(training: Training, error: Exception) -> bool:
    """Whether a training can be saved after an error: on a GPU, steps may be under way that never end."""
    if not training.whole:
        return False
    on_cpu, ours = training.device.type == "cpu", isinstance(error, DdpmError)
    if not on_cpu and (not ours or (isinstance(error, PeerError) and error.lost)):
        return False
    with contextlib.suppress(DivergedError):  # then it is as it was before the step that is void
        training.check()
    return training.is_finite()


def _preview(folder: Path, training: Training) -> Path:
    """A grid of images on fixed seeds, from the moving average."""
    path = folder / "samples" / f"step-{training.step:08d}.png"
    with disk_errors(path):
        path.parent.mkdir(exist_ok=True)
    write_file(path, preview(training.denoiser, training.diffusion, training.unet.config, training.device))
    return path


def preview(denoiser: NetworkDenoiser, d: Diffusion, unet: UNetConfig, device: torch.device) -> bytes:
    """A PNG of a few images of seed 0 on a sheet, by a quick sampler."""
    height, width = unet.size
    steps = generate.chain(denoiser, d, PREVIEW_SAMPLING, (unet.in_channels, height, width), range(PREVIEWS), device)
    rows, columns = grid_shape(PREVIEWS)
    images = generate.pixels_of(generate.last(steps).x_t)
    return encode_png(to_image(grid(images, rows, columns, scale=sheet_scale((height, width)))))


def _append(metrics: Path, report: StepReport) -> None:
    with disk_errors(metrics), metrics.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(report)) + "\n")


def _forget_after(metrics: Path, step: int) -> None:
    """Drop the lines of steps that a killed run logged and did not save, and a torn last line."""
    if not metrics.exists():
        return
    kept = []
    for line in metrics.read_text("utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    write_file(metrics, "".join(kept).encode())


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
