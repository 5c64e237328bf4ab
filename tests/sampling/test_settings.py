"""The table of samplers is the one place that knows them: settings, options, help, PNGs and docs read it."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from ddpm_cli.cli import group
from ddpm_cli.diffusion.process import Diffusion
from ddpm_cli.diffusion.samplers import SAMPLERS, Sampler, Setting, Step, ddim
from ddpm_cli.errors import ArgumentError
from ddpm_cli.sampling.settings import Sampling

if TYPE_CHECKING:
    from ddpm_cli.diffusion.samplers import Noise

CPU = ("--device", "cpu", "--precision", "fp32")


def test_settings_that_make_no_sense_are_refused() -> None:
    wrong: list[tuple[dict[str, Any], list[str]]] = [
        ({"sampler": "euler"}, ["`sampler`", "'euler'", *SAMPLERS]),
        ({"eta": 0.5}, ["`eta`", "`sampler=ddim`"]),
        ({"sampler": "dpm++", "eta": 0.0}, ["`eta`", "`sampler=ddim`", "`sampler=dpm++`"]),
        ({"sampler": "ddim", "snr": 0.1}, ["`snr`", "`sampler=langevin`"]),
        ({"corrector_steps": 2}, ["`corrector_steps`", "`sampler=langevin`"]),
        ({"sampler": "ddim", "etta": 0.1}, ["`etta`"]),
        ({"sampler": "langevin", "corrector_steps": 0}, ["`corrector_steps` is 0", "at least 1"]),
        ({"sampler": "langevin", "corrector_steps": 1.5}, ["`corrector_steps` is 1.5", "whole"]),
        ({"sampler": "langevin", "corrector_steps": True}, ["`corrector_steps` is True"]),
        ({"sampler": "langevin", "snr": 0.0}, ["`snr` is 0.0", "above 0"]),
        ({"sampler": "langevin", "snr": math.nan}, ["`snr` is nan"]),
        ({"sampler": "ddim", "eta": -0.1}, ["`eta` is -0.1", "from 0 to 1"]),
        ({"sampler": "ddim", "eta": 1.5}, ["`eta` is 1.5"]),
        ({"sampler": "ddim", "eta": math.nan}, ["`eta` is nan"]),
        ({"sampler": "ddim", "eta": "1"}, ["`eta` is 1"]),
        ({"spacing": "even"}, ["`spacing`", "'even'"]),
        ({"steps": 3, "timesteps": (5, 3)}, ["`timesteps`", "`steps`"]),
        ({"spacing": "quad", "timesteps": (5, 3)}, ["`timesteps`", "`spacing`"]),
    ]
    for settings, words in wrong:
        with pytest.raises(ArgumentError) as caught:
            Sampling(**settings)
        assert all(word in str(caught.value) for word in words), (settings, caught.value)


def test_what_was_given_is_kept_and_what_was_not_is_the_default() -> None:
    given = Sampling("langevin", steps=7, snr=0.1, seed=3)
    assert given.settings == {"corrector_steps": 1, "snr": 0.1}
    assert given.to_json() == {"sampler": "langevin", "steps": 7, "snr": 0.1, "seed": 3}
    assert Sampling(**given.to_json()) == given
    assert given != Sampling("langevin", steps=7, snr=0.2, seed=3)
    assert Sampling("ddim", eta=1).settings == {"eta": 1}
    assert [Sampling("ddim", eta=eta).is_random for eta in (None, 0.0, 0.5)] == [False, False, True]
    assert [Sampling(name).is_random for name in ("ddpm", "langevin", "dpm++")] == [True, True, False]


def dimmed(
    d: Diffusion, denoiser: Any, x_T: torch.Tensor, noise: Noise, dimming: float = 0.0, eta: float = 1.0
) -> Iterator[Step]:
    """DDIM whose images are darker."""
    for step in ddim(d, denoiser, x_T, noise, eta):
        yield replace(step, x_t=step.x_t - dimming) if step.t == 0 else step


def test_a_new_sampler_with_settings_of_its_own_is_one_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_run: Path
) -> None:
    own = Setting("dimming", 0.25, 0, 2, "How much darker images are."), Setting("eta", 0.5, 0, 2, "Noise.")
    monkeypatch.setitem(SAMPLERS, "toy", Sampler("toy", dimmed, "a toy", steps=3, spacing="trailing", settings=own))
    # The options of a command are made when its module is imported.
    monkeypatch.setitem(sys.modules, "ddpm_cli.cli.sample", sys)  # so that what is imported now goes in the end
    del sys.modules["ddpm_cli.cli.sample"]
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> str:
        done = CliRunner().invoke(group, [*args], prog_name="ddpm", standalone_mode=False)
        return str(done.exception or done.output)

    text = " ".join(run("sample", "--help").split())
    for words in ("toy: a toy", "toy: 3", "toy: trailing", "[default: 0.25; from 0 to 2]", "toy: Noise."):
        assert words in text
    make = ("sample", "-m", str(tiny_run), "-n", "2", *CPU)
    assert run(*make, "--sampler", "toy", "-o", "bright.png", "--dimming", "0").endswith("\nbright.png\n")
    run(*make, "--sampler", "toy", "-o", "dark.png", "--dimming", "1.5", "--eta", "0.1")
    run("sample", "--like", "dark.png", "-o", "again.png", "--device", "cpu")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "dark.png").read_bytes()
    run("sample", "--like", "dark.png", "-o", "bright-again.png", "--dimming", "0", "--device", "cpu")
    means = {name: sum(Image.open(tmp_path / f"{name}.png").convert("L").tobytes()) for name in ("bright", "dark")}
    assert means["dark"] < means["bright"]
    for given, words in (
        (("--sampler", "toy", "--dimming", "3"), ["--dimming is 3", "from 0 to 2"]),
        (("--sampler", "ddim", "--dimming", "1"), ["--dimming", "--sampler toy"]),
        (("--sampler", "ddpm", "--eta", "1"), ["--sampler ddim or --sampler toy"]),
        (("--sampler", "ddim", "--eta", "2"), ["--eta is 2", "from 0 to 1"]),
    ):
        message = run(*make, *given, "-o", "x.png")
        assert all(word in message for word in words), message
