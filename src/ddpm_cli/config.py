"""What a run is made of, as frozen dataclasses that refuse nonsense when they are built. No torch.

Every message names the field, the value it has and what it may be. `InputError` is raised, not `ArgumentError`,
because the same checks guard configurations that come out of files.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from .core.records import from_json
from .errors import InputError

BUILTIN_DIGITS = "builtin:digits"  # the images, and the model, that come with the program

DOWN_BLOCKS = ("DownBlock2D", "AttnDownBlock2D")
UP_BLOCKS = ("UpBlock2D", "AttnUpBlock2D")
ACTIVATIONS = ("silu", "swish", "mish", "gelu", "relu")
PREDICTIONS = ("eps", "x0", "mu", "v")
FIXED_VARIANCES = ("fixed-large", "fixed-small")
LEARNED_VARIANCES = ("learned", "learned-range")
VARIANCES = (*FIXED_VARIANCES, *LEARNED_VARIANCES)
LOSSES = ("simple", "vlb", "hybrid")
SCHEDULES = ("linear", "cosine")
T_SAMPLINGS = {"uniform": "uniform", "importance": "by importance"}  # how t is drawn, and that in words

# Far above every published network, and small enough that nothing a hostile file asks for is ever allocated.
MAX_CHANNELS = 8192
MAX_LEVELS = 10
MAX_LAYERS = 32
MAX_SIDE = 16384
MAX_TIMESTEPS = 10_000  # of a linear schedule, float32 still holds the signal left at T


def _require(ok: bool, where: str, name: str, value: object, rule: str) -> None:
    if not ok:
        raise InputError(f"{where}: {name} is {reprlib.repr(value)}; it must be {rule}")


def _is_int(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


@dataclass(frozen=True)
class UNetConfig:
    """The network's configuration, field by field that of diffusers' ``UNet2DModel`` (same names, same defaults).

    Raises:
        InputError: a field has a value this project does not build; the message names the field.
    """

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: float = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1
    downsample_padding: int = 1
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    dropout: float = 0.0
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    num_train_timesteps: int | None = None

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_choices()
        self._check_groups()

    def _check(self, name: str, ok: bool, rule: str) -> None:
        _require(ok, "network", name, getattr(self, name), rule)

    def _check_sizes(self) -> None:
        size = self.sample_size
        sides = size if isinstance(size, tuple) else (size, size)
        ok = size is None or (len(sides) == 2 and all(_is_int(side, 1, MAX_SIDE) for side in sides))
        self._check("sample_size", ok, f"one or two whole numbers from 1 to {MAX_SIDE}")
        for name in ("in_channels", "out_channels"):
            self._check(name, _is_int(getattr(self, name), 1, 64), "a whole number from 1 to 64")
        channels = self.block_out_channels
        levels_ok = isinstance(channels, tuple) and 1 <= len(channels) <= MAX_LEVELS
        self._check(
            "block_out_channels",
            levels_ok and all(_is_int(c, 1, MAX_CHANNELS) for c in channels),
            f"1 to {MAX_LEVELS} whole numbers from 1 to {MAX_CHANNELS}",
        )
        self._check("layers_per_block", _is_int(self.layers_per_block, 1, MAX_LAYERS), f"from 1 to {MAX_LAYERS}")
        dim, steps = self.time_embedding_dim, self.num_train_timesteps
        self._check("time_embedding_dim", dim is None or _is_int(dim, 1, 4 * MAX_CHANNELS), "a positive whole number")
        self._check("num_train_timesteps", steps is None or _is_int(steps, 1, MAX_TIMESTEPS), "a positive whole number")
        self._check("downsample_padding", _is_int(self.downsample_padding, 0, 1), "0 or 1")
        self._check("dropout", _is_number(self.dropout, 0, 1) and self.dropout < 1, "a number from 0 to below 1")
        self._check("norm_eps", _is_number(self.norm_eps, 0, 1) and self.norm_eps > 0, "a number above 0, up to 1")
        self._check("freq_shift", _is_number(self.freq_shift, 0, 1e3), "a number from 0 on")
        half = channels[0] // 2
        self._check("freq_shift", self.freq_shift < half or half == 0, "below half of the first channel count")
        scale = self.mid_block_scale_factor
        self._check("mid_block_scale_factor", _is_number(scale, 1e-3, 1e3), "a number from 0.001 to 1000")
        for name in ("center_input_sample", "flip_sin_to_cos", "add_attention"):
            self._check(name, isinstance(getattr(self, name), bool), "true or false")

    def _check_choices(self) -> None:
        for name, choices in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
            blocks = getattr(self, name)
            ok = isinstance(blocks, tuple) and all(block in choices for block in blocks)
            self._check(name, ok, f"made of {' and '.join(choices)}")
            same = len(blocks) == len(self.block_out_channels)
            self._check(name, same, f"as long as block_out_channels ({len(self.block_out_channels)})")
        one_of: dict[str, tuple[object, ...]] = {
            "time_embedding_type": ("positional", "learned"),
            "mid_block_type": ("UNetMidBlock2D", None),
            "downsample_type": ("conv", "resnet"),
            "upsample_type": ("conv", "resnet"),
            "act_fn": ACTIVATIONS,
            "resnet_time_scale_shift": ("default", "scale_shift"),
        }
        for name, allowed in one_of.items():
            self._check(name, getattr(self, name) in allowed, f"one of {', '.join(map(repr, allowed))}")
        for name in ("class_embed_type", "num_class_embeds"):
            self._check(name, getattr(self, name) is None, "null: class-conditional networks are not supported")
        if self.time_embedding_type == "learned":
            self._check("num_train_timesteps", self.num_train_timesteps is not None, "set for a learned time embedding")

    def _check_groups(self) -> None:
        groups = self.norm_num_groups
        ok = _is_int(groups, 1, MAX_CHANNELS) and all(c % groups == 0 for c in self.block_out_channels)
        self._check("norm_num_groups", ok, f"a divisor of each of block_out_channels {self.block_out_channels}")
        groups_mid = self.attn_norm_num_groups
        ok = groups_mid is None or (
            _is_int(groups_mid, 1, MAX_CHANNELS) and self.block_out_channels[-1] % groups_mid == 0
        )
        self._check("attn_norm_num_groups", ok, f"null or a divisor of {self.block_out_channels[-1]}")
        narrowest = min(self._attending(), default=MAX_CHANNELS)
        ok = self.attention_head_dim is None or _is_int(self.attention_head_dim, 1, narrowest)
        self._check("attention_head_dim", ok, f"null or from 1 to {narrowest}, the fewest channels that attention has")

    def _attending(self) -> list[int]:
        """Channels of each level and block that has attention."""
        down = zip(self.block_out_channels, self.down_block_types, strict=True)
        up = zip(self.block_out_channels[::-1], self.up_block_types, strict=True)
        channels = [c for c, block in (*down, *up) if block in ("AttnDownBlock2D", "AttnUpBlock2D")]
        if self.mid_block_type is not None and self.add_attention:
            channels.append(self.block_out_channels[-1])
        return channels

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images; a network without a sample_size is refused."""
        if self.sample_size is None:
            raise InputError("network: sample_size is null; it must be a size, so that images can be made from it")
        return self.sample_size if isinstance(self.sample_size, tuple) else (self.sample_size, self.sample_size)

    @property
    def levels(self) -> int:
        """How many resolutions the network works at; images are halved ``levels - 1`` times."""
        return len(self.block_out_channels)

    def check_size(self, size: tuple[int, int]) -> None:
        """Refuse an image size (height, width) that the network cannot halve ``levels - 1`` times."""
        unit = 2 ** (self.levels - 1)
        if any(side % unit or side < unit for side in size):
            nearest = "x".join(str(max(unit, round(side / unit) * unit)) for side in size)
            raise InputError(
                f"images of {size[0]}x{size[1]} cannot be halved {self.levels - 1} times, as this network of "
                f"{self.levels} levels does; use `size={nearest}`, or a preset with fewer levels"
            )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read diffusers' ``config.json``. Keys that start with ``_`` are notes; any other unknown key is refused."""
        return from_json(cls, data, "network", notes="_")

    def to_json(self) -> dict[str, Any]:
        """The fields as diffusers writes them."""
        return asdict(self)


