"""w86763777/pytorch-ddpm: ``ckpt.pt`` with net_model, ema_model, optimizer, step and x_T, or one state dict of them.

Norms have 1e-5, halving has zeros all around, attention one head, and the time embedding is a table in which sin and
cos take turns.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Collection

import torch

from ..checkpoint import Provenance
from ..checkpoint.weights import Tensors
from ..config import DiffusionConfig, UNetConfig
from ..errors import InputError
from ..network.embedding import sinusoids
from .assemble import finish, measure, network, rename, residual
from .format import Content, Converted, Format, Options, named_tensors

log = logging.getLogger(__name__)

SIZE = (32, 32)  # the training script's default
TABLE = "time_embedding.timembedding.0.weight"
TABLE_TOLERANCE = 1e-3  # float32 computes sin(999) one way or the other

RESIDUAL = {
    "block1.0": "norm1",
    "block1.2": "conv1",
    "temb_proj.1": "time_emb_proj",
    "block2.0": "norm2",
    "block2.3": "conv2",
    "shortcut": "conv_shortcut",
}
ATTENTION = {"group_norm": "group_norm", "proj_q": "to_q", "proj_k": "to_k", "proj_v": "to_v", "proj": "to_out.0"}
OUTSIDE = {
    "time_embedding.timembedding.1": "time_embedding.linear_1",
    "time_embedding.timembedding.3": "time_embedding.linear_2",
    "head": "conv_in",
    "tail.0": "conv_norm_out",
    "tail.2": "conv_out",
    **residual("middleblocks.0", "mid_block.resnets.0", RESIDUAL),
    **residual("middleblocks.0.attn", "mid_block.attentions.0", ATTENTION),
    **residual("middleblocks.1", "mid_block.resnets.1", RESIDUAL),
}


def _recognises(content: Content) -> bool:
    return any({TABLE, "downblocks.0.block1.2.weight"} <= _tensors(content, key).keys() for key in _KEYS)


def _convert(content: Content, options: Options) -> Converted:
    where = content.where
    key = next(key for key in _KEYS if TABLE in _tensors(content, key))
    theirs = dict(_tensors(content, key))
    table = theirs.pop(TABLE)
    tensors = rename(where, theirs, _modules(theirs))
    unet = network(
        measure(where, tensors), _size(content, options), attention_head_dim=None, flip_sin_to_cos=False, freq_shift=0
    )
    # Trained to predict eps, with the schedule and sigma_t of the paper's CIFAR-10: the training script's defaults.
    # Its sampler clips x_0 only where that has no effect; ours does as the paper's.
    diffusion = DiffusionConfig(timesteps=table.shape[0] if table.ndim == 2 else 0)
    _check_table(where, table, unet)
    weights = finish(where, _without_turns(tensors), unet)
    if key == "net_model":
        log.warning("the file has no EMA of the weights; these are the raw ones")
    return Converted(unet, diffusion, weights, _provenance(content, key))


_KEYS = ("ema_model", "net_model", None)  # the first that is there is taken; None is the file itself


def _tensors(content: Content, key: str | None) -> Tensors:
    return content.tensors if key is None else named_tensors(content.part(key))


def _modules(names: Collection[str]) -> dict[str, str]:
    """For each of their modules its name with us."""
    return OUTSIDE | _way(names, "down") | _way(names, "up")


def _way(names: Collection[str], way: str) -> dict[str, str]:
    """The blocks of one way, ``down`` or ``up``: one list, in which a resizing ends each level."""
    modules: dict[str, str] = {}
    level = layer = 0
    for k in itertools.count():
        block = f"{way}blocks.{k}"
        if f"{block}.main.weight" in names:
            modules[f"{block}.main"] = f"{way}_blocks.{level}.{way}samplers.0.conv"
            level, layer = level + 1, 0
        elif f"{block}.block1.2.weight" in names:
            modules |= residual(block, f"{way}_blocks.{level}.resnets.{layer}", RESIDUAL)
            modules |= residual(f"{block}.attn", f"{way}_blocks.{level}.attentions.{layer}", ATTENTION)
            layer += 1
        else:
            break
    return modules


def _check_table(where: str, table: torch.Tensor, unet: UNetConfig) -> None:
    """Refuse a time embedding that is not the sinusoids it is taken for."""
    waves = sinusoids(torch.arange(table.shape[0]), unet)
    fits = table.shape == waves.shape and table.is_floating_point()
    if not fits or not torch.allclose(_in_one_row(table.float()), waves, rtol=0, atol=TABLE_TOLERANCE):
        raise InputError(f"{where}: tensor {TABLE} is not the table of sin and cos that the project computes")


def _without_turns(tensors: Tensors) -> Tensors:
    """The first layer's columns in the order of our embedding."""
    name = "time_embedding.linear_1.weight"
    return tensors | {name: _in_one_row(tensors[name])}


def _in_one_row(turns: torch.Tensor) -> torch.Tensor:
    """Columns sin, cos, sin, cos, ... as all sin, then all cos."""
    return torch.cat([turns[:, 0::2], turns[:, 1::2]], dim=1)


def _size(content: Content, options: Options) -> tuple[int, int]:
    """The size given, else that of the noise in the file from which previews are made, else the default."""
    noise = content.part("x_T")
    if options.size is not None or not isinstance(noise, torch.Tensor) or noise.ndim != 4:
        return options.size or SIZE
    return noise.shape[2], noise.shape[3]


def _provenance(content: Content, key: str | None) -> Provenance:
    step = content.part("step")
    # The script counts from 0, and saves after the step.
    done = step + 1 if isinstance(step, int) and 0 <= step < 2**40 else None
    return Provenance(done, None if key is None else key == "ema_model")


FORMAT = Format("w86763777/pytorch-ddpm", frozenset({"size"}), _recognises, _convert)
