"""``-m MODEL``: from what a user names to a model that samples and measures; also the Python API's `Model`."""

from __future__ import annotations

import errno
import os
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..checkpoint import MANIFEST, MODEL_FILES, Provenance, StoredModel, is_model_folder, newest, read_model, verify
from ..config import BUILTIN_DIGITS, DiffusionConfig, UNetConfig
from ..core.distributed import ALONE, World
from ..core.files import printable
from ..core.pixels import Pixels
from ..core.progress import Stage, later
from ..data import Images
from ..diffusion.process import FROM_X_0, Diffusion, p_theta
from ..diffusion.samplers import Step
from ..errors import ArgumentError, InputError
from ..evaluation.bits_per_dim import Bound, PartialBound, Protocol, measure, prior
from ..network.denoiser import NetworkDenoiser, choose_device, choose_precision
from ..network.unet import build
from ..sampling import generate
from ..sampling.generate import Start
from ..sampling.settings import Sampling
from .facts import facts

if TYPE_CHECKING:
    from ..hub import Pulled

BATCH_SIZE = 64

_LONGEST_PAST = 500  # characters: each pull of what was pulled and pushed adds some


@dataclass(frozen=True, eq=False)
class Model:
    """A trained network, ready on a device, with the diffusion it was trained for.

    Args:
        source: what it was loaded from.
        provenance: what is known of its past.
        precision: of its convolutions and matrix products, ``fp32`` or ``bf16``.
    """

    source: str
    provenance: Provenance
    unet_config: UNetConfig
    diffusion_config: DiffusionConfig
    diffusion: Diffusion
    denoiser: NetworkDenoiser
    device: torch.device

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of its images."""
        return self.unet_config.in_channels, *self.unet_config.size

    def describe(self) -> str:
        """One line for people: images, parameters, training, diffusion, machine."""
        about = facts(self.unet_config, self.diffusion_config, self.provenance)
        return f"{about.line()}; {self.device}, {self.denoiser.precision}"

    @torch.inference_mode()
    def eps(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """eps_theta(x_t, t), the predicted noise, whatever the network itself predicts.

        Args:
            x_t: (B, C, H, W) float32.
            t: the paper's t, 1..T, int64 (B,).

        Returns:
            (B, C, H, W) float32.
        """
        x_t = x_t.to(self.device)
        T = self.diffusion.schedule.T
        steps = t.cpu().numpy()
        if steps.shape != (len(x_t),) or not np.issubdtype(steps.dtype, np.integer):
            raise ArgumentError(f"t has shape {steps.shape} and dtype {steps.dtype}; it must be int64 ({len(x_t)},)")
        if ((steps < 1) | (steps > T)).any():
            raise ArgumentError(f"t is outside 1..{T}")
        if self.diffusion_config.predict == "eps":
            return self.denoiser(x_t, t.to(self.device))[
                :, : self.unet_config.in_channels
            ]  # a learned variance comes after it
        x_0_hat = p_theta(self.diffusion.unclipped, self.denoiser, x_t, steps).x_0_hat
        eps: torch.Tensor = FROM_X_0["eps"](self.diffusion.schedule, x_0_hat, x_t, steps)
        return eps

    def sample(self, n: int, seed: int = 0, *, first: int = 0, batch_size: int = BATCH_SIZE, **settings: Any) -> Pixels:
        """The n images of a seed from number ``first`` on; Algorithm 2 over all T steps unless said otherwise.

        Args:
            batch_size: how many images at a time; in float32 the images do not depend on it, in bfloat16 by a level or
                two of rounding.
            settings: ``sampler``, ``steps``, ``eta``, ...: those of `Sampling`.

        Returns:
            (n, H, W, C) uint8.

        Raises:
            ArgumentError: settings that do not go together, or more steps than the model has.
        """
        if n < 0 or first < 0 or batch_size < 1:
            raise ArgumentError(f"n is {n}, first {first}, batch_size {batch_size}; they must be at least 0, 0 and 1")
        sampling = Sampling(seed=seed, **settings)
        parts = [
            generate.pixels_of(generate.last(self.chain(sampling, indices)).x_t)
            for indices in generate.batches(first, n, batch_size)
        ]
        return np.concatenate(parts) if parts else np.empty((0, *self.shape[1:], self.shape[0]), np.uint8)

    def chain(self, sampling: Sampling, indices: Sequence[int], start: Start | None = None) -> Iterator[Step]:
        """The reverse chain of some images of a seed, step by step, from x_T or from another ``start``."""
        return generate.chain(self.denoiser, self.diffusion, sampling, self.shape, indices, self.device, start)

    def bits_per_dim(
        self, images: Images | Pixels, *, terms: int | None = None, seed: int = 0, batch_size: int = BATCH_SIZE
    ) -> Bound:
        """The variational bound (Eq. 5) of images, uint8 (N, H, W, C), each once, in float32.

        Args:
            terms: of the T terms of an image so many are computed, for an unbiased estimate; None for all.

        Raises:
            InputError: the images have another size or number of channels than the model's.
            ArgumentError: ``terms`` is outside 1..T.
        """
        if not isinstance(images, Images):
            images = Images.from_array(images)
        self.check_fits(images)
        tally = PartialBound(Protocol(len(images), self.diffusion.schedule.T, terms, seed))
        exact = replace(self, denoiser=NetworkDenoiser(self.denoiser.unet, "fp32"))
        for _ in exact.measure(images, tally, batch_size=batch_size):
            pass
        return tally.bound(prior(self.diffusion, images, len(images)))

    def measure(self, images: Images, tally: PartialBound, *, batch_size: int, world: World = ALONE) -> Iterator[int]:
        """Add to a tally what is missing in it, in the model's own precision; see `evaluation.bits_per_dim.measure`."""
        return measure(
            self.denoiser,
            self.diffusion,
            images,
            tally,
            batch_size=batch_size,
            device=self.device,
            world=world,
        )

    def check_fits(self, images: Images) -> None:
        """Refuse images of another size or number of channels than the model's."""
        C, H, W = self.shape
        if images.shape[1:] != (H, W, C):
            height, width, channels = images.shape[1:]
            raise InputError(
                f"the images are {height}x{width} with {channels} channel(s), the model {self.source} makes "
                f"{H}x{W} with {C}"
            )


