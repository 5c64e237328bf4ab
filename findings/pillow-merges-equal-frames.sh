#!/bin/sh
# pillow: frames of an animation that are equal to the one before are not written.
#
# Expected: six frames that are saved are six frames when the file is read.
# Found: GIF, APNG and WebP files hold three where the six are red red blue blue blue red. The durations are added up, so it
# plays alike; but whoever counts frames or takes the n-th of them gets others than were written.
# Seen with pillow 13.0.0: 3 frames of 200, 300 and 100 ms in each format.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet pillow==13.0.0
"$folder/env/bin/python" - <<'PY'
import io
import sys

import PIL
from PIL import Image

frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "red", "blue", "blue", "blue", "red")]
unchanged = True
for kind, settings in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})):
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:], duration=100, **settings)
    image = Image.open(file)
    durations = []
    for number in range(image.n_frames):
        image.seek(number)
        image.load()
        durations.append(round(image.info["duration"]))
    print(f"pillow {PIL.__version__}: {kind}: 6 frames of 100 ms become {image.n_frames}, of {durations} ms")
    unchanged = unchanged and durations == [200, 300, 100]
if not unchanged:
    sys.exit("this has changed")
PY
