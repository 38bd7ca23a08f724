"""`qvggt bench-node` counts and times what a network of known speed does."""

from __future__ import annotations

import json

import pytest
from support.commands import run
from support.recordings import RoomNetwork, room_entries, write_recording

from qvggt_core.errors import BenchmarkError
from qvggt_core.parameters import Parameters
from qvggt_core.stream.load_network import LoadedNetwork
from qvggt_ros.drivers.live_benchmark import (
    _image_ages,
    _timing,
    _too_few,
    measure_live,
    read_camera,
)

MILLISECOND = 1_000_000


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    return write_recording(tmp_path_factory.mktemp("bag") / "room", room_entries(10))


def load(parameters):
    return LoadedNetwork(RoomNetwork(), parameters, {"file": "room"})


def test_every_number_is_that_of_publications_at_known_times():
    # Stamps 100 ms apart; each pose 50 ms after its image, the last one 90 ms.
    stamps = [index * 100 * MILLISECOND for index in range(5)]
    delays = [50, 50, 50, 50, 90]
    published = [(s, s + d * MILLISECOND) for s, d in zip(stamps, delays, strict=True)]
    starts = [stamp + 30 * MILLISECOND for stamp in stamps]
    timing = _timing(published, starts, offered=10, processors=0.5, memory=100.0)
    assert timing.image_age_ms == pytest.approx(30)
    assert timing.published == 5
    assert timing.missed == pytest.approx(0.5)
    assert timing.rate_hz == pytest.approx(4 / 0.440)
    assert timing.latency_ms == pytest.approx(58)
    assert timing.jitter_ms == pytest.approx((3 * 10 + 30) / 4)
    assert timing.interval_ms_p95 == pytest.approx(140 - 0.15 * 40)


def test_an_image_is_as_old_as_the_newest_of_its_window_at_the_start_of_the_network():
    # Two images a window; the second run of the network gave nothing.
    published = [(0, 60), (10, 60), (40, 130), (50, 131)]
    assert _image_ages(published, [30, 90, 95]) == [30 - 10, 95 - 50]


def test_next_to_nothing_published_is_an_error_and_not_a_number(bag):
    with pytest.raises(BenchmarkError, match=r"of \d+ images came out: measure .*--seconds"):
        measure_live(read_camera(bag), Parameters(), rate_hz=5.0, seconds=0.3, load=load)


def test_a_network_that_refuses_every_image_says_why_and_not_that_it_needs_time(bag):
    def load_odd(parameters):
        network = RoomNetwork()
        network.image_width += 1
        return LoadedNetwork(network, parameters, {"file": "room"})

    with pytest.raises(BenchmarkError, match=r"0 of \d+ images .*image width \d+ .*patch") as found:
        measure_live(read_camera(bag), Parameters(), rate_hz=20.0, seconds=0.5, load=load_odd)
    assert "--seconds" not in str(found.value)


def test_a_network_that_fails_says_how(bag):
    class Broken(RoomNetwork):
        def predict(self, tokens, height, width, newest=None):
            if any(tokens):
                raise ValueError("no such layer")
            return super().predict(tokens, height, width, newest)

    def load_broken(parameters):
        return LoadedNetwork(Broken(), parameters, {"file": "room"})

    with pytest.raises(BenchmarkError, match=r"0 of .* images came out: .*no such layer"):
        measure_live(read_camera(bag), Parameters(), rate_hz=20.0, seconds=1.0, load=load_broken)


def test_time_is_asked_for_where_some_images_were_taken():
    assert "--seconds" in _too_few(1, 10, "an image came late (1 times)", True)


def test_a_live_run_publishes_no_more_than_was_offered(bag):
    camera = read_camera(bag)
    assert len(camera.images) == 10
    assert camera.info is not None
    stamps = [image.header.stamp.sec for image in camera.images]
    timing = measure_live(camera, Parameters(), rate_hz=20.0, seconds=3.0, load=load)
    assert 3 <= timing.published <= timing.offered <= 61
    assert 0 <= timing.missed < 1
    assert timing.latency_ms_p95 >= timing.latency_ms * 0.5 > 0
    assert 0 < timing.image_age_ms < timing.latency_ms_p95
    assert timing.processors > 0
    assert timing.memory_mib > 50
    assert [image.header.stamp.sec for image in camera.images] == stamps


def test_a_recording_with_too_few_images_is_refused(tmp_path):
    short = write_recording(tmp_path / "short", room_entries(3))
    with pytest.raises(BenchmarkError, match="3 images"):
        read_camera(short)


def two_cases(bag, tmp_path):
    """Return arguments for the default parameters and for a short window."""
    preset = tmp_path / "tight.yaml"
    preset.write_text("/**:\n  ros__parameters:\n    window_size: 4\n    window_stride: 2\n")
    return bag, "-o", tmp_path / "node.json", "--params", preset, "--seconds", "2"


def test_the_command_writes_each_case_with_the_machine(bag, tmp_path, capsys, monkeypatch):
    def short(camera, parameters, rate, seconds):
        return measure_live(camera, parameters, rate, seconds, load=load)

    monkeypatch.setattr("qvggt_ros.drivers.live_benchmark.measure_live", short)
    arguments = two_cases(bag, tmp_path)
    status, printed, errors = run(capsys, "bench-node", *arguments)
    assert status == 0, errors
    results = json.loads((tmp_path / "node.json").read_text())
    assert [case["parameters"] for case in results["cases"]] == ["default", "tight"]
    assert results["machine"]["cpu"]
    assert len(results["checkpoints"]) == 1
    assert all(case["published"] for case in results["cases"])
    assert "tight" in printed


def test_a_case_that_is_too_slow_is_named_and_takes_nothing_from_the_others(
    bag, tmp_path, capsys, monkeypatch
):
    def short(camera, parameters, rate, seconds):
        if parameters.window_size == 4:
            raise BenchmarkError("0 of 20 images came out")
        return measure_live(camera, parameters, rate, seconds, load=load)

    monkeypatch.setattr("qvggt_ros.drivers.live_benchmark.measure_live", short)
    arguments = two_cases(bag, tmp_path)
    status, _, errors = run(capsys, "bench-node", *arguments)
    assert status == 0
    assert "0 of 20 images" in errors
    default, tight = json.loads((tmp_path / "node.json").read_text())["cases"]
    assert default["published"]
    assert tight == {
        "network": default["network"],
        "parameters": "tight",
        "failed": "0 of 20 images came out",
    }
