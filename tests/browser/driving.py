"""A JupyterLab server with nobody's settings, and a notebook in it, driven as a reader drives it."""

import contextlib
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

# JupyterLab itself asks another site for news.
SILENT = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
FAILED = '.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"]:has-text("Traceback")'
PROMPTS = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(prompt => prompt.textContent)"


class Lab:
    """A server whose files lie in folder/work; `start_s` is how long it took to answer, in seconds."""

    def __init__(self, folder: Path):
        self.work, self.token, port = folder / "work", secrets.token_hex(), free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"]
        command += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={self.token}"]
        command += [f"--ServerApp.root_dir={self.work}", "--LabApp.extension_manager=readonly"]
        env = {**os.environ, **settings(folder / "home")}
        started, self.log = time.monotonic(), folder / "lab.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.work, env=env)
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > started + 60:
                self.stop()
                raise RuntimeError("JupyterLab did not start:\n" + self.log.read_text())
            time.sleep(0.1)
        self.start_s = time.monotonic() - started

    def api(self, path: str, method: str = "GET") -> object:
        """What the server's REST API answers; OSError where it does not."""
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(f"{self.url}/api/{path}", headers=headers, method=method)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
            return json.loads(answer.read() or "null")

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(self.api("status"))
        return False

    def end_kernels(self) -> None:
        for session in self.api("sessions"):
            self.api(f"sessions/{session['id']}", "DELETE")

    def interrupt_kernels(self) -> list[str]:
        """Interrupt what the kernels do; what they were at, as the server knows it."""
        kernels = self.api("kernels")
        for kernel in kernels:
            self.api(f"kernels/{kernel['id']}/interrupt", "POST")
        return [kernel["execution_state"] for kernel in kernels]

    def stop(self) -> None:
        self.process.terminate()  # the server ends its kernels
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def settings(home: Path) -> dict[str, str]:
    """Environment variables that keep a server, its kernels and their tools to the folder `home`."""
    labconfig = home / "config" / "labconfig"
    labconfig.mkdir(parents=True)
    (labconfig / "page_config.json").write_text(json.dumps(SILENT))
    names = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime"}
    names |= {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    names |= {"IPYTHONDIR": "ipython", "XDG_CONFIG_HOME": "xdg", "XDG_CACHE_HOME": "cache"}
    return {"HOME": str(home), **{name: str(home / folder) for name, folder in names.items()}}


class Notebook:
    """A notebook of the server's folder, open in a page; limits are in seconds."""

    def __init__(self, page, lab: Lab, path: Path):
        self.page, self.lab, self.opened = page, lab, time.monotonic()
        page.goto(f"{lab.url}/lab/tree/{path.relative_to(lab.work).as_posix()}?token={lab.token}&reset")
        page.locator(".jp-StatusBar-TextItem", has_text="| Idle").wait_for(timeout=60_000)  # its kernel has answered
        self.figures = page.locator(".jp-OutputArea-output img")

    def run_all(self) -> None:
        """Choose Run All Cells; again where the menu, drawn anew under the pointer, let the click fall."""
        begun = self.page.locator(".jp-CodeCell .jp-InputPrompt", has_text=re.compile(r"\[[*\d]"))
        for _ in range(3):
            self.page.get_by_role("menuitem", name="Run", exact=True).click()
            self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
            if self.until(begun.count, 10):
                return
        raise AssertionError(f"Run All Cells does not start: {self.state()}")

    def first_figure(self, limit: float) -> float:
        """Go to the first figure as soon as there is one; how long after opening it was on the screen."""
        figure = self.figures.first
        figure.wait_for(state="attached", timeout=1000 * limit)
        figure.scroll_into_view_if_needed()
        figure.wait_for(state="visible")
        return time.monotonic() - self.opened

    def finish(self, limit: float) -> None:
        """Wait until every cell has run, or one has failed; AssertionError with what can be known where none does."""
        ran = f"{PROMPTS}.length && {PROMPTS}.every(text => /\\[\\d+\\]/.test(text))"
        if not self.until(lambda: self.page.evaluate(ran) or self.errors(), limit):
            raise AssertionError(f"not through after {limit} s: {self.state()}")

    def until(self, true, limit: float) -> bool:
        """Wait until `true()`; whether it came to that within the limit."""
        end = time.monotonic() + limit
        while not (found := true()) and time.monotonic() < end:
            self.page.wait_for_timeout(100)
        return bool(found)

    def state(self) -> str:
        """Where a notebook stands that does not go on: its cells, its kernel, its dialogs, what it hangs in."""
        prompts = self.page.evaluate(PROMPTS)
        texts = self.page.locator(".jp-StatusBar-Left, .jp-Dialog").all_inner_texts()
        kernels = self.lab.interrupt_kernels()
        self.until(self.errors, 10)
        return f"cells {prompts}, {texts}, kernels {kernels}, {self.errors()}, log {self.lab.log.read_text()[-3000:]}"

    def rest(self, limit: float) -> None:
        """Wait until the kernel has nothing to do."""
        self.page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for(timeout=1000 * limit)

    def errors(self) -> list[str]:
        return self.page.locator(FAILED).all_text_contents()

    def photograph(self, path: Path) -> None:
        """The whole window, made so tall that no cell is left out."""
        first, last = self.page.locator(".jp-Cell").first, self.page.locator(".jp-Cell").last
        height = 0
        for _ in range(10):  # cells that come into view get their height only then
            before, top, bottom = height, first.bounding_box(), last.bounding_box()
            height = min(int(bottom["y"] + bottom["height"] - top["y"]) + 150, 16_000)  # Chromium's limit
            if height == before:
                break
            self.page.set_viewport_size({"width": 1280, "height": height})
            self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        first.scroll_into_view_if_needed()
        self.page.screenshot(path=path)
