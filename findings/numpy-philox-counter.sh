#!/bin/sh
# numpy: Philox(counter=c) begins with the block of counter c + 1.
#
# Expected: the first words of Philox(key=0, counter=0) are the published known answer for a key and counter of zeros
# (Random123, philox4x64-10): 16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b.
# Found: numpy adds 1 to the counter before it computes a block. The published answer comes from the counter 2^256 - 1.
# Whoever reimplements a stream of numpy's must add 1, too.
# Seen with numpy 2.4.6: counter 0 gives 02f4ba6408e4d89b ..., counter 2^256 - 1 gives 16554d9eca36314c ...
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet numpy==2.4.6
"$folder/env/bin/python" - <<'PY'
import sys

import numpy as np

known = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
zero, last = (np.random.Philox(key=0, counter=counter).random_raw(4).tolist() for counter in (0, 2**256 - 1))
for name, words in (("0", zero), ("2^256 - 1", last)):
    print(f"numpy {np.__version__}: counter {name}: " + " ".join(f"{word:016x}" for word in words))
if zero == known or last != known:
    sys.exit("this has changed")
PY
