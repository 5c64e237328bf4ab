"""Write the bundled data set: the 1,797 handwritten digits that scikit-learn ships, 8x8, as uint8.

    python tools/make_digits.py [FILE]

The same bytes every time, with the same zlib. FILE is src/ddpm_cli/builtin/digits.npz by default.
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

TARGET = Path(__file__).parents[1] / "src" / "ddpm_cli" / "builtin" / "digits.npz"
ATTRIBUTION = (
    "Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning Repository "
    "(https://archive.ics.uci.edu), licensed under CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/). "
    "These are the 1,797 images of its test part, as scikit-learn ships them, their 17 levels of grey scaled to 0..255."
)


def make_digits() -> bytes:
    """The file's content: ``images`` uint8 (1797, 8, 8, 1), ``labels`` uint8 (1797,) and ``attribution``, a text."""
    digits = load_digits()
    arrays = {
        "images": np.rint(digits.images * 255 / 16).astype(np.uint8)[..., None],
        "labels": digits.target.astype(np.uint8),
        "attribution": np.array(ATTRIBUTION),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.save(content, array, allow_pickle=False)
            member = zipfile.ZipInfo(f"{name}.npy")  # dated 1980, so that no clock gets into the bytes
            member.create_system, member.external_attr = 3, 0o644 << 16
            archive.writestr(member, content.getvalue(), zipfile.ZIP_DEFLATED, 9)
    return buffer.getvalue()


if __name__ == "__main__":
    target = Path(sys.argv[1]) if sys.argv[1:] else TARGET
    target.write_bytes(make_digits())
    print(target)