def load(spec: str | None = None, *, device: str = "auto", precision: str = "auto") -> Model:
    """Load a model.

    Args:
        spec: a run folder, a checkpoint, any folder of diffusers' layout, a Hub's ``user/repo`` or
            ``user/repo@revision``, or ``builtin:digits``. None stands for ``$DDPM_MODEL``, else ``./ddpm-out`` if it is
            there, else ``builtin:digits``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        precision: ``auto``, ``fp32`` or ``bf16``.

    Raises:
        InputError: there is no such model, or it is damaged.
        HubError: the Hub does not deliver it.
        ArgumentError: there is no such device.
    """
    return ready(find(default_spec() if spec is None else spec).result(), device=device, precision=precision)


def ready(stored: StoredModel, *, device: str, precision: str) -> Model:
    """A stored model on a device, to sample and measure with; arguments as those of `load`."""
    place = choose_device(device)
    unet = build(stored.unet, place)
    unet.load_state_dict(stored.weights)
    unet.eval().requires_grad_(False)
    return Model(
        source=stored.source,
        provenance=stored.provenance,
        unet_config=stored.unet,
        diffusion_config=stored.diffusion,
        diffusion=Diffusion.from_config(stored.diffusion),
        denoiser=NetworkDenoiser(unet, choose_precision(precision, place, stored.diffusion.predict)),
        device=place,
    )


def default_spec() -> str:
    """The model that is meant where none is named."""
    if named := os.environ.get("DDPM_MODEL"):
        return named
    return "ddpm-out" if Path("ddpm-out").is_dir() else BUILTIN_DIGITS


def builtin_folder() -> Path:
    """The folder of the model that comes with the program, in diffusers' layout."""
    return Path(str(resources.files("ddpm_cli") / "builtin" / "digits"))


def find(spec: str) -> Stage[StoredModel]:
    """Find the model that a user names, to be read when the stage is run.

    Of a run, these are the EMA weights of its newest whole checkpoint. What is here wins over a repository of the Hub.

    Raises:
        InputError: it is not there, is no model, or is damaged.
        HubError: the Hub does not deliver it.
    """
    if not spec:
        raise InputError("the name of the model is empty; name a folder, user/repo of a Hub, or builtin:digits")
    if spec == BUILTIN_DIGITS:
        return later(f"reading {spec}", lambda: read_model(builtin_folder(), spec))
    if _is_there(Path(spec)):
        return later(f"reading {printable(spec)}", lambda: _read_folder(Path(spec), spec))
    from .. import hub  # only where it is needed: the client alone takes a third of a second

    if (name := hub.parse(spec)) is None:
        raise InputError(
            f"there is no model {printable(spec)[:200]}: no such folder, and it is not {BUILTIN_DIGITS} or "
            "user/repo of a Hub"
        )
    fetching = hub.fetch(name)

    def work() -> Generator[int, None, StoredModel]:
        yield from fetching
        return read_pulled(fetching.result(), spec)

    return Stage(fetching.label, fetching.total, work(), in_bytes=fetching.in_bytes)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # which no file has; any other says that it may be there
            raise
        return False


def read_pulled(pulled: Pulled, source: str) -> StoredModel:
    """Read a model that was fetched from the Hub.

    Raises:
        InputError: it is damaged, or no model that is read here.
    """
    stored = read_model(pulled.folder, source)
    earlier = stored.provenance.origin
    origin = pulled.origin if earlier is None else f"{pulled.origin} ({earlier[:_LONGEST_PAST]})"
    return replace(stored, provenance=replace(stored.provenance, origin=origin), checked=pulled.checked)


def _read_folder(path: Path, spec: str) -> StoredModel:
    name = printable(spec)
    if not path.is_dir():
        raise InputError(f"{name} is a file; a model is a folder: a run, a checkpoint, or diffusers' layout")
    if (path / "checkpoints").is_dir():
        return _read_run(path, spec)
    if (path / MANIFEST).is_file():
        verify(path, hashed=MODEL_FILES)
    if is_model_folder(path):
        return read_model(path, spec)
    raise InputError(
        f"{name} holds no model: neither checkpoints/ of a run, nor unet/config.json, nor config.json of diffusers"
    )


def _read_run(folder: Path, spec: str) -> StoredModel:
    """The newest checkpoint of a run; a trainer may retire one while it is read."""
    while (checkpoint := newest(folder, hashed=MODEL_FILES)) is not None:
        try:
            return read_model(checkpoint, spec)
        except InputError:
            if checkpoint.exists():
                raise
    raise InputError(f"{printable(folder)} has no checkpoint yet; resume its training, or name another `model`")
