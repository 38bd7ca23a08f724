"""Many recordings: the same results however many work, and a failure is left out."""

from __future__ import annotations

import errno
import json
import multiprocessing
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from support.plain_parameters import PLAIN
from support.recordings import (
    load_mortal_network,
    load_room_network,
    room_entries,
    write_recording,
)

from qvggt_core.errors import MissingPackageError, ParameterError
from qvggt_core.parameters import Parameters
from qvggt_core.results.schema import Metrics
from qvggt_ros.cli import app as cli
from qvggt_ros.cli import console
from qvggt_ros.drivers.batch import (
    Batch,
    Job,
    former_results,
    output_names,
    run_job,
    run_on_processes,
    run_on_ray,
    with_one_thread,
)
from qvggt_ros.drivers.options import ReplayOptions

BAGS = 20
CORRUPT = 7
PARAMETERS = PLAIN.with_values(window_size=3, window_stride=2, threads=1)


@pytest.fixture(scope="module")
def bags(tmp_path_factory):
    """Recordings of several lengths, one of them corrupt."""
    folder = tmp_path_factory.mktemp("bags")
    paths = []
    for index in range(BAGS):
        # Each begins elsewhere, so that no two are alike; the first is long enough for a score.
        frames = 4 if index else 12
        entries = room_entries(frames + index)[3 * index :]
        paths.append(write_recording(folder / f"flight_{index:02d}", entries))
    for file in paths[CORRUPT].iterdir():
        file.write_bytes(b"\x89MCAP0\r\nwhat a broken disk left")
    return paths


def jobs_for(bags, output, **options):
    return [
        Job(
            bag,
            output / bag.name,
            PARAMETERS,
            ReplayOptions(report=False, **options),
        )
        for bag in bags
    ]


@pytest.fixture(scope="module")
def one_by_one(bags, tmp_path_factory):
    """The metrics of each recording, reconstructed one after the other in this process."""
    output = tmp_path_factory.mktemp("one")
    outcomes = [run_job(job, load_room_network) for job in jobs_for(bags, output)]
    assert [o.job.bag.name for o in outcomes if o.error] == [bags[CORRUPT].name]
    return {bag.name: (output / bag.name / "metrics.json") for bag in bags}


def compare_with(one_by_one, output, outcomes):
    failed = [o for o in outcomes if o.error]
    assert len(outcomes) == BAGS
    assert [o.job.bag.name for o in failed] == [f"flight_{CORRUPT:02d}"]
    assert "cannot be read" in failed[0].error
    assert failed[0].final
    assert failed[0].attempts == 1
    for name, metrics in one_by_one.items():
        if name != failed[0].job.bag.name:
            assert (output / name / "metrics.json").read_bytes() == metrics.read_bytes(), name


def test_twenty_bags_over_two_processes_equal_one_by_one(bags, one_by_one, tmp_path):
    outcomes = list(run_on_processes(Batch(jobs_for(bags, tmp_path), load=load_room_network), 2))
    compare_with(one_by_one, tmp_path, outcomes)
    accuracy = Metrics.read(one_by_one["flight_00"]).accuracy
    assert accuracy.segments[0].alignments["sim3"].translation.rmse < 1e-5


@pytest.mark.slow
def test_twenty_bags_over_a_local_ray_cluster_equal_one_by_one(
    bags, one_by_one, tmp_path, monkeypatch
):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'qvggt_ros[ray]'")
    # The cluster's processes load the room's network by its name.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    outcomes = list(run_on_ray(Batch(jobs_for(bags, tmp_path), load=load_room_network), "local"))
    compare_with(one_by_one, tmp_path, outcomes)


def test_a_process_that_dies_is_replaced_and_its_bag_tried_again(bags, tmp_path):
    chosen = [bags[1], bags[12], bags[2]]  # only the second one shows frame 13
    batch = Batch(jobs_for(chosen, tmp_path), retries=1, load=load_mortal_network)
    outcomes = list(run_on_processes(batch, 1))
    by_name = {o.job.bag.name: o for o in outcomes}
    assert by_name["flight_12"].error == "its process died with status 9"
    assert by_name["flight_12"].attempts == 2
    assert not by_name["flight_01"].error
    assert not by_name["flight_02"].error


def test_what_was_stopped_begins_no_more(bags, tmp_path):
    jobs = jobs_for(bags[:3], tmp_path)
    batch = Batch(jobs, load=load_room_network, stop=lambda: True)
    assert list(run_on_processes(batch, 2)) == []
    assert not list(tmp_path.iterdir())


def test_results_are_named_apart(tmp_path):
    a, b, c = tmp_path / "x" / "bag", tmp_path / "y" / "bag", tmp_path / "z" / "other"
    assert output_names([a, c]) == ["bag", "other"]
    assert output_names([a, b]) == ["x_bag", "y_bag"]
    with pytest.raises(ParameterError, match="x_bag"):
        output_names([a, a])