@dataclass(frozen=True)
class DiffusionConfig:
    """The diffusion itself: the schedule of beta_1..beta_T, what the network predicts, sigma_t, and clipping.

    ``clip`` says whether x_0_hat is clipped to [-1, 1] while sampling and evaluating.
    """

    timesteps: int = 1000
    schedule: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    predict: str = "eps"
    variance: str = "fixed-large"
    clip: bool = True

    def __post_init__(self) -> None:
        def check(name: str, ok: bool, rule: str) -> None:
            _require(ok, "diffusion", name, getattr(self, name), rule)

        check("timesteps", _is_int(self.timesteps, 1, MAX_TIMESTEPS), f"a whole number from 1 to {MAX_TIMESTEPS}")
        check("schedule", self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}")
        check("beta_start", _is_number(self.beta_start, 0, 1) and 0 < self.beta_start < 1, "between 0 and 1")
        check("beta_end", _is_number(self.beta_end, 0, 1) and 0 < self.beta_end < 1, "between 0 and 1")
        check("predict", self.predict in PREDICTIONS, f"one of {', '.join(PREDICTIONS)}")
        check("variance", self.variance in VARIANCES, f"one of {', '.join(VARIANCES)}")
        check("clip", isinstance(self.clip, bool), "true or false")

    @property
    def learns_variance(self) -> bool:
        """Whether the network's output has a second half, for sigma_t^2."""
        return self.variance in LEARNED_VARIANCES

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        return from_json(cls, data, "diffusion")

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


