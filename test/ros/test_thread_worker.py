"""The worker: the newest image wins, nothing small is lost, and no failure ends it."""

import threading
from collections import Counter
from functools import partial

import pytest

from qvggt_ros.drivers.thread_worker import Worker


@pytest.fixture
def worker():
    worker = Worker()
    yield worker
    assert worker.stop(60.0)


class Busy:
    """Holds the worker until it is let go."""

    def __init__(self, worker):
        self.begun, self.go = threading.Event(), threading.Event()
        self.future = worker.call(self.work)
        assert self.begun.wait(60.0)

    def work(self):
        self.begun.set()
        assert self.go.wait(60.0)


def test_the_newest_image_wins_and_drops_are_counted(worker):
    busy, seen, done = Busy(worker), [], threading.Event()

    def take(index):
        seen.append(index)
        done.set()

    for index in range(5):
        worker.offer(partial(take, index))
    busy.go.set()
    assert done.wait(60.0)
    assert seen == [4]
    assert worker.dropped == 4


def test_small_messages_all_count_and_go_before_the_image(worker):
    busy, seen, done = Busy(worker), [], threading.Event()

    def take_image():
        seen.append("image")
        done.set()

    worker.offer(take_image)
    for index in range(3):
        worker.put(partial(seen.append, index))
    busy.go.set()
    assert done.wait(60.0)
    assert seen == [0, 1, 2, "image"]


def test_a_fast_sensor_pushes_out_its_own_oldest_messages_alone(worker):
    """An IMU at 400 Hz, while the network takes eight seconds for a window."""
    busy, seen, done = Busy(worker), [], threading.Event()
    worker.put(partial(seen.append, "calibration"), "camera_info")
    worker.offer(lambda: (seen.append("image"), done.set()))
    for index in range(3200):
        worker.put(partial(seen.append, index), "imu")
        if index % 40 == 0:
            worker.put(partial(seen.append, "odometry"), "odometry")
    busy.go.set()
    assert done.wait(60.0)
    kinds = Counter("imu" if isinstance(each, int) else each for each in seen)
    assert kinds == {"calibration": 1, "odometry": 80, "imu": 2000, "image": 1}
    assert [each for each in seen if isinstance(each, int)] == list(range(1200, 3200))
    assert worker.pushed_out == {"imu": 1200}
    assert worker.dropped == 0


def test_messages_of_all_kinds_are_taken_in_the_order_of_their_arrival(worker):
    busy, seen = Busy(worker), []
    for index in range(30):
        worker.put(partial(seen.append, index), ("imu", "odometry", "camera_info")[index % 3])
    busy.go.set()
    done = threading.Event()
    worker.offer(done.set)
    assert done.wait(60.0)
    assert seen == list(range(30))


def test_messages_without_end_do_not_hold_up_an_image(worker):
    done = threading.Event()

    def again():
        if not done.is_set():
            worker.put(again, "imu")

    again()
    worker.offer(done.set)
    assert done.wait(60.0)


def test_images_whose_messages_are_pushed_out_or_forgotten_are_counted(worker):
    busy = Busy(worker)
    for _ in range(2003):
        worker.put(lambda: None, "unreadable", images=1)
    assert worker.dropped == 3
    worker.forget()
    assert worker.dropped == 2003
    busy.go.set()


def test_a_call_brings_its_result_or_its_exception(worker):
    assert worker.call(lambda: 7).result(60.0) == 7
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda: 1 // 0).result(60.0)
    assert worker.failures == 0


def test_a_failure_costs_only_its_message(worker):
    worker.put(lambda: 1 // 0)
    assert worker.call(lambda: 8).result(60.0) == 8
    done = threading.Event()
    worker.put(done.set)
    assert done.wait(60.0)
    assert worker.failures == 1
    assert worker.last_failure.startswith("ZeroDivisionError")


def test_what_waits_is_forgotten(worker):
    busy, seen = Busy(worker), []
    worker.offer(lambda: seen.append("image"))
    worker.put(lambda: seen.append("message"))
    worker.forget()
    busy.go.set()
    worker.call(lambda: None).result(60.0)
    assert seen == []


def test_stop_says_whether_the_work_came_to_its_end():
    worker = Worker()
    busy = Busy(worker)
    waiting = worker.call(lambda: None)
    assert not worker.stop(0.01)
    assert waiting.cancelled()
    with pytest.raises(RuntimeError, match="stopped"):
        worker.call(lambda: None).result(60.0)
    busy.go.set()
    assert worker.stop(60.0)


def test_a_failure_after_the_stop_is_no_failure(caplog):
    worker = Worker()
    begun, go = threading.Event(), threading.Event()

    def work():
        begun.set()
        assert go.wait(60.0)
        raise ValueError("the publisher is gone")

    worker.put(work)
    assert begun.wait(60.0)
    assert not worker.stop(0.01)
    go.set()
    assert worker.stop(60.0)
    assert worker.failures == 0
    assert not caplog.records


def test_after_the_last_image_and_a_while_it_is_idle_once():
    idle = threading.Event()
    worker = Worker(on_idle=idle.set, idle_s=0.05)
    assert not idle.wait(0.2)
    for _ in range(2):
        worker.offer(lambda: None)
        assert idle.wait(5.0)
        idle.clear()
        assert not idle.wait(0.2)
    worker.offer(lambda: None)
    worker.forget()
    assert worker.stop(5.0)


def test_images_that_wait_when_all_is_forgotten_are_counted():
    worker = Worker()
    begun, go_on = threading.Event(), threading.Event()
    worker.offer(lambda: (begun.set(), go_on.wait(10)))
    assert begun.wait(10)
    worker.offer(lambda: None, images=4)
    worker.offer(lambda: None, images=3)
    worker.forget()
    worker.forget()
    go_on.set()
    assert worker.stop(10)
    assert worker.dropped == 7
