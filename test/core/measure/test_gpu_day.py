"""A day with a GPU: what happens to its parts, tried with processes that need none."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import typer.main

from qvggt_core.errors import BenchmarkError
from qvggt_core.measure.candidates import BFLOAT16, GRAPH, ORIGINAL_BFLOAT16
from qvggt_core.training.config import TrainConfig
from qvggt_ros.cli.app import app

ROOT = Path(__file__).parents[3]
DAY = ROOT / "benchmarks/gpu_day"
sys.path.insert(0, str(DAY))
schedule, inputs, parts = (importlib.import_module(n) for n in ("schedule", "inputs", "parts"))
sys.path.remove(str(DAY))
Part = schedule.Part
ORIGIN = {"commit": "0" * 40, "machine": {"gpu": "NVIDIA Test 9000"}}


@pytest.fixture
def day(tmp_path):
    return schedule.Schedule(tmp_path / "day", ORIGIN, report=lambda line: None)


def shell(name: str, line: str, most_s: float = 60.0, **options) -> Part:
    return Part(name, ("sh", "-c", line), most_s, **options)


def summary(day) -> dict:
    return json.loads((day.output / "gpu_day.json").read_text())


def has_ended(pid: int) -> bool:
    """Wait until a process is gone, or a zombie that its new parent has not collected."""
    for _ in range(200):
        try:
            status = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True
        if status.rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def test_a_part_that_fails_leaves_the_others_their_turn_and_its_reason(day):
    found = day.run(
        [
            shell("first", "echo 1 > $PWD/none/such", results=("first.json",)),
            Part("second", ("no-such-program",), 60.0),
            shell("third", f"echo 3 > {day.output}/third.json", results=("third.json", "other")),
        ],
        budget_s=60,
    )
    assert [each["state"] for each in found.values()] == ["failed", "failed", "done"]
    assert "none/such" in found["first"]["message"]
    assert found["first"]["exit_status"] != 0
    assert found["first"]["results"] == []
    assert "no-such-program" in found["second"]["message"]
    assert found["third"]["results"] == ["third.json"]
    assert summary(day) == {**ORIGIN, "parts": found}
    assert (day.output / "first.log").read_text().strip().endswith(found["first"]["message"])


def test_the_summary_is_whole_whenever_a_part_begins(day):
    copy = "cp {0}/gpu_day.json {0}/seen.json"
    day.run([shell("one", "true"), shell("two", copy.format(day.output))], budget_s=60)
    seen = json.loads((day.output / "seen.json").read_text())
    assert list(seen["parts"]) == ["one"]
    assert seen["machine"] == ORIGIN["machine"]
    assert sorted(path.name for path in day.output.iterdir()) == [
        "gpu_day.json",
        "one.log",
        "seen.json",
        "two.log",
    ]


def test_a_part_over_its_time_is_ended_with_all_that_it_started_and_keeps_its_results(day):
    line = f"sleep 600 & echo $! > {day.output}/child; wait"
    found = day.run(
        [shell("slow", line, 2.0, results=("child",)), shell("next", "true")], budget_s=60
    )
    assert found["slow"]["state"] == "timed out"
    assert found["slow"]["exit_status"] is None
    assert found["slow"]["results"] == ["child"]
    assert has_ended(int((day.output / "child").read_text()))
    assert found["next"]["state"] == "done"


def test_what_ignores_the_request_to_end_is_killed(day, monkeypatch):
    monkeypatch.setattr(schedule, "_GRACE_S", 0.2)
    line = f"trap '' TERM; echo $$ > {day.output}/pid; while :; do sleep 1; done"
    found = day.run([shell("deaf", line, 2.0)], budget_s=60)
    assert found["deaf"]["state"] == "timed out"
    assert has_ended(int((day.output / "pid").read_text()))


def test_what_a_part_leaves_running_ends_with_it(day):
    line = f"sleep 600 & echo $! > {day.output}/child"
    assert day.run([shell("quick", line)], budget_s=60)["quick"]["state"] == "done"
    assert has_ended(int((day.output / "child").read_text()))


def test_another_call_runs_what_is_not_done(day):
    count = f"echo x >> {day.output}/"
    first = [shell("done", count + "a"), shell("fails", count + "b; false")]
    day.run(first, budget_s=60)
    found = day.run([*first, shell("new", count + "c")], budget_s=60)
    times = {name: (day.output / name).read_text().count("x") for name in "abc"}
    assert times == {"a": 1, "b": 2, "c": 1}
    assert [each["state"] for each in found.values()] == ["done", "failed", "done"]
    # The same part of another command is another measurement.
    day.run([shell("done", "true;" + count + "a")], budget_s=60)
    assert (day.output / "a").read_text().count("x") == 2
    assert list(summary(day)["parts"]) == ["done", "fails", "new"]


def test_without_time_nothing_begins_and_former_results_stay(day):
    slow = shell("slow", f"echo 1 > {day.output}/rows; sleep 600", 2.0, results=("rows",))
    assert day.run([slow], budget_s=60)["slow"]["state"] == "timed out"
    found = day.run([slow, shell("late", "true")], budget_s=1)
    assert found["slow"]["state"] == found["late"]["state"] == "no time left"
    assert found["slow"]["results"] == ["rows"]
    assert not (day.output / "late.log").exists()


def test_the_budget_limits_a_part_that_may_take_longer(day):
    found = day.run([shell("long", "sleep 600", most_s=600.0, least_s=0.1)], budget_s=4)
    assert found["long"]["state"] == "timed out"


def test_training_takes_what_is_left_and_goes_on_the_next_time(day):
    line = f"echo x >> {day.output}/steps; sleep 600"
    for calls in (1, 2):
        found = day.run([shell("training", line, 1.0, goes_on=True)], budget_s=60)
        assert found["training"]["state"] == "stopped"
        assert (day.output / "steps").read_text().count("x") == calls


def test_results_of_another_machine_or_commit_are_not_mixed_in(day):
    day.run([shell("one", "true")], budget_s=60)
    before = summary(day)
    other = schedule.Schedule(day.output, {**ORIGIN, "commit": "1" * 40}, report=print)
    with pytest.raises(BenchmarkError, match="another commit or machine"):
        other.run([shell("one", "false")], budget_s=60)
    assert summary(day) == before


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"commit": 1, "machine": 2, "parts": [3]}'])
def test_what_is_no_summary_is_left_alone(day, text):
    day.output.mkdir()
    path = day.output / "gpu_day.json"
    path.write_text(text)
    with pytest.raises(BenchmarkError, match="no summary of a former run"):
        day.run([shell("one", "true")], budget_s=60)
    assert path.read_text() == text


def test_commands_are_recorded_without_the_directories_of_this_machine(day):
    part = Part(
        "one", (sys.executable, "-c", "pass", str(day.output / "x"), f"{os.getcwd()}/y"), 60
    )
    assert day.run([part], budget_s=60)["one"]["command"] == [
        Path(sys.executable).name,
        *("-c", "pass", "OUTPUT/x", "y"),
    ]


# What runs on the day itself.


def test_all_parts_leave_training_half_a_minute_of_eight(tmp_path):
    found = parts.parts_of(tmp_path, None, None)
    assert [part.name for part in found] == [
        *("inputs", "tests", "tune", "network", "memory", "node", "training")
    ]
    *others, training = found
    assert training.goes_on
    assert sum(part.most_s for part in others) + 30 + training.least_s / 2 <= 8 * 60


@pytest.mark.parametrize("original", [None, Path("clone")])
def test_every_command_is_one_that_there_is(tmp_path, original):
    (tmp_path / inputs.RECORDING).mkdir()
    for name in (inputs.CHECKPOINT, inputs.CONFIG):
        (tmp_path / name).write_bytes(b"")
    commands = typer.main.get_command(app).commands
    ours = 0
    for part in parts.parts_of(tmp_path, original, None):
        program, *arguments = part.command
        assert program == sys.executable
        if arguments[:2] == ["-m", "qvggt_ros.cli.app"]:
            ours += 1
            name, *options = arguments[2:]
            commands[name].make_context(name, options)
        else:
            assert Path(arguments[0]).is_file()
    assert ours == 5


def test_the_baseline_is_the_first_and_it_is_a_graph(tmp_path):
    for original, baseline in ((None, BFLOAT16), (Path("clone"), ORIGINAL_BFLOAT16)):
        network = {part.name: part for part in parts.parts_of(tmp_path, original, None)}["network"]
        first = network.command[network.command.index("--contender") + 1]
        assert first == baseline + GRAPH


def test_tests_and_presets_that_are_named_are_there(tmp_path):
    for part in parts.parts_of(tmp_path, None, None):
        named = [word for word in part.command if word.startswith(("test/", "config/", "qvggt_c"))]
        assert all((ROOT / word).is_file() for word in named)


def test_training_goes_on_from_the_weights_that_the_repository_keeps(tmp_path):
    (tmp_path / inputs.CONFIG).write_text(inputs.training_config(tmp_path))
    config = TrainConfig.read(tmp_path / inputs.CONFIG)
    kept = TrainConfig.read(ROOT / "qvggt_core/training/configs/varied-continued.yaml")
    weights = (config.directory / config.initial_weights.file).resolve()
    assert weights == (kept.directory / kept.initial_weights.file).resolve()
    assert config.initial_weights.sha256 == kept.initial_weights.sha256
    assert config.model == kept.model
    assert config.pool.clips < kept.pool.clips
    assert all(stage.clips <= config.pool.clips for stage in config.stages)


def test_outcomes_of_tests_are_written_one_by_one_and_skipping_shows_nothing(tmp_path):
    file = tmp_path / "test_some.py"
    file.write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): assert 2 == 3\n"
        "def test_under_the_interpreter(): assert False\n"
        "@pytest.mark.skip\ndef test_c(): pass\n"
    )

    def run(*tests: str) -> tuple[int, dict]:
        output = tmp_path / "tests.json"
        command = [sys.executable, str(DAY / "device_tests.py"), str(output), *tests]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        return done.returncode, json.loads(output.read_text())

    status, found = run(str(file))
    assert status == 1
    assert found["counts"] == {"passed": 1, "failed": 1, "skipped": 1}
    assert "2 == 3" in found["tests"]["test_some.py::test_b"]["message"]
    assert run(f"{file}::test_a")[0] == 0
    assert run(f"{file}::test_c")[0] == 1
    # One that needs no device is no sign that there is one.
    assert run(f"{file}::test_a", f"{file}::test_c")[0] == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_machine_without_a_gpu_gets_one_sentence(tmp_path):
    command = [sys.executable, str(DAY), "-o", str(tmp_path / "day")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("there is no CUDA device here: run this on a machine with")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "day").exists()
