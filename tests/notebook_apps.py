"""Where a notebook is run and looked at: JupyterLab, and VS Code as `tests/vscode/setup.sh` installs it. The tests of the widgets are the same in both."""
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

import nbformat
import pytest

TIMEOUT_S, TOKEN = 40, secrets.token_hex(16)
QUIET = {"@jupyterlab/apputils-extension:notification": dict(fetchNews="false", checkForUpdates=False),
         "@jupyterlab/notebook-extension:tracker": dict(windowingMode="none")}   # all cells are in the page, even those out of sight
SETTINGS = {"security.workspace.trust.enabled": False, "workbench.startupEditor": "none", "telemetry.telemetryLevel": "off", "window.autoDetectColorScheme": True,
            "files.autoSave": "off", "workbench.editorAssociations": {"*.ipynb": "jupyter-notebook"}}


def wait(ask, expected=bool, log=None, timeout=TIMEOUT_S):
    "What `ask` returns, once it is as expected"
    end, found = time.monotonic() + timeout, None
    while time.monotonic() < end:
        try:
            if expected(found := ask()): return found
        except OSError as e: found = e
        time.sleep(.05)
    pytest.fail(f"It never came to that. Last: {found}\n{log.read_text()[-2000:] if log else ''}")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class JupyterLab:
    "The notebook as it is, without its outputs, all cells run"
    def __init__(self, notebook, folder):
        self.folder, self.cells, self.servers = folder, notebook.cells, []
        for cell in self.cells:
            if cell.cell_type == "code": cell.outputs, cell.execution_count = [], None
        self.work = folder/"work"
        self.work.mkdir()
        nbformat.write(self.reduced(notebook), self.work/"widgets.ipynb")

    def reduced(self, notebook): return notebook

    def serve(self, name, command, status, **env):
        "Start a server, and wait until it answers"
        with open(self.folder/f"{name}.log", "w") as log: self.servers.append(subprocess.Popen(command, env=dict(os.environ, **env), stdout=log, stderr=log))
        wait(lambda: urllib.request.urlopen(status).status == 200, log=self.folder/f"{name}.log")

    def start(self):
        "JupyterLab's server"
        port, config = free_port(), self.folder/"config"/"labconfig"
        self.address = f"http://127.0.0.1:{port}"
        config.mkdir(parents=True)
        (config/"default_setting_overrides.json").write_text(json.dumps(QUIET))
        command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}",
                   "--LabApp.extension_manager=readonly", f"--ServerApp.root_dir={self.work}"]
        folders = dict(JUPYTER_CONFIG_DIR="config", JUPYTER_DATA_DIR="data", JUPYTER_RUNTIME_DIR="runtime", JUPYTERLAB_SETTINGS_DIR="settings", JUPYTERLAB_WORKSPACES_DIR="workspaces")
        self.serve("lab", command, f"{self.address}/api/status?token={TOKEN}", **{k: str(self.folder/v) for k, v in folders.items()})
        return self

    def stop(self):
        for server in self.servers[::-1]: server.terminate()   # and its kernels with it
        for server in self.servers: server.wait(TIMEOUT_S)

    def api(self, what, content=None):
        "Ask the server something, or post something to it"
        request = urllib.request.Request(f"{self.address}/api/{what}", content and json.dumps(content).encode(), dict(Authorization=f"token {TOKEN}"))
        with urllib.request.urlopen(request) as reply: return json.loads(reply.read())

    def connection_file(self): return str(self.folder/"runtime"/f"kernel-{self.api('kernels')[0]['id']}.json")

    def run(self, page):
        "Open the notebook, run all cells, and wait until they have run or one has failed"
        self.page = self.inside = page
        self.api("sessions", dict(path="widgets.ipynb", name="", type="notebook", kernel=dict(name="python3")))   # JupyterLab asks which kernel if cells are run before it has one
        page.goto(f"{self.address}/lab/tree/widgets.ipynb?reset&token={TOKEN}")
        page.get_by_text(re.compile(r"\| Idle")).wait_for()
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        def left(): return page.evaluate("[...document.querySelectorAll('.jp-CodeCell')].filter(c => c.querySelector('.cm-content').innerText.trim() && !/\\d/.test(c.querySelector('.jp-InputPrompt').textContent)).map(c => c.innerText)")
        wait(lambda: self.errors() or left(), lambda found: found == [] or "Traceback" in str(found), timeout=3 * TIMEOUT_S)

    def errors(self):
        "What cells and widgets complain about"
        shown = self.page.locator(".jp-OutputArea-output[data-mime-type*=error], .jp-OutputArea-output[data-mime-type*=stderr]").all_inner_texts()
        return shown + self.page.get_by_text(re.compile("Error (displaying|creating) widget")).all_inner_texts()

    def output(self, begin):
        "The output of the cell that begins so"
        which = next(i for i, c in enumerate(self.cells) if c.source.startswith(begin))
        return self.page.locator(".jp-Notebook .jp-Cell").nth(which).locator(".jp-Cell-outputArea")


