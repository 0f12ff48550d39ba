"""The report says what was measured: medians of what counts, goals judged, peers that are ahead, what is missing."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from bench import report
from bench.budget import TYPICAL, fit, seconds_of
from bench.cli import choose_peers, choose_scenarios, main
from bench.peers import all_peers
from bench.results import Measurement, Results
from bench.runner import plan
from bench.scenarios import all_scenarios


def run(
    peer: str, value: float, *, part: str = "suspend", round: int = 0, marks: list[str] | None = None
) -> Measurement:
    values = {"us_per_token": value, "tokens_per_cpu_second": 1e6 / value}
    return Measurement("throughput", part, peer, round, values=values, marks=marks or [])


@pytest.fixture
def results() -> Results:
    """Three rounds of rawstream and the floor, one peer whose generator was full, one that is missing."""
    found = Results(environment={"cpu": "a CPU"}, settings={"scale": "full"})
    found.peers = {
        "rawstream": {"kind": "rawstream", "version": "1", "notes": "", "missing": None},
        "floor-drain": {"kind": "floor", "version": "1", "notes": "", "missing": None},
        "node-http": {"kind": "server", "version": "1", "notes": "", "missing": None},
        "go-nethttp": {"kind": "server", "version": None, "notes": "", "missing": "go is not installed"},
    }
    found.measurements = [run("rawstream", v, round=i) for i, v in enumerate((7.0, 7.4, 9.0))]
    found.measurements += [run("floor-drain", v, round=i) for i, v in enumerate((6.5, 6.4, 6.6))]
    found.measurements += [run("node-http", 1.0, marks=["generator-bound"])]
    return found


def test_figures_are_medians_with_their_range(results: Results) -> None:
    _, rows = report.table(results, all_scenarios()["throughput"], "suspend")
    assert any("7.40 (7.00–9.00)" in cell for cell in rows[0])


def test_a_generator_bound_run_is_no_figure_of_the_server(results: Results) -> None:
    """It stands in the table with a dash and the reason, and wins nothing."""
    header, rows = report.table(results, all_scenarios()["throughput"], "suspend")
    node = rows[2]
    assert node[0] == "node-http"
    assert node[header.index("CPU per token, µs")] == "–"
    assert "generator-bound in 1 of 1" in node[-1]
    assert not any("node" in text for text in report.winners(results, all_scenarios()["throughput"], "suspend"))


def test_the_report_says_where_a_peer_is_ahead(results: Results) -> None:
    said = report.winners(results, all_scenarios()["throughput"], "suspend")
    assert any("CPU per token (7.40 µs here): floor-drain (6.50)" in text for text in said), said
    assert "Ahead of rawstream" in report.markdown(results)


def test_goals_are_reached_missed_or_not_judged_with_a_reason(results: Results) -> None:
    """A limit, a multiple of a peer's figure in the same run, and one whose peer has no figure."""
    results.measurements += [run("rawstream", 0.4, part="batch")]
    verdicts = {v.goal.label: v for v in report.judge(results, all_scenarios()["throughput"])}
    assert verdicts["suspending source: at most 8 µs per token"].reached is True
    assert verdicts["suspending source: at most 1.2 × the bare drain() floor"].reached is True
    node = next(v for label, v in verdicts.items() if "Node" in label)
    assert node.reached is None
    assert "node-http was not part" in node.why_not


def test_a_missed_goal_is_said(results: Results) -> None:
    results.measurements = [run("rawstream", 20.0), run("floor-drain", 6.5)]
    words = [v.word for v in report.judge(results, all_scenarios()["throughput"])]
    assert "**missed**" in words
    assert "**missed**" in report.markdown(results)


def test_a_missing_peer_is_named_with_its_reason(results: Results) -> None:
    text = report.markdown(results)
    assert "Not in this run: go-nethttp (go is not installed)" in text


def test_a_failed_peer_stands_in_the_table(results: Results) -> None:
    results.measurements.append(Measurement("throughput", "suspend", "aiohttp", 0, failure="wrong: token 3"))
    assert "FAILED: wrong: token 3" in report.markdown(results)


def test_results_survive_the_file(results: Results, tmp_path: Path) -> None:
    results.measurements[0].series["total"] = [(0.0, 1.0)]
    results.save(tmp_path)
    again = Results.load(tmp_path)
    assert report.markdown(again) == report.markdown(results)


def test_the_readme_table_has_a_row_per_question(results: Results) -> None:
    """rawstream, the best and the typical peer, the goals and their verdicts stand in one row, in few lines."""
    results.measurements += [run("uvicorn-starlette-h11", 12.0), run("granian-rsgi", 6.8)]
    results.peers |= {
        name: {"kind": "server", "version": "1", "notes": "", "missing": None}
        for name in ("uvicorn-starlette-h11", "granian-rsgi")
    }
    lines = report.readme(results).splitlines()
    assert len(lines) <= 40
    row = next(line for line in lines if "suspends once per token" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:] == ["7.40", "6.80 (granian-rsgi)", "12.00", "≤ 8.00; ≤ 1.2 × floor-drain = 7.80", "reached"]


