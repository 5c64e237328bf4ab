#!/bin/sh
# pillow: `convert("L")` of a grey image of 16 bits clips what is above 255.
#
# Expected: a conversion from 16 to 8 bits keeps the picture: 65535 becomes 255, 32768 becomes 128.
# Found: levels up to 255 stay as they are and all others become 255, so that nearly every picture turns white; no warning.
# The same goes for `convert("RGB")`.
# Seen with pillow 13.0.0: 0 255 256 32768 65535 become 0 255 255 255 255.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet pillow==13.0.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PY'
import io
import sys

import numpy as np
import PIL
from PIL import Image

levels = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
file = io.BytesIO()
Image.fromarray(levels).save(file, "PNG")
image = Image.open(file)
grey, colour = np.asarray(image.convert("L")), np.asarray(image.convert("RGB"))
print(f"pillow {PIL.__version__}: mode {image.mode}: {levels[0].tolist()} become {grey[0].tolist()}")
print(f"and in RGB {colour[0, :, 0].tolist()}")
clipped = [0, 255, 255, 255, 255]
if grey[0].tolist() != clipped or colour[0, :, 0].tolist() != clipped:
    sys.exit("this has changed")
PY
