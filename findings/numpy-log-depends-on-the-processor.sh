#!/bin/sh
# numpy: the logarithm and the sine of the same number differ in their last bit from processor to processor.
#
# Expected: one version of numpy gives the same bits on every x86-64 processor.
# Found: log, exp, sin and others have several implementations, one of which is chosen by the instructions that the processor
# has (AVX2, AVX-512). Their results are within the promised error, but not the same. sqrt, which IEEE 754 defines to the
# last bit, is the same. Here numpy is told to do without the instructions beyond its baseline.
# Seen with numpy 2.4.6 on a processor with AVX-512: log differs in float32 and float64, sin in float32; sqrt does not.
# Exits with 77 where the processor has no instructions to do without.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet numpy==2.4.6
cat > "$folder/compare.py" <<'PY'
import os
import subprocess
import sys

import numpy as np

if len(sys.argv) == 1:
    extensions = np.show_config("dicts")["SIMD Extensions"].get("found", [])
    if not extensions:
        print("nothing to compare: this processor has the baseline alone")
        sys.exit(77)
    outputs = []
    for disabled in ("", " ".join(extensions)):
        environment = {**os.environ, "NPY_DISABLE_CPU_FEATURES": disabled}
        command = [sys.executable, sys.argv[0], "bits"]
        outputs.append(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.split())
    same = {name: a == b for name, a, b in zip(("log", "sin", "log of float64", "sqrt"), *outputs, strict=True)}
    print(f"numpy {np.__version__}, with and without {', '.join(extensions)}: the same bits? {same}")
    sys.exit(None if same["sqrt"] and not (same["log"] and same["sin"]) else "this has changed")

import hashlib

x = np.linspace(0.001, 80, 1_000_001)
for result in (np.log(x.astype(np.float32)), np.sin(x.astype(np.float32)), np.log(x), np.sqrt(x.astype(np.float32))):
    print(hashlib.sha256(result.tobytes()).hexdigest())
PY
"$folder/env/bin/python" "$folder/compare.py"
