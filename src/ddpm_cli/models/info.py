"""What a model is, where it came from, and how far that can be known."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..checkpoint import MANIFEST, StoredModel, verify
from ..network.unet import flops, parameter_count
from .facts import facts
from .model import ready
from .published import PUBLISHED, TOLERANCE, Published, difference


@dataclass(frozen=True)
class Verification:
    """How a network's outputs compare with those that were published for it."""

    largest_difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether it is the published network."""
        return self.largest_difference <= self.tolerance


@dataclass(frozen=True)
class Info:
    """All that is said of a model.

    Args:
        weights: what they are, and how we know.
        files: bytes of all its files; ``checked`` says against what they were compared.
        flops: of one forward pass for one image.
        warnings: what a user should know before using it.
    """

    stored: StoredModel
    parameters: int
    flops: int
    weights: str
    files: int
    checked: str
    warnings: tuple[str, ...]
    verification: Verification | None = None

    def to_json(self) -> dict[str, Any]:
        """The content of ``--json``."""
        stored = self.stored
        data: dict[str, Any] = {
            "model": stored.source,
            "folder": str(stored.folder),
            "parameters": self.parameters,
            "flops": self.flops,
            "bytes": self.files,
            "checked": self.checked,
            "weights": self.weights,
            **asdict(stored.provenance),
            "unet": stored.unet.to_json(),
            "diffusion": stored.diffusion.to_json(),
            "warnings": list(self.warnings),
        }
        if self.verification is not None:
            data["verification"] = {**asdict(self.verification), "passed": self.verification.passed}
        return data

    def to_rows(self) -> list[tuple[str, str]]:
        """Names and values for people."""
        stored = self.stored
        rows = [
            ("model", stored.source),
            ("folder", str(stored.folder)),
            *facts(stored.unet, stored.diffusion, stored.provenance).rows(),
            ("cost", f"{self.flops / 1e9:.2f} GFLOP an image, one forward pass"),
            ("weights", self.weights),
            ("files", f"{self.files:,} bytes; {self.checked}"),
        ]
        if self.verification is not None:
            how = "as published" if self.verification.passed else "NOT as published"
            rows.append(("outputs", f"{how}: largest difference {self.verification.largest_difference:.2g}"))
        return [(name, value) for name, value in rows if value is not None]


def examine(stored: StoredModel, *, outputs: bool) -> Info:
    """What is known of a model.

    Args:
        outputs: compare the network's outputs with those published for it, where there are some.

    Raises:
        InputError: its files do not agree with their manifest.
    """
    # What is known of a published network is said of one that came from there, or that computes the same.
    published = PUBLISHED.get((stored.provenance.origin or "").partition("@")[0])
    verification = None
    if outputs and published:
        unet = ready(stored, device="cpu", precision="fp32").denoiser.unet
        verification = Verification(difference(published, unet), TOLERANCE)
    if not (verification.passed if verification else stored.checked is not None):
        published = None
    folder = stored.folder
    return Info(
        stored=stored,
        parameters=parameter_count(stored.unet),
        flops=flops(stored.unet, stored.unet.size),
        weights=_weights(stored, published),
        files=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder else 0,
        checked=_checked(stored),
        warnings=(published.remark,) if published and published.remark else (),
        verification=verification,
    )


def _weights(stored: StoredModel, published: Published | None) -> str:
    average, how = stored.provenance.average, "says its ddpm.json"
    if average is None and published:
        average, how = published.average, "by its name, and what is known of it"
    if average is None:
        return "not known whether they are the EMA: its files do not say"
    return f"{'EMA' if average else 'raw'}, {how}"


def _checked(stored: StoredModel) -> str:
    if stored.folder is None:
        return "made in memory"
    if (stored.folder / MANIFEST).is_file():
        verify(stored.folder)
        return f"all agree with {MANIFEST}"
    if stored.checked is not None:
        return stored.checked
    return "no digests to compare them with; tensors are of the right names, shapes and sizes"
