#!/bin/sh
# torch: `normal_` of fewer than 16 numbers on a CPU is another algorithm than of 16 or more.
#
# Expected: with one seed, the numbers of a longer draw begin with those of a shorter one, or at least do so in the same way
# for every length.
# Found: draws of up to 15 numbers begin alike; one of 16 is a different sequence from the first number on. Beyond 16, the
# last 16 numbers are drawn anew where the length is no multiple of 16, so that 17 numbers do not begin with those of 16.
# Seen with torch 2.13.0: 15 numbers begin with 1.541, 16 with -1.126; 16 go on with -1.152, 17 with -1.696.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PY'
import sys

import torch


def draw(count):
    return torch.empty(count).normal_(generator=torch.Generator().manual_seed(0)).tolist()


print(f"torch {torch.__version__}")
for count in (14, 15, 16, 17, 32, 48):
    print(f"{count} numbers: " + " ".join(f"{number:.3f}" for number in draw(count)[:4]) + " ...")
regular = draw(14) == draw(15)[:14] and draw(32) == draw(48)[:32]
irregular = draw(15)[0] != draw(16)[0] and draw(16) != draw(17)[:16]
if not (regular and irregular):
    sys.exit("this has changed")
PY
