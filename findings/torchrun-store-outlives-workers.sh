#!/bin/sh
# torchrun: workers that are started again find in the store what those before them left there.
#
# Expected: a restart begins with an empty store, so that the new workers' meeting cannot mix with the old one.
# Found: the store at MASTER_ADDR:MASTER_PORT belongs to torchrun itself and outlives the workers. Whatever they wrote under
# fixed names, such as the addresses that they listened at, is still there after --max-restarts has started new ones, and
# names processes that are dead.
# Seen with torch 2.13.0: life 1 finds "written by life 0".
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$folder/worker.py" <<'PY'
import os
import sys
from datetime import timedelta

import torch
from torch.distributed import TCPStore

address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=60))
life = os.environ["TORCHELASTIC_RESTART_COUNT"]
found = store.get("note").decode() if store.check(["note"]) else "nothing"
print(f"torch {torch.__version__}: life {life} finds: {found}", flush=True)
if life == "0":
    store.set("note", "written by life 0")
    sys.exit(1)  # so that it is started again
sys.exit(0 if found == "written by life 0" else 1)
PY
# Once: if life 1 finds nothing, it fails, and torchrun with it.
if ! "$folder/env/bin/torchrun" --nnodes 1 --nproc-per-node 1 --max-restarts 1 "$folder/worker.py" 2> "$folder/log"; then
    echo "this has changed, or torchrun could not run:" >&2
    tail -n 20 "$folder/log" >&2
    exit 1
fi
