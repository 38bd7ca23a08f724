"""What is counted and what an operator is warned of, with a clock in the hand."""

from __future__ import annotations

import logging

import pytest

from qvggt_core.stream.frame import Scale
from qvggt_ros.counters import Counters, Status


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def counters(clock):
    return Counters(warning_holds_s=10.0, clock=clock)


def status(counters):
    return Status.of(counters, Scale(1.0, "parameter"), None, ages=False)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("image encoding 'nv12' is unknown", "image encoding 'nv21' is unknown"),
        ("image encoding '8UC1' is unknown", "image encoding '16UC1' is unknown"),
        ("nothing on /camera1/image", "nothing on /camera2/image"),
    ],
)
def test_what_differs_in_a_name_is_of_two_kinds(counters, first, second):
    counters.reject(first)
    counters.reject(second)
    assert dict(counters.rejected) == {first: 1, second: 1}
    assert list(counters.events) == [first, second]


def test_what_differs_in_numbers_is_of_one_kind(counters):
    counters.reject("144 bytes are short of 640x480 pixels, 0.300 s late")
    counters.reject("145 bytes are short of 320x240 pixels, 1.5 s late")
    assert list(counters.rejected.values()) == [2]
    assert len(counters.events) == 1


def test_a_warning_that_does_not_come_again_is_over(counters, clock, caplog):
    counters.published = 1
    with caplog.at_level(logging.WARNING):
        counters.reject("broken")
        clock.now += 9.0
        assert status(counters).level == "WARN"
        assert "broken" in status(counters).message
        clock.now += 2.0
        assert (status(counters).level, status(counters).message) == ("OK", "reconstructing")
        assert status(counters).values["rejected"] == {"broken": 1}
        counters.reject("broken")
    assert status(counters).level == "WARN"
    assert [record.message for record in caplog.records] == ["broken", "broken"]


def test_a_warning_that_goes_on_is_logged_once_and_holds(counters, clock, caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(30):
            counters.warn("no transform")
            clock.now += 1.0
    assert len(caplog.records) == 1
    assert status(counters).message == "30 times: no transform"


def test_a_reset_ends_warnings(counters):
    counters.reject("broken")
    counters.forget_warnings()
    assert status(counters).level == "OK"


def test_of_a_recording_no_warning_is_over(clock):
    counters = Counters(clock=clock)
    counters.reject("broken")
    clock.now += 1e6
    counters.reject("broken")
    assert status(counters).message == "2 times: broken"
    assert list(counters.events) == ["broken"]


def test_images_without_geometry_are_not_waited_for(counters):
    assert status(counters).message == "waiting for images"
    counters.received = 19
    assert status(counters).message == "19 images, none with geometry yet"
