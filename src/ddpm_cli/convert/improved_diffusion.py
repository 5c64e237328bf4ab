"""openai's improved-diffusion and guided-diffusion: unconditional UNetModels. Bare state dicts (``.pt``).

Both projects use the same names. Norms have 1e-5, halving has zeros all around, cos stands before sin, frequencies end
before 1 / 10,000. What the state dict does not say stood in the flags of the training script.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Collection
from dataclasses import dataclass, replace

import torch

from ..checkpoint import Provenance
from ..checkpoint.weights import Tensors
from ..config import DiffusionConfig, UNetConfig
from ..errors import ArgumentError, InputError
from ..network.embedding import sinusoids
from .assemble import Measures, finish, measure, network, rename, residual, size_of
from .format import Content, Converted, Format, Options

log = logging.getLogger(__name__)

HEADS = 4  # the training scripts' defaults
SCHEDULE = "linear"
TIMESTEPS = 1000

RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ATTENTION = {"norm": "group_norm", "qkv": "to_qkv", "proj_out": "to_out.0"}
OUTSIDE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    **residual("middle_block.0", "mid_block.resnets.0", RESIDUAL),
    **residual("middle_block.1", "mid_block.attentions.0", ATTENTION),
    **residual("middle_block.2", "mid_block.resnets.1", RESIDUAL),
}


@dataclass(frozen=True)
class Refusal:
    """Something that UNet2DModel cannot express, and the names of tensors by which it is known."""

    names: str
    what: str


REFUSALS = (
    Refusal(r"label_emb\.weight", "classes (class_cond): label_emb has no place in it"),
    Refusal(
        r"output_blocks\.\d+\.[12]\.in_layers\..*",
        "resblock_updown: residual blocks that resize, on levels without attention too",
    ),
)


def _recognises(content: Content) -> bool:
    return {"time_embed.0.weight", "input_blocks.0.0.weight", "output_blocks.0.0.in_layers.2.weight"} <= set(
        content.tensors
    )


def _convert(content: Content, options: Options) -> Converted:
    where = content.where
    _refuse_what_cannot_be(where, content.tensors)
    tensors = rename(where, content.tensors, _modules(content.tensors))
    measures = measure(where, tensors)
    learned = measures.out_channels == 2 * measures.in_channels
    size = size_of(where, measures, options.size)
    diffusion = _diffusion(options, learned)
    unet = network(
        measures,
        size,
        attention_head_dim=_head_channels(where, measures, options),
        resnet_time_scale_shift="scale_shift" if measures.scale_shift else "default",
        attn_norm_num_groups=32 if measures.scale_shift else None,  # diffusers leaves that norm out otherwise
    )
    if diffusion.timesteps != TIMESTEPS and options.rescale_timesteps is not False:
        unet, tensors = _rescaled(unet, tensors, diffusion.timesteps)
    weights = finish(where, _split_qkv(where, tensors, unet), unet)
    _warn(content, options, unet)
    return Converted(unet, diffusion, weights, _provenance(content))


def _refuse_what_cannot_be(where: str, names: Collection[str]) -> None:
    found = [r.what for r in REFUSALS if any(re.fullmatch(r.names, name) for name in names)]
    if found:
        raise InputError(f"{where}: its network cannot be expressed as diffusers' UNet2DModel: {'; '.join(found)}")


def _modules(names: Collection[str]) -> dict[str, str]:
    """For each of their modules its name with us."""
    return OUTSIDE | _down(names) | _up(names)


def _down(names: Collection[str]) -> dict[str, str]:
    modules: dict[str, str] = {}
    level = layer = 0
    for k in itertools.count(1):
        block = f"input_blocks.{k}"
        if f"{block}.0.op.weight" in names:
            modules[f"{block}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
            level, layer = level + 1, 0
        elif f"{block}.0.in_layers.2.weight" in names:
            modules |= residual(f"{block}.0", f"down_blocks.{level}.resnets.{layer}", RESIDUAL)
            modules |= residual(f"{block}.1", f"down_blocks.{level}.attentions.{layer}", ATTENTION)
            layer += 1
        else:
            break
    return modules


def _up(names: Collection[str]) -> dict[str, str]:
    modules: dict[str, str] = {}
    level = layer = 0
    for k in itertools.count():
        block = f"output_blocks.{k}"
        if f"{block}.0.in_layers.2.weight" not in names:
            break
        modules |= residual(f"{block}.0", f"up_blocks.{level}.resnets.{layer}", RESIDUAL)
        modules |= residual(f"{block}.1", f"up_blocks.{level}.attentions.{layer}", ATTENTION)
        layer += 1
        for place in (1, 2):  # behind the attention, if there is one
            if f"{block}.{place}.conv.weight" in names:
                modules[f"{block}.{place}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
                level, layer = level + 1, 0
    return modules


def _head_channels(where: str, measures: Measures, options: Options) -> int | None:
    """Channels of each head, None for a single one.

    Raises:
        InputError: the levels have heads of different widths, which UNet2DModel does not have.
        ArgumentError: the heads do not divide the channels, or were given twice.
    """
    ways = (measures.down, measures.up)
    widths = {width for way in ways for width, attends in zip(measures.widths, way, strict=True) if attends}
    widths |= {*measures.widths[-1:]}  # of the middle
    if options.head_channels is not None and options.heads is not None:
        raise ArgumentError("`heads` and `head_channels` were both given; a network was trained with one of them")
    if options.head_channels is not None:
        if bad := [width for width in widths if width % options.head_channels]:
            raise ArgumentError(f"`head_channels` is {options.head_channels}, which does not divide {bad[0]} channels")
        return options.head_channels
    heads = HEADS if options.heads is None else options.heads
    if heads == 1:
        return None
    if bad := [width for width in widths if width % heads]:
        raise ArgumentError(f"{heads} heads do not divide {bad[0]} channels; give the right number with `heads`")
    if len(widths) > 1:
        listed = ", ".join(str(width // heads) for width in sorted(widths))
        raise InputError(
            f"{where}: its network cannot be expressed as diffusers' UNet2DModel: {heads} heads are {listed} channels "
            "wide, and all must be of one width. If it was trained with other heads, give `heads` or `head_channels`"
        )
    return widths.pop() // heads


def _split_qkv(where: str, tensors: Tensors, unet: UNetConfig) -> Tensors:
    """Three matrices for each one; its rows are, head by head, those of q, k and v."""
    result = {}
    for name, tensor in tensors.items():
        if ".to_qkv." not in name:
            result[name] = tensor
            continue
        rows = tensor.shape[0] if tensor.ndim else 0
        head = unet.attention_head_dim or rows // 3
        if rows < 3 or rows % (3 * head):
            raise InputError(f"{where}: tensor {name} has {rows} rows, not three for each channel of its heads")
        by_head = tensor.reshape(-1, 3, head, *tensor.shape[1:])
        for place, letter in enumerate("qkv"):
            result[name.replace(".to_qkv.", f".to_{letter}.")] = by_head[:, place].flatten(0, 1)
    return result


def _rescaled(unet: UNetConfig, tensors: Tensors, timesteps: int) -> tuple[UNetConfig, Tensors]:
    """The network asked at t in thousandths of T: the sinusoids then are a table that UNet2DModel calls learned."""
    t = torch.arange(timesteps).float() * (1000.0 / timesteps)
    table = sinusoids(t, unet)
    learned = replace(unet, time_embedding_type="learned", num_train_timesteps=timesteps)
    return learned, tensors | {"time_proj.weight": table}


def _diffusion(options: Options, learned: bool) -> DiffusionConfig:
    """Both projects' diffusion: linear schedules keep the sum of beta_t whatever T is."""
    T = TIMESTEPS if options.timesteps is None else options.timesteps
    schedule = SCHEDULE if options.schedule is None else options.schedule
    variance = "learned-range" if learned else "fixed-large"
    if schedule != "linear":
        return DiffusionConfig(T, schedule, variance=variance)
    return DiffusionConfig(T, schedule, beta_start=1000 / T * 1e-4, beta_end=1000 / T * 0.02, variance=variance)