def test_the_readme_table_of_everything_is_compact(results: Results) -> None:
    """All scenarios with all their parts fill no more than fifty lines."""
    results.measurements = [
        Measurement(name, part, "rawstream", 0, values={column.key: 1.0 for column in scenario.columns})
        for name, scenario in all_scenarios().items()
        for part in scenario.parts("full")
    ]
    assert len(report.readme(results).splitlines()) <= 50


def test_rounds_are_interleaved_and_every_other_one_is_reversed() -> None:
    peers = [all_peers()[name] for name in ("rawstream", "floor-drain", "floor-protocol")]
    steps = plan([all_scenarios()["short"]], peers, "full", 2)
    names = [step.peer.name for step in steps]
    assert names == ["rawstream", "floor-drain", "floor-protocol", "floor-protocol", "floor-drain", "rawstream"]


def test_a_budget_shortens_first_and_then_leaves_out_what_says_least() -> None:
    """The plan fits; rawstream, the typical peer and those of the goals are measured everywhere."""
    peers = [peer for name, peer in all_peers().items() if name != "rawstream-mock"]
    scenarios = list(all_scenarios().values())
    whole = plan(scenarios, peers, "short")
    needed = seconds_of(whole, "short")
    assert fit(whole, "short", needed + 1).steps == whole
    assert fit(whole, "short", needed + 1).stretch == 1
    fitted = fit(whole, "short", needed * 0.6)
    assert fitted.stretch < 1
    assert fitted.seconds <= needed * 0.6
    assert len(fitted.steps) + sum(
        step.peer.name in fitted.left_out.get(step.scenario.name, ()) for step in whole
    ) == len(whole)
    for scenario in scenarios:
        left = fitted.left_out.get(scenario.name, [])
        assert TYPICAL not in left
        assert not {"rawstream", "rawstream-gateway", "rawstream-broken"} & set(left)
        assert not {goal.of for goal in scenario.goals} & set(left)


def test_peers_are_chosen_by_name_or_its_beginning() -> None:
    peers = all_peers()
    assert list(choose_peers("node-http", peers)) == ["node-http"]
    assert {"uvicorn-starlette-h11", "uvicorn-starlette-httptools"} == set(choose_peers("uvicorn-starlette", peers))
    assert set(report.OURS) == set(choose_peers("rawstream", peers))
    assert "rawstream-mock" not in choose_peers(None, peers)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(click.BadParameter, match="rawstream"):
        choose_peers("nobody", all_peers())
    with pytest.raises(click.BadParameter, match="throughput"):
        choose_scenarios(["nothing"])


def test_the_list_names_every_scenario() -> None:
    shown = CliRunner().invoke(main, ["list"])
    assert shown.exit_code == 0
    for name in all_scenarios():
        assert name in shown.output


def test_a_report_without_results_is_a_clear_error(tmp_path: Path) -> None:
    shown = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert shown.exit_code != 0
    assert "no results.json" in shown.output


def test_over_tls_rawstream_is_the_one_with_tls() -> None:
    """Beside it stands the plain one, for what TLS costs; ratios and the README's row are the TLS one's."""
    names = ("rawstream", "rawstream-tls", "uvicorn-tls-h11", "nginx-tls")
    found = Results(environment={}, settings={"scale": "full", "date": "2026-01-01"})
    kinds = ("rawstream", "rawstream", "tls", "tls")
    found.peers = {
        name: {"kind": kind, "version": "1", "notes": "", "missing": None}
        for name, kind in zip(names, kinds, strict=True)
    }
    found.measurements = [
        Measurement("tls_paced", "steady", name, 0, values={"us_per_token": value})
        for name, value in zip(names, (10.0, 20.0, 40.0, 30.0), strict=True)
    ]
    header, rows = report.table(found, all_scenarios()["tls_paced"], "steady")
    ratios = {row[0]: row[header.index("× rawstream")] for row in rows}
    assert ratios == {"rawstream": "0.50", "rawstream-tls": "1.00", "uvicorn-tls-h11": "2.00", "nginx-tls": "1.50"}
    assert "| 20.00 | 30.00 (nginx-tls) | 40.00 | – | – |" in report.readme(found)


def test_everything_on_is_judged_against_everything_off() -> None:
    """1.15 × what the same server takes with nothing on."""
    found = Results(environment={}, settings={"scale": "full"})
    found.measurements = [
        Measurement("everything", "relay", name, 0, values={"us_per_token": value})
        for name, value in (("rawstream-gateway", 20.0), ("rawstream-gateway-everything", 22.0))
    ]
    (verdict,) = report.judge(found, all_scenarios()["everything"])
    assert (verdict.reached, verdict.bound) == (True, "≤ 1.15 × rawstream-gateway = 23.00")
    found.measurements[1].values["us_per_token"] = 23.1
    assert [verdict.reached for verdict in report.judge(found, all_scenarios()["everything"])] == [False]
