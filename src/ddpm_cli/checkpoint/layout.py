"""diffusers' folder layout: what its JSON files say, as our configurations, and back.

A class name in a file is compared with a fixed list; nothing that a file names is ever imported.
"""

from __future__ import annotations

import json
import math
import reprlib
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..config import BUILTIN_DIGITS, DiffusionConfig, UNetConfig
from ..core.files import at_once, printable, require_file
from ..core.records import from_json
from ..errors import InputError
from ..network.unet import build
from . import pickles, weights
from .weights import Tensors

MAX_JSON_BYTES = 2**20
WEIGHTS = "diffusion_pytorch_model.safetensors"
PICKLED_WEIGHTS = "diffusion_pytorch_model.bin"
NOTES = "ddpm.json"
NOTES_SCHEMA = 1
DOCUMENTS = ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json", NOTES)
DIFFUSERS_VERSION = "0.38.0"  # the oldest release that the files are checked with

_SCHEDULERS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler")
_BETA_SCHEDULES = {"linear": "linear", "squaredcos_cap_v2": "cosine"}
# diffusers knows neither mu nor the logarithm of a variance, and says so when it is to sample with them.
_PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "mu": "mu"}
_VARIANCES = {
    "fixed_small": "fixed-small",
    "fixed_small_log": "fixed-small",
    "fixed_large": "fixed-large",
    "fixed_large_log": "fixed-large",
    "learned_range": "learned-range",
    "learned_log": "learned",
}
# Settings of diffusers' schedulers that must have this value, because anything else is another process.
_FIXED = {
    "trained_betas": None,
    "thresholding": False,
    "clip_sample_range": 1,
    "rescale_betas_zero_snr": False,
    "use_flow_sigmas": False,
}
# Settings that only say how diffusers itself samples.
_IGNORED = (
    *("dynamic_thresholding_ratio", "sample_max_value", "timestep_spacing", "steps_offset", "set_alpha_to_one"),
    *("skip_prk_steps", "solver_order", "solver_type", "algorithm_type", "lower_order_final", "tensor_format"),
    *("use_karras_sigmas", "final_sigmas_type", "euler_at_final", "lambda_min_clipped", "use_exponential_sigmas"),
    *("use_beta_sigmas", "use_lu_lambdas", "flow_shift", "use_dynamic_shifting", "time_shift_type"),
)


@dataclass(frozen=True)
class Provenance:
    """What is known of a model's past, which diffusers' files have no room for: the content of ddpm.json.

    Args:
        step: optimizer steps that it was trained for.
        average: whether the weights are a moving average of those in training.
        start: the model whose weights its training began from.
        origin: where the model itself was before it came to lie where it is: ``user/repo@revision``, or the file that
            it was converted from.
        loss: what its training minimised, as `TrainConfig` names it.

    None stands for what is not known.
    """

    step: int | None = None
    average: bool | None = None
    start: str | None = None
    origin: str | None = None
    loss: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields by name, with the schema's version."""
        return {"schema": NOTES_SCHEMA, **asdict(self)}


@dataclass(frozen=True, eq=False)
class StoredModel:
    """A network with its weights and the diffusion it was trained for, as a folder holds them.

    Args:
        weights: the state dict, float32 on the CPU.
        source: where it was found, as the user named it.
        folder: where its files lie; None if it was only made.
        checked: what its files were compared with when they came from a Hub; None if they did not.
    """

    unet: UNetConfig
    diffusion: DiffusionConfig
    weights: Tensors
    source: str
    provenance: Provenance = Provenance()
    folder: Path | None = None
    checked: str | None = None

    @property
    def identity(self) -> str:
        """A name by which others know the model; nothing of this machine's folders is in it."""
        if self.provenance.origin is not None:
            return self.provenance.origin
        step = self.provenance.step
        return (
            self.source if self.source == BUILTIN_DIGITS else f"a local model{'' if step is None else f', step {step}'}"
        )


def diffusers_samples(diffusion: DiffusionConfig) -> bool:
    """Whether diffusers samples from such a model; what it has no name for it loads, and then refuses."""
    return diffusion.predict != "mu" and diffusion.variance != "learned"


def is_model_folder(folder: Path) -> bool:
    """Whether a folder has diffusers' layout: nested (model_index.json, unet/, scheduler/) or flat."""
    return (folder / "unet" / "config.json").is_file() or (folder / "config.json").is_file()


