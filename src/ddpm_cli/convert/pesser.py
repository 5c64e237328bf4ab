"""pesser/pytorch_diffusion: the paper's own weights, carried over from TensorFlow. Bare state dicts (``.ckpt``).

The same names stand in what was built on it. The network is the paper's: one head, norms with 1e-6, rows of zeros below
and right only where it halves, sin before cos, frequencies up to 1 / 10,000 included.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from ..checkpoint import Provenance
from ..config import DiffusionConfig
from ..errors import InputError
from .assemble import finish, measure, network, rename, residual
from .format import Content, Converted, Format, Options

RESIDUAL = {
    "norm1": "norm1",
    "conv1": "conv1",
    "temb_proj": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "nin_shortcut": "conv_shortcut",
}
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
OUTSIDE = {
    "temb.dense.0": "time_embedding.linear_1",
    "temb.dense.1": "time_embedding.linear_2",
    "conv_in": "conv_in",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
    **residual("mid.block_1", "mid_block.resnets.0", RESIDUAL),
    **residual("mid.attn_1", "mid_block.attentions.0", ATTENTION),
    **residual("mid.block_2", "mid_block.resnets.1", RESIDUAL),
}
CIFAR10_SIZE = (32, 32)


def _recognises(content: Content) -> bool:
    return {"temb.dense.0.weight", "down.0.block.0.conv1.weight"} <= content.tensors.keys()


def _convert(content: Content, options: Options) -> Converted:
    where = content.where
    tensors = rename(where, content.tensors, _modules(content.tensors))
    measures = measure(where, tensors)
    size = options.size
    if size is None:
        if len(measures.attending) != 1:
            raise InputError(f"{where} does not say the size of its images; give it with `size`")
        size = (16 * 2 ** measures.attending[0],) * 2  # the paper's networks attend at 16x16, and only there
    unet = network(
        measures,
        size,
        attention_head_dim=None,
        norm_eps=1e-6,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
    )
    # The paper's choices, by which its samples were made: sigma_t^2 = beta_t for CIFAR-10, beta_tilde_t for 256x256.
    diffusion = DiffusionConfig(variance="fixed-large" if size == CIFAR10_SIZE else "fixed-small")
    return Converted(unet, diffusion, finish(where, tensors, unet), _provenance(content))


def _modules(names: Iterable[str]) -> dict[str, str]:
    """For each of their modules its name with us. Their ``up.0`` is the finest level, ours the coarsest."""
    modules = dict(OUTSIDE)
    places = {match[0] for name in names if (match := re.match(r"(down|up)\.(\d{1,2})\.(block|attn)\.(\d{1,2})", name))}
    places |= {match[0] for name in names if (match := re.match(r"(down|up)\.(\d{1,2})\.(downsample|upsample)", name))}
    levels = 1 + max((int(place.split(".")[1]) for place in places), default=0)
    for place in places:
        way, level, kind, *layer = place.split(".")
        ours = f"down_blocks.{level}" if way == "down" else f"up_blocks.{levels - 1 - int(level)}"
        if kind == "block":
            modules |= residual(place, f"{ours}.resnets.{layer[0]}", RESIDUAL)
        elif kind == "attn":
            modules |= residual(place, f"{ours}.attentions.{layer[0]}", ATTENTION)
        else:
            modules[f"{place}.conv"] = f"{ours}.{kind}rs.0.conv"
    return modules


def _provenance(content: Content) -> Provenance:
    """What the published files' names say: ``[ema_]diffusion_<data>_model/model-<step>.ckpt``."""
    name = f"{content.path.absolute().parent.name}/{content.path.name}"
    provenance = Provenance()
    if match := re.search(r"model-(\d{1,12})\.\w+$", name):
        provenance = replace(provenance, step=int(match[1]))
    if match := re.search(r"(ema_)?diffusion_\w+_model", name):
        provenance = replace(provenance, average=match[1] is not None)
    return provenance


FORMAT = Format("pesser/pytorch_diffusion", frozenset({"size"}), _recognises, _convert)