class VSCode(JupyterLab):
    "The cells that show something, each below the other, after one that does what the others do"
    def __init__(self, notebook, folder, home):
        self.home = Path(home).resolve()
        super().__init__(notebook, folder)

    def reduced(self, notebook):
        "VS Code shows what is in sight only: without the code of the module, all of it is. Each cell marks its output."
        self.cells = [nbformat.v4.new_code_cell(c.source) for c in self.cells if c.cell_type == "code" and not re.search(r"^#\| (default_exp|export)", c.source, re.M)]
        cells = [nbformat.v4.new_code_cell(f"{c.source}\n") for c in self.cells]
        for k, cell in enumerate(cells): cell.source = f"display_html('<span class=\"cell-{k}\"></span>', raw=True)\n{cell.source}"
        cells[0].source = f"from IPython.display import display_html\nimport lmac.listen.widgets\nglobals().update(vars(lmac.listen.widgets))\n{cells[0].source}"
        return nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata)

    def start(self):
        super().start()
        user = self.folder/"vscode"/"User"
        user.mkdir(parents=True)
        (user/"settings.json").write_text(json.dumps(SETTINGS))
        self.window = f"http://127.0.0.1:{(port := free_port())}"
        command = ["node", str(self.home/"node_modules/code-server/out/node/entry.js"), "--auth=none", f"--bind-addr=127.0.0.1:{port}", f"--user-data-dir={self.folder/'vscode'}", "--config=/dev/null",
                   f"--extensions-dir={self.home/'extensions'}", "--disable-telemetry", "--disable-update-check", "--disable-workspace-trust"]
        import anywidget
        nbextensions = next(p for p in (Path(sys.prefix)/"share/jupyter/nbextensions", Path(anywidget.__file__).parent) if (p/"anywidget").is_dir())
        self.serve("vscode", command, f"{self.window}/healthz", LMAC_JUPYTER=self.address, LMAC_TOKEN=TOKEN, LMAC_NBEXTENSIONS=str(nbextensions))
        return self

    def run(self, page):
        self.page = page
        page.emulate_media(color_scheme="dark")
        page.set_viewport_size(dict(width=1300, height=9000))
        page.goto(f"{self.window}/?folder={self.work}")
        run_all = page.get_by_text("Run All", exact=True)
        def opened():   # as text, while VS Code does not know yet what a notebook is
            for close in page.locator(".tab .codicon-close").all(): close.click()
            page.get_by_role("treeitem", name="widgets.ipynb").dblclick()
            page.wait_for_timeout(3000)
            return run_all.count()
        wait(opened)
        page.locator(".kernel-label", has_text="Python").wait_for()   # the extension has one to offer
        run_all.click()
        self.inside = wait(lambda: next((f for f in page.frames if "fake.html" in f.url), None), timeout=3 * TIMEOUT_S)
        done = page.locator(".cell-statusbar-container .codicon-notebook-state-success")
        wait(lambda: done.count(), lambda n: n == len(self.cells) or self.errors(), timeout=3 * TIMEOUT_S)

    def errors(self):
        return self.page.locator(".codicon-notebook-state-error").all_inner_texts() + self.inside.locator(".error").all_inner_texts()

    def output(self, begin):
        which = next(i for i, c in enumerate(self.cells) if c.source.startswith(begin))
        return self.inside.locator(".cell_container", has=self.inside.locator(f".cell-{which}"))
