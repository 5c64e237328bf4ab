"""For a cog block of the documentation: the table of samplers, from the registry that the program reads."""

from __future__ import annotations

from ddpm_cli.diffusion.samplers import SAMPLERS


def table() -> str:
    """The samplers as a Markdown table."""
    lines = [
        "| `--sampler` | what it is | default `--steps` | default `--spacing` | its own options |",
        "|---|---|---|---|---|",
    ]
    for name, sampler in SAMPLERS.items():
        own = ", ".join(f"`--{setting.name.replace('_', '-')}`" for setting in sampler.settings)
        lines.append(f"| `{name}` | {sampler.about} | {sampler.steps or 'all T'} | `{sampler.spacing}` | {own} |")
    return "\n".join(lines)


def insert_samplers() -> None:
    """Write the table into the page that cog is working on."""
    import cog  # there only while cog runs

    cog.outl(table())
