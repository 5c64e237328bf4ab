#!/bin/sh
# torch: adding to a view in place makes the gradient copy more than adding out of place.
#
# Expected: `y += x` saves memory and time against `y = y + x`, or costs nothing.
# Found: where y is a view (of unflatten and permute, say), autograd writes the gradient into a tensor of the whole base's
# size, copies it there, copies the part back and clones it: three copies and one cleared tensor more for each addition, in
# the backward pass alone.
# Seen with torch 2.13.0: in place 3 copies, 1 clone and 1 new tensor of zeros; out of place 1 copy.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PY'
import sys
from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.called = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.called[str(function)] += 1
        return function(*args, **(kwargs or {}))


def copies(in_place):
    weight = torch.randn(64, 64, requires_grad=True)
    y = (torch.randn(2, 64, 64, requires_grad=True) @ weight).unflatten(1, (8, 8)).permute(0, 3, 1, 2)
    x = torch.randn(2, 64, 8, 8, requires_grad=True)
    if in_place:
        y += x
    else:
        y = y + x
    total = y.sum()
    with Recorder() as recorder:
        total.backward()
    names = ("aten.copy_.default", "aten.clone.default", "aten.new_zeros.default")
    found = {name: recorder.called[name] for name in names}
    print(f"torch {torch.__version__}: {'in place' if in_place else 'out of place'}: {found}")
    return sum(found.values())


if copies(in_place=True) < copies(in_place=False) + 2:
    sys.exit("this has changed")
PY
