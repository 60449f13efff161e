"""Open every notebook in a real JupyterLab in a real Chromium, run all, look at what is drawn.

A notebook passes if it comes to rest without an error, and every Plotly figure and every NiiVue
view in it has drawn something. Pictures of the whole of each are kept in ``notebooks/pictures/``.
Chromium is looked for as `chromium` or in ``BROWSER_PATH``.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).resolve().parent
PICTURES = HERE / "pictures"
FLAGS = (
    "--no-sandbox",
    "--no-first-run",
    "--disable-background-networking",
    # WebGL without a graphics card
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
)
LONGEST = 600
"""Seconds for one notebook."""
CODE_CELLS = ".jp-Notebook .jp-CodeCell"
WAITING = """() => [...document.querySelectorAll('.jp-InputArea-prompt')]
    .some(each => each.textContent.includes('*'))"""
SCREEN = 3000
"""Pixels of a notebook on one picture."""
SCROLLED = """top => {
    const shown = document.querySelector('.jp-NotebookPanel:not(.lm-mod-hidden)');
    const outer = shown.querySelector('.jp-WindowedPanel-outer');
    outer.scrollTop = top;
    return outer.scrollHeight;
}"""


def main() -> int:
    """Run all; print each with what was found in it, and how many there were."""
    chromium = os.environ.get("BROWSER_PATH") or shutil.which("chromium")
    if chromium is None:
        print(
            "Chromium is not on this machine: install it, or name it in BROWSER_PATH",
            file=sys.stderr,
        )
        return 1
    os.environ.setdefault("QUICK", "1")
    PICTURES.mkdir(exist_ok=True)
    paths = sorted(HERE.glob("*.ipynb"))
    with _jupyter() as address, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=list(FLAGS))
        failed = []
        for path in paths:
            page = browser.new_page(viewport={"width": 1280, "height": 1000})
            problems = _run(page, f"{address}/lab/tree/{path.name}?reset", path.stem)
            page.close()
            print(f"{path.name}: {'; '.join(problems) or 'ok'}", flush=True)
            failed += [path.name] if problems else []
        browser.close()
    print(f"{len(paths)} notebooks, pictures in {PICTURES}, failed: {', '.join(failed) or 'none'}")
    return 1 if failed or not paths else 0


@contextmanager
def _jupyter() -> Iterator[str]:
    """A server on copies of the notebooks, so that saving changes nothing here; its address."""
    with TemporaryDirectory() as folder:
        work = Path(folder) / "notebooks"
        shutil.copytree(
            HERE, work, ignore=shutil.ignore_patterns("executed", "pictures", "__pycache__")
        )
        (Path(folder) / "kernels").symlink_to(HERE.parent / "kernels")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [
            sys.executable,
            "-m",
            "jupyter",
            "lab",
            "--no-browser",
            "--allow-root",
            f"--port={port}",
        ]
        command += ["--ip=127.0.0.1", "--IdentityProvider.token=", f"--ServerApp.root_dir={work}"]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(address)
            yield address
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)


def _wait_for(address: str) -> None:
    for _ in range(120):
        try:
            with urllib.request.urlopen(f"{address}/api", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise SystemExit("JupyterLab did not start within a minute")


def _run(page: Page, address: str, name: str) -> list[str]:
    """Run all cells of one notebook; what is wrong with it."""
    page.goto(address)
    page.wait_for_selector(CODE_CELLS, timeout=60_000)
    page.wait_for_selector(".jp-NotebookPanel-toolbar", timeout=60_000)
    page.add_style_tag(content=".Toastify {display: none}")  # the question about news
    time.sleep(2)  # the kernel is being started
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    page.wait_for_function(WAITING, timeout=60_000)
    page.wait_for_function(f"() => !({WAITING})()", timeout=LONGEST * 1000)
    time.sleep(3)  # figures are drawn
    problems = [
        f"error: {found.inner_text()[:200]}"
        for found in page.locator(".jp-RenderedText[data-mime-type*=error]").all()
    ]
    problems += _undrawn(page)
    _pictures(page, name)
    return problems


def _undrawn(page: Page) -> list[str]:
    """Figures and views that hold nothing. Lab draws what is seen: each cell comes into view."""
    problems, figures, views = [], 0, 0
    for cell in page.locator(CODE_CELLS).all():
        cell.scroll_into_view_if_needed()
        time.sleep(0.3)
        for figure in cell.locator(".js-plotly-plot").all():
            figures += 1
            if not figure.locator("svg.main-svg").count():
                problems.append(f"Plotly figure {figures} is empty")
        for canvas in cell.locator(".jp-OutputArea canvas[height]").all():
            if canvas.locator("xpath=ancestor::*[contains(@class,'js-plotly-plot')]").count():
                continue
            views += 1
            size = canvas.evaluate("each => each.width * each.height")
            if not size:
                problems.append(f"view {views} has no pixels")
    print(f"  {figures} figures, {views} views", flush=True)
    return problems if figures or views else [*problems, "nothing is drawn"]


def _pictures(page: Page, name: str) -> None:
    """The whole notebook, screen by high screen: Lab renders only what is near the screen."""
    page.set_viewport_size({"width": 1280, "height": SCREEN + 200})
    time.sleep(2)
    top, number = 0, 0
    while top < int(page.evaluate(SCROLLED, top)):
        time.sleep(2)
        page.screenshot(path=PICTURES / f"{name}_{number}.png")
        top, number = top + SCREEN, number + 1


if __name__ == "__main__":
    sys.exit(main())