def test_the_number_of_threads_does_not_depend_on_the_machine():
    assert with_one_thread(Parameters()).threads == 1
    assert with_one_thread(Parameters(threads=3)).threads == 3


@pytest.mark.parametrize(("workers", "retries"), [(0, 1), (1000, 1), (1, -1)])
def test_senseless_numbers_are_refused(workers, retries):
    with pytest.raises(ParameterError):
        list(run_on_processes(Batch([], retries=retries), workers))


# The command


def run(capsys, monkeypatch, *arguments):
    monkeypatch.setattr(console, "out", console.Terminal(width=250))
    monkeypatch.setattr(console, "err", console.Terminal(width=250, stderr=True))
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return caught.value.code or 0, captured.out, captured.err


def test_the_command_names_what_failed_and_keeps_the_rest(capsys, monkeypatch, bags, tmp_path):
    """With the network that ships: three recordings, one of them corrupt."""
    some = (bags[0], bags[CORRUPT], bags[1])
    arguments = ("replay-many", *some, "-o", tmp_path / "out", "--set", "keyframe_min_motion=0")
    status, printed, errors = run(capsys, monkeypatch, *arguments, "--workers", "2")
    assert status == console.EXIT_SOME_FAILED
    assert "2 of 3 recordings reconstructed" in printed
    assert "flight_00" in printed
    assert f"failed: {bags[CORRUPT]}" in errors
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [entry["state"] for entry in summary] == ["done", "failed", "done"]
    page = (tmp_path / "out" / "compare.html").read_text()
    assert 'href="./flight_00/report.html"' in page
    assert "flight_07 failed" in page
    # What is there is kept on request, and otherwise in the way.
    before = (tmp_path / "out" / "flight_00" / "run.json").stat().st_mtime_ns
    good = (arguments[0], bags[0], bags[1], *arguments[4:])
    status, printed, errors = run(capsys, monkeypatch, *good, "--resume")
    assert (tmp_path / "out" / "flight_00" / "run.json").stat().st_mtime_ns == before
    assert status == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [entry["state"] for entry in summary] == ["kept", "kept"]
    status, printed, _ = run(
        capsys,
        monkeypatch,
        *("compare-runs", tmp_path / "out" / "flight_00", tmp_path / "out" / "flight_01"),
        *("-o", tmp_path / "two.html", "--title", "<b>two</b>"),
    )
    assert status == 0
    assert "flight_01" in printed
    assert "&lt;b&gt;two&lt;/b&gt;" in (tmp_path / "two.html").read_text()


def test_ray_that_is_not_installed_is_named_with_its_extra(monkeypatch, bags, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r"qvggt_ros\[ray\]"):
        list(run_on_ray(Batch(jobs_for(bags[:1], tmp_path)), "local"))


def test_a_worker_that_is_killed_before_it_reads_its_job_is_tried_again(bags, tmp_path):
    """As by the system for its memory, while it still imports."""

    def kill():
        while not (children := multiprocessing.active_children()):
            time.sleep(0.01)
        children[0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    batch = Batch(jobs_for(bags[:1], tmp_path), load=load_room_network)
    (outcome,) = run_on_processes(batch, 1)
    killer.join()
    assert (outcome.error, outcome.attempts) == ("", 2)


def test_a_process_that_cannot_be_started_is_the_reason_that_is_given(bags, tmp_path, monkeypatch):
    """As where a process may not be made for want of memory."""

    def fail(self):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(multiprocessing.get_context("spawn").Process, "start", fail)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        list(run_on_processes(Batch(jobs_for(bags[:2], tmp_path), load=load_room_network), 2))


@pytest.fixture
def former(bags, tmp_path):
    """Jobs whose results are there."""
    jobs = jobs_for(bags[:2], tmp_path)
    assert [run_job(job, load_room_network).error for job in jobs] == ["", ""]
    return jobs


def test_former_results_are_kept_and_what_is_not_there_is_made(former, bags, tmp_path):
    assert former_results([*former, *jobs_for(bags[2:3], tmp_path)]) == (former, [])


@pytest.mark.parametrize("name", ["metrics.json", "trajectory.tum", "run.json"])
@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_damaged_former_result_is_named_and_the_others_are_kept(former, name, content):
    (former[0].output / name).write_text(content)
    kept, (outcome,) = former_results(former)
    assert kept == former[1:]
    assert "its former result is damaged" in outcome.error
    again = [replace(job, options=replace(job.options, overwrite=True)) for job in former]
    assert former_results(again) == (again[1:], [])


def test_a_former_result_of_other_parameters_is_named_with_them(former):
    changed = [replace(job, parameters=PARAMETERS.with_values(window_size=4)) for job in former]
    kept, outcomes = former_results(changed)
    assert kept == []
    assert all("was made with window_size 3" in outcome.error for outcome in outcomes)