def read_model(folder: Path, source: str, *, unpickle: bool = False) -> StoredModel:
    """Read a model from a folder of diffusers' layout, nested or flat.

    Args:
        unpickle: read the weights of a folder that has them only as a pickle.

    Raises:
        InputError: a file is missing, damaged, or describes something that this project does not compute.
    """
    unet, diffusion = _read_configurations(folder)
    file = weights_file(folder)
    if file.name == WEIGHTS:
        tensors = weights.read(file, shapes(unet))
    elif unpickle:
        tensors = pickles.read_state_dict(file, shapes(unet))
    else:
        name = printable(shlex.quote(str(folder)))
        raise InputError(
            f"{printable(file.with_name(WEIGHTS))} is missing; {printable(file.name)} is a pickle, which is never read "
            f"unasked; turn it into a model with: ddpm convert --allow-pickle {name} -o OUT"
        )
    return StoredModel(unet, diffusion, tensors, source, read_provenance(folder), folder)


def weights_file(folder: Path) -> Path:
    """The file with the weights of a folder of diffusers' layout: a pickle only where there is no other."""
    unet_folder = _unet_folder(folder)
    file = unet_folder / WEIGHTS
    others = [] if file.is_file() else [unet_folder / PICKLED_WEIGHTS, *sorted(unet_folder.glob("*.bin"))]
    return next((other for other in others if other.is_file()), file)


def write_unpickled(folder: Path, path: Path) -> None:
    """Read the weights of a folder that has them only as a pickle, with care, and write them as a safetensors file.

    Raises:
        InputError: it holds anything but the tensors that the folder's configuration asks for.
        DiskError: the file cannot be written.
    """
    at_once(weights.write(path, read_model(folder, str(folder), unpickle=True).weights))


def _unet_folder(folder: Path) -> Path:
    """Where the network's files are: in ``unet/`` of the nested layout, in the folder itself of the flat one."""
    return folder / "unet" if (folder / "unet" / "config.json").is_file() else folder


def _read_configurations(folder: Path) -> tuple[UNetConfig, DiffusionConfig]:
    unet_folder = _unet_folder(folder)
    unet = _read_unet(unet_folder / "config.json")
    diffusion = _read_scheduler((folder if unet_folder == folder else folder / "scheduler") / "scheduler_config.json")
    check_match(printable(unet_folder / "config.json"), unet, diffusion)
    return unet, diffusion


def read_provenance(folder: Path) -> Provenance:
    """What a folder says of its model's past; nothing if it has no ddpm.json.

    Raises:
        InputError: the file is damaged, or of a later version of this program.
    """
    path = folder / NOTES
    if not path.is_file():
        return Provenance()
    data, where = read_json(path), printable(path)
    if data.pop("schema", None) != NOTES_SCHEMA:
        raise InputError(f"{where} is not of schema {NOTES_SCHEMA}; a later version of ddpm may have written it")
    return from_json(Provenance, data, where)


def largest_weights(folder: Path) -> int:
    """Bytes that the weights file of a folder's network can have at most: up to 8 a number, and names.

    Raises:
        InputError: a configuration is missing, damaged, or describes something that this project does not compute.
    """
    unet, _ = _read_configurations(folder)
    return 8 * sum(math.prod(shape) for shape in shapes(unet).values()) + weights.MAX_HEADER_BYTES


def describe(
    unet: UNetConfig, diffusion: DiffusionConfig, provenance: Provenance = Provenance()
) -> dict[str, dict[str, Any]]:
    """The JSON files of diffusers' layout, and our own, by path in the folder."""
    note = {"_diffusers_version": DIFFUSERS_VERSION}
    return {
        "model_index.json": {
            "_class_name": "DDPMPipeline",
            **note,
            "scheduler": ["diffusers", "DDPMScheduler"],
            "unet": ["diffusers", "UNet2DModel"],
        },
        "unet/config.json": {"_class_name": "UNet2DModel", **note, **unet.to_json()},
        "scheduler/scheduler_config.json": {
            "_class_name": "DDPMScheduler",
            **note,
            "num_train_timesteps": diffusion.timesteps,
            "beta_schedule": _key_of(_BETA_SCHEDULES, diffusion.schedule),
            "beta_start": diffusion.beta_start,
            "beta_end": diffusion.beta_end,
            "trained_betas": None,
            "prediction_type": _key_of(_PREDICTIONS, diffusion.predict),
            "variance_type": _key_of(_VARIANCES, diffusion.variance),
            "clip_sample": diffusion.clip,
            "clip_sample_range": 1.0,
        },
        NOTES: provenance.to_json(),
    }


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of the outside world: bounded, without NaN.

    Raises:
        InputError: the file is missing, too large, or not a JSON object.
    """
    where = printable(path)
    try:
        require_file(path)
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InputError(f"{where} has more than {MAX_JSON_BYTES} bytes; it is no configuration")
        data = json.loads(path.read_text("utf-8"), parse_constant=_constant)
    except OSError as error:
        raise InputError(f"{where} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not valid JSON ({printable(str(error))[:100]})") from error
    if not isinstance(data, dict):
        raise InputError(f"{where} is not a JSON object")
    return data


def shapes(unet: UNetConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor of a network's state dict; nothing is allocated to find out."""
    return {name: tuple(tensor.shape) for name, tensor in build(unet, "meta").state_dict().items()}


