# ruff: noqa: S310, T201
"""Take the pictures of the README: the report of a run, and the run in Prefect's UI.

    make pictures    or    python docs/pictures/make.py [--store FOLDER] [--set train.steps=200]

Builds the demo recipe on a local stack of its own, on a free port, and stops it at the end. Needs chromium, whose
software renderer draws the graph of the run (WebGL).
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
COLORS = 64  # enough for a page, and a quarter of the bytes
LARGEST = 120_000  # bytes


def main() -> None:
    """Build, take both pictures, stop the stack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", help="keep artifacts here, and reuse them")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a value of the demo recipe")
    options = parser.parse_args()
    if CHROMIUM is None:
        sys.exit("chromium was not found; install it, or put it on PATH")
    settings = [argument for setting in options.set for argument in ("--set", setting)]
    with tempfile.TemporaryDirectory(prefix="qalam-pictures-") as folder, socket.socket() as probe:
        store = options.store or f"{folder}/store"
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
        probe.close()
        api = f"http://127.0.0.1:{port}/api"
        try:
            qalam("up", "demo", "--store", store, "--port", port)
            qalam("build", "demo", "--store", store, *settings, PREFECT_API_URL=api)
            run = flow_run(api)
            picture("run", f"http://127.0.0.1:{port}/runs/flow-run/{run}", 1280, 575, folder)
        finally:
            qalam("down", "--store", store)
        reports = sorted(Path(store, "runs").glob("*/report.html"), key=lambda path: path.stat().st_mtime)
        picture("report", reports[-1].resolve().as_uri(), 1000, 1300, folder)


def qalam(*arguments: str, **environment: str) -> None:
    """Run the command line."""
    program = "from al_qalam.flows.cli.main import main; main()"
    subprocess.run([sys.executable, "-c", program, *arguments], env={**os.environ, **environment}, check=True)


def flow_run(api: str) -> str:
    """The id of the last build that the server recorded."""
    query = {
        "flows": {"name": {"any_": ["build_model"]}},
        "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}},
        "sort": "END_TIME_DESC",
        "limit": 1,
    }
    request = urllib.request.Request(
        f"{api}/flow_runs/filter", json.dumps(query).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(json.load(answer)[0]["id"])


def picture(name: str, address: str, width: int, height: int, folder: str) -> None:
    """A screenshot of the top of a page once it is drawn, as docs/pictures/NAME.png in few colours."""
    raw = Path(folder, f"{name}.png")
    command = [
        str(CHROMIUM), "--headless=new", "--no-sandbox", "--hide-scrollbars", "--disable-dev-shm-usage",
        "--enable-unsafe-swiftshader", "--use-gl=angle", "--use-angle=swiftshader", "--lang=en",
        f"--user-data-dir={folder}/{name}", f"--window-size={width},{max(height, 900)}", "--virtual-time-budget=30000",
        "--timeout=60000", f"--screenshot={raw}", address,
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=180)
    file = HERE / f"{name}.png"
    with Image.open(raw) as image:
        top = image.crop((0, 0, width, height)).convert("RGB")
    top.quantize(COLORS, dither=Image.Dither.NONE).save(file, optimize=True)
    size = file.stat().st_size
    print(f"{file}: {size / 1000:.0f} kB")
    if size > LARGEST:
        sys.exit(f"{file}: more than {LARGEST / 1000:.0f} kB; show less of the page")


if __name__ == "__main__":
    main()