def _warn(content: Content, options: Options, unet: UNetConfig) -> None:
    """Say what was assumed, and what was left out."""
    height, width = unet.size
    assumed = {
        "size": f"size {height if height == width else f'{height}x{width}'}",
        "heads": f"heads {HEADS}",
        "schedule": f"schedule {SCHEDULE}",
        "timesteps": f"timesteps {TIMESTEPS}",
    }
    given = set(options.given)
    if "head_channels" in given:
        del assumed["heads"]
    if missing := [text for name, text in assumed.items() if name not in given]:
        log.warning(
            "the file does not say how it was trained; assumed, as openai's scripts do by default: %s. If it was "
            "trained with other settings, give them: a wrong guess makes poor images, or noise",
            ", ".join(missing),
        )
    if unet.time_embedding_type == "learned":
        log.warning(
            "t is scaled to 0..1000, as improved-diffusion does by default and guided-diffusion does not; if the model "
            "is from there, convert it without rescale_timesteps"
        )
    if _provenance(content).average is False:
        log.warning("these are the raw weights; their EMA, beside them as ema_*.pt, makes better images")


def _provenance(content: Content) -> Provenance:
    """What the training script's file names say: ``ema_0.9999_500000.pt`` or ``model500000.pt``."""
    match = re.fullmatch(r"(ema_[\d.]+_|model)(\d{6,12})\.\w+", content.path.name)
    return Provenance(int(match[2]), match[1] != "model") if match else Provenance()


OPTIONS = frozenset({"size", "heads", "head_channels", "schedule", "timesteps", "rescale_timesteps"})
FORMAT = Format("improved-diffusion or guided-diffusion", OPTIONS, _recognises, _convert)