@dataclass(frozen=True)
class TrainConfig:
    """How a network is trained (Algorithm 1): everything that decides the weights, and nothing that does not.

    Args:
        batch_size: images of one optimizer step, over all processes.
        lr: learning rate of Adam after ``warmup`` steps of linear growth from 0.
        ema: rate of the exponential moving average of the weights.
        ema_warmup: use min(ema, (1 + s) / (10 + s)) at step s, so that short runs do not keep their random start.
        grad_clip: largest 2-norm of the gradient.
        flip: mirror each image left to right with probability 1/2.
        seed: names all randomness of the run.
        loss: what is minimised: ``simple`` (Eq. 14), ``vlb`` (Eq. 5) or ``hybrid`` of both.
        precision: ``fp32`` or ``bf16`` (autocast; the weights stay float32).
        t_sampling: ``uniform``, as in Algorithm 1, or ``importance``: more often where eps has a large error, with
            weights that leave L_simple what it is (`Schedule.importance`).
    """

    batch_size: int = 128
    lr: float = 2e-4
    warmup: int = 5000
    ema: float = 0.9999
    ema_warmup: bool = True
    grad_clip: float = 1.0
    flip: bool = True
    seed: int = 0
    loss: str = "simple"
    precision: str = "fp32"
    t_sampling: str = "uniform"

    def __post_init__(self) -> None:
        def check(name: str, ok: bool, rule: str) -> None:
            _require(ok, "training", name, getattr(self, name), rule)

        check("batch_size", _is_int(self.batch_size, 1, 2**20), "a whole number from 1 to 1048576")
        check("lr", _is_number(self.lr, 0, 1e3) and self.lr > 0, "a number above 0, up to 1000")
        check("warmup", _is_int(self.warmup, 0, 2**40), f"a whole number from 0 to {2**40}")
        check("ema", _is_number(self.ema, 0, 1) and self.ema < 1, "a number from 0 to below 1")
        check("grad_clip", _is_number(self.grad_clip, 0, 1e9) and self.grad_clip > 0, "a number above 0")
        for name in ("ema_warmup", "flip"):
            check(name, isinstance(getattr(self, name), bool), "true or false")
        check("seed", _is_int(self.seed, 0, 2**63 - 1), "a whole number from 0 to 2^63 - 1")
        check("loss", self.loss in LOSSES, f"one of {', '.join(LOSSES)}")
        check("precision", self.precision in ("fp32", "bf16"), "fp32 or bf16")
        # What comes out of a file may not be hashable.
        check("t_sampling", self.t_sampling in tuple(T_SAMPLINGS), f"one of {', '.join(T_SAMPLINGS)}")
        fits = self.t_sampling == "uniform" or self.loss == "simple"
        check("t_sampling", fits, f"uniform where the loss is {self.loss}: importance is that of L_simple")

    def lr_at(self, step: int) -> float:
        """Learning rate of optimizer step ``step`` = 1, 2, ...: linear warm-up, then constant."""
        return self.lr * min(step / self.warmup, 1.0) if self.warmup else self.lr

    def ema_at(self, step: int) -> float:
        """Rate of the moving average after optimizer step ``step`` = 1, 2, ..."""
        return min(self.ema, (1 + step) / (10 + step)) if self.ema_warmup else self.ema

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        return from_json(cls, data, "training")

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)