def _read_unet(path: Path) -> UNetConfig:
    data = read_json(path)
    _check_class(path, data, ("UNet2DModel",))
    try:
        return UNetConfig.from_json(data)
    except InputError as error:
        raise InputError(f"{printable(path)}: {error}") from error


def _read_scheduler(path: Path) -> DiffusionConfig:
    data = read_json(path)
    _check_class(path, data, _SCHEDULERS)
    where = printable(path)
    translations = {
        "beta_schedule": ("schedule", _BETA_SCHEDULES),
        "prediction_type": ("predict", _PREDICTIONS),
        "variance_type": ("variance", _VARIANCES),
    }
    plain = {
        "num_train_timesteps": "timesteps",
        "beta_start": "beta_start",
        "beta_end": "beta_end",
        "clip_sample": "clip",
    }
    # diffusers' own defaults, where the file is silent
    config = {"variance": "fixed-small"}
    for key, value in data.items():
        if key == "variance_type" and value is None:  # of schedulers that have none
            continue
        if key in translations:
            name, table = translations[key]
            if not isinstance(value, str) or value not in table:
                raise InputError(f"{where}: {key} is {reprlib.repr(value)}; it must be one of {', '.join(table)}")
            config[name] = table[value]
        elif key in plain:
            config[plain[key]] = value
        elif key in _FIXED and value not in (None, _FIXED[key]):
            raise InputError(f"{where}: {key} is {reprlib.repr(value)}; only {_FIXED[key]!r} is supported")
        elif key not in _FIXED and key not in _IGNORED and not key.startswith("_"):
            raise InputError(f"{where}: unknown field {printable(key)[:100]!r}")
    try:
        return replace(DiffusionConfig(), **config)  # type: ignore[arg-type]
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def check_match(where: str, unet: UNetConfig, diffusion: DiffusionConfig) -> None:
    """Refuse a network that makes no images, or knows fewer steps than its diffusion has."""
    outputs = (2 if diffusion.learns_variance else 1) * unet.in_channels
    if unet.out_channels != outputs:
        raise InputError(
            f"{where}: out_channels is {unet.out_channels}; it must be {outputs}, for in_channels {unet.in_channels} "
            f"and a variance that is {diffusion.variance}"
        )
    if unet.in_channels not in (1, 3, 4):
        raise InputError(f"{where}: in_channels is {unet.in_channels}; images have 1 (grey), 3 (RGB) or 4 (RGBA)")
    unit = 2 ** (unet.levels - 1)
    if unet.sample_size is not None and any(side % unit for side in unet.size):
        raise InputError(
            f"{where}: sample_size is {unet.sample_size}; each side must be a multiple of {unit}, as the "
            f"network halves images {unet.levels - 1} times"
        )
    known = unet.num_train_timesteps
    if unet.time_embedding_type == "learned" and known is not None and known < diffusion.timesteps:
        raise InputError(
            f"{where}: num_train_timesteps is {known}, so this network knows fewer steps than the scheduler's "
            f"{diffusion.timesteps}"
        )


def _check_class(path: Path, data: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    name = data.get("_class_name", allowed[0])
    if name not in allowed:
        raise InputError(
            f"{printable(path)}: _class_name is {printable(str(name))[:100]!r}; it must be one of {', '.join(allowed)}"
        )


def _key_of(table: Mapping[str, str], value: str) -> str:
    return next(key for key, entry in table.items() if entry == value)


def _constant(name: str) -> float:
    if name == "-Infinity":  # diffusers writes it for a field that only says how to sample
        return -math.inf
    raise ValueError(f"{name} is not a JSON number")
