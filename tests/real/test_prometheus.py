"""A real Prometheus server scrapes a real ``rawstream serve``, and answers what it saw."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.server.test_metrics import rules
from tests.support.raw import ENDLESS, chat
from tests.support.server import ServerProcess
from tests.support.tools import require_tool
from tests.support.waiting import eventually

pytestmark = pytest.mark.real


class Prometheus:
    """A running Prometheus server."""

    def __init__(self, port: int) -> None:
        self.port = port

    def _get(self, path: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return json.loads(answer.read()) if answer.status == 200 else None
        except (OSError, http.client.HTTPException):
            return None  # it is starting
        finally:
            connection.close()

    def query(self, expression: str) -> dict[str, float]:
        """The values of an expression now, by their labels (without name and target)."""
        answer = self._get("/api/v1/query?" + urlencode({"query": expression}))
        if answer is None:
            return {}
        found: dict[str, float] = {}
        for one in answer["data"]["result"]:
            labels = {name: text for name, text in one["metric"].items() if name not in ("__name__", "instance", "job")}
            found[",".join(labels.values())] = float(one["value"][1])
        return found

    def until(self, expression: str) -> dict[str, float]:
        """The values of an expression, once there are some."""
        return eventually(lambda: self.query(expression), within=20, why=f"Prometheus knows {expression}")

    def rules(self) -> list[dict[str, Any]]:
        """Its rules, once all of them have been evaluated."""

        def evaluated() -> list[dict[str, Any]]:
            answer = self._get("/api/v1/rules")
            found = [rule for group in answer["data"]["groups"] for rule in group["rules"]] if answer else []
            return found if all(rule["health"] != "unknown" for rule in found) else []

        return eventually(evaluated, within=20, why="the rules were evaluated")


@contextmanager
def prometheus(target: int, place: Path) -> Iterator[Prometheus]:
    """Prometheus, which scrapes ``target`` on this machine every second and knows the README's alerts."""
    program = require_tool("prometheus")
    (place / "rules.yml").write_text(rules(), encoding="utf-8")
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [{"job_name": "rawstream", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}],
    }
    (place / "prometheus.yml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={place / 'prometheus.yml'}",
                f"--storage.tsdb.path={place / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        yield Prometheus(port)
    except AssertionError as error:
        error.add_note((place / "log").read_text(encoding="utf-8")[-3000:])
        raise
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def test_prometheus_scrapes_what_happened_and_no_alert_has_an_error(tmp_path: Path) -> None:
    """Whole answers, a client that reads nothing, and nothing alarming: as Prometheus tells it, on the admin port."""
    with ServerProcess("--admin", "127.0.0.1:0", "--heartbeat", "0") as server:
        assert server.admin_port is not None
        with prometheus(server.admin_port, tmp_path) as seen:
            assert seen.until("up") == {"": 1}
            for _ in range(3):
                assert len(server.ask(chat(tokens=10, tokens_per_second=None)).tokens) == 10
            told = seen.until('rawstream_tokens_total{kind="delivered"} >= 30')
            assert told == {"delivered": 30}
            assert seen.query("rawstream_tokens_total") == {"generated": 30, "delivered": 30, "abandoned": 0}
            assert seen.query("rawstream_time_to_first_token_seconds_count") == {"": 3}
            assert seen.query("histogram_quantile(0.5, rawstream_inter_token_latency_seconds_bucket)")[""] <= 0.01
            with server.connect(rcvbuf=4096) as client:
                client.send(chat(**ENDLESS))
                seen.until('rawstream_streams{waiting_for="client"} == 1')
                held = seen.until('sum(rawstream_buffered_bytes{place=~"transport|kernel_.*"}) > 0')
                assert held[""] <= 16 * 1024
                waits = seen.until('rate(rawstream_waiting_seconds_total{waiting_for="client"}[5s]) > 0.5')
                assert waits["client"] <= 1.5, "one stream waits one second a second"
            after = seen.until('rawstream_tokens_total{kind="abandoned"} > 0')
            assert after["abandoned"] > 0
            loaded = seen.rules()
            assert [rule["lastError"] for rule in loaded if rule.get("lastError")] == []
            assert {rule["health"] for rule in loaded} == {"ok"}
            assert seen.query('ALERTS{alertstate="firing"}') == {}
            assert time.time() - seen.query("process_start_time_seconds")[""] < 120
        server.assert_steady()
