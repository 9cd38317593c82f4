# SPDX-License-Identifier: Apache-2.0
"""The report of the CartPole policy as a picture, docs/report.png: the page that the commands below write, in a browser.

Chromium takes it; Pillow, which matplotlib brings, cuts the empty end off and keeps few colours, so that it stays small.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from demo import type_in
from PIL import Image, ImageChops

POLICY = Path("benchmarks/policies/cartpole")
BUILD = Path("build")
PICTURE = Path("docs/report.png")
WIDTH, TALLEST = 1280, 9000
COLOURS = 128
LARGEST_BYTES = 400_000


def main() -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("no chromium to take a picture with; apt-get install chromium")
    BUILD.mkdir(exist_ok=True)
    library, project, page = f"{BUILD}/cartpole.tar", f"{BUILD}/cartpole", BUILD / "cartpole.html"
    type_in(f"compile {POLICY}.onnx --target cortex-m55 --calibration {POLICY}.npz -o {library}")
    type_in(f"micro create {project} {library} baremetal --project-option board=mps3-an547 -f")
    devices = f"--device micro:{project} --device cpu"
    type_in(f"bench {library} {devices} --env CartPole-v1 --episodes 20 --policy {POLICY}.onnx -o {page}")
    picture = trimmed(photographed(chromium, page)).quantize(COLOURS)
    picture.save(PICTURE, optimize=True)
    size = PICTURE.stat().st_size
    if size > LARGEST_BYTES:
        sys.exit(f"'{PICTURE}' has {size:,} B, over {LARGEST_BYTES:,}")
    print(f"wrote '{PICTURE}', {picture.width} x {picture.height}, {size:,} B")


def photographed(chromium: str, page: Path) -> Image.Image:
    with tempfile.TemporaryDirectory() as folder:
        taken = Path(folder, "page.png")
        options = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}/user")
        window = (f"--window-size={WIDTH},{TALLEST}", f"--screenshot={taken}")
        subprocess.run([chromium, *options, *window, page.resolve().as_uri()], check=True, capture_output=True)
        with Image.open(taken) as picture:
            return picture.convert("RGB")


def trimmed(picture: Image.Image) -> Image.Image:
    """Without the empty end, but for a margin as at the top."""
    paper = Image.new("RGB", picture.size, picture.getpixel((0, 0)))
    box = ImageChops.difference(picture, paper).getbbox()
    assert box is not None
    _, top, _, bottom = box
    return picture.crop((0, 0, picture.width, min(picture.height, bottom + top)))


if __name__ == "__main__":
    main()
