"""Make the pictures of docs/gallery.md again, by the commands that stand there.

    python tools/gallery.py

The page is the only list: its lines of ``$ ...`` are run one after the other in a temporary folder, and each file that
it shows from docs/images/gallery is copied from there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "gallery.md"
PICTURES = DOCS / "images" / "gallery"
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """What the page tells a user to run, in its order."""
    text = PAGE.read_text("utf-8")
    lines = [line for block in BLOCK.findall(text) for line in block.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def shown() -> list[str]:
    """The names of the pictures that the page shows, in its order."""
    return re.findall(r"\]\(images/gallery/([^)]+)\)", PAGE.read_text("utf-8"))


def main() -> None:
    """Run the commands as a user of this interpreter's program, and replace the pictures once all are made."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("DDPM_")}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
    env["NO_COLOR"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        env["DDPM_CACHE"] = str(Path(folder) / ".cache")
        for command in commands():
            print(f"$ {command}", flush=True)
            began = time.monotonic()
            done = subprocess.run(command, shell=True, cwd=folder, env=env, stdin=subprocess.DEVNULL)
            if done.returncode:
                raise SystemExit(f"it ended with {done.returncode}; no picture was replaced")
            print(f"({time.monotonic() - began:.0f} s)", flush=True)
        if missing := [name for name in shown() if not (Path(folder) / name).is_file()]:
            raise SystemExit(f"no command of {PAGE.name} makes {', '.join(missing)}; no picture was replaced")
        PICTURES.mkdir(parents=True, exist_ok=True)
        for picture in PICTURES.iterdir():
            picture.unlink()
        for name in shown():
            shutil.copyfile(Path(folder) / name, PICTURES / name)


if __name__ == "__main__":
    main()
