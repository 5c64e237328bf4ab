#!/bin/sh
# torch: the CPU's group norm of a channels_last tensor loses its digits where the mean is large.
#
# Expected: float32 in both memory layouts is exact to about 1e-6 where the mean is 100 and the standard deviation 1, and
# to about 1e-4 where the mean is 1000: the input itself has no more digits.
# Found: that holds for contiguous tensors. In channels_last the variance is computed as E[x^2] - E[x]^2, whose error grows
# with the square of the mean. The size of the image matters little.
# Seen with torch 2.13.0 (x86-64): mean 100: contiguous 9e-06, channels_last 0.03; mean 1000: 1e-04 and more than 1000.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PY'
import sys

import torch

noise = torch.randn(2, 128, 32, 32, generator=torch.Generator().manual_seed(0))
errors = {}
for mean in (0, 100, 1000):
    x = noise + mean
    exact = torch.nn.functional.group_norm(x.double(), 32)
    for layout in (torch.contiguous_format, torch.channels_last):
        y = torch.nn.functional.group_norm(x.contiguous(memory_format=layout), 32)
        errors[mean, layout] = (y.double() - exact).abs().max().item()
        print(f"torch {torch.__version__}: mean {mean}, {layout}: largest error {errors[mean, layout]:.1g}")
contiguous = all(errors[mean, torch.contiguous_format] < 1e-3 for mean in (0, 100, 1000))
cancels = errors[0, torch.channels_last] < 1e-4 and errors[100, torch.channels_last] > 1e-3
if not (contiguous and cancels and errors[1000, torch.channels_last] > 1):
    sys.exit("this has changed")
PY
