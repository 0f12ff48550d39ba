"""The lab as a part of the server: the wrong disciplines, the runs, and the page.

Rule 1: it is there exactly when the settings say so: by default, when listening on loopback only.
"""

from __future__ import annotations

from rawstream.lab.routes import Routes
from rawstream.lab.run_spec import RunChange, RunSpec
from rawstream.lab.runs import Runs
from rawstream.lab.site import Site
from rawstream.lab.window_runs import WindowChange, WindowRuns, WindowSpec
from rawstream.lab.wrong import WrongDisciplines
from rawstream.server.app import App


class Lab:
    """An extension of the server."""

    runs: Runs
    windows: WindowRuns

    def register(self, app: App) -> None:
        self.runs = Runs(app)
        self.windows = WindowRuns(app)
        WrongDisciplines().register(app)
        Site().register(app.router)
        Routes(self.runs, self.runs.start, RunSpec, RunChange).register(app, "/lab/runs")
        Routes(self.windows, self.windows.start, WindowSpec, WindowChange).register(app, "/lab/windows")
