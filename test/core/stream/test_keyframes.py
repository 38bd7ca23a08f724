"""The gate keeps views that show something new, and is not fooled by noise or exposure."""

import numpy as np
import pytest
from support import known_room as room

from qvggt_core.stream import KeyframeGate, View

MIN_MOTION = 0.03


def view(image):
    return View(0, np.ascontiguousarray(image))


def noisy(image, seed, sigma=6.0, gain=1.0, offset=0.0):
    noise = np.random.default_rng(seed).normal(0, sigma, image.shape)
    return np.clip(gain * image + offset + noise, 0, 255).astype(np.uint8)


def gate_at(image):
    """Return a gate whose last keyframe is the image."""
    gate = KeyframeGate(MIN_MOTION)
    assert gate.decide(view(image)).is_keyframe
    return gate


def picture(pose=None):
    return room.image_of(room.hover(1)[0] if pose is None else pose)


def turned(degrees):
    return room.flight(np.zeros((1, 3)), np.radians([[degrees, 0, 0]]))[0]


def test_a_camera_that_stands_still_has_one_keyframe():
    gate = gate_at(noisy(picture(), 0))
    for seed in range(1, 20):
        decision = gate.decide(view(noisy(picture(), seed)))
        assert not decision.is_keyframe
        assert decision.motion < 0.005


@pytest.mark.parametrize("degrees", [0.5, 1.0, 2.0, 4.0])
def test_motion_of_a_turn_is_measured_in_widths(degrees):
    decision = gate_at(picture()).decide(view(picture(turned(degrees))))
    # Near the axis of a pinhole camera pixels move by focal length times angle.
    expected = room.INTRINSICS[0, 0] * np.tan(np.radians(degrees)) / room.WIDTH
    assert decision.motion == pytest.approx(expected, rel=0.25, abs=0.002)
    assert decision.is_keyframe == (decision.motion >= MIN_MOTION)
    assert decision.is_keyframe == (degrees >= 2.5)


def test_parallax_makes_a_keyframe_without_any_turn():
    aside = room.flight(np.array([[0, 0.6, 0]]), np.zeros((1, 3)))[0]
    assert gate_at(picture()).decide(view(picture(aside))).is_keyframe


def test_slow_motion_adds_up_since_the_last_keyframe():
    gate = gate_at(picture())
    kept = [
        step for step in range(1, 21) if gate.decide(view(picture(turned(0.5 * step)))).is_keyframe
    ]
    # 10 degrees are 0.126 widths; a keyframe every 0.03 to 0.04 of them.
    assert 3 <= len(kept) <= 4
    assert np.diff(kept).min() >= 4


@pytest.mark.parametrize(("gain", "offset"), [(0.5, 0), (1.3, 20), (0.8, -30), (0.4, 120)])
def test_exposure_is_not_motion(gain, offset):
    gate = gate_at(noisy(picture(), 0, 2))
    decision = gate.decide(view(noisy(picture(), 1, 2, gain, offset)))
    assert not decision.is_keyframe
    assert decision.motion < 0.005


def test_a_jump_to_another_scene_is_a_keyframe():
    gate = gate_at(picture())
    decision = gate.decide(view(picture(turned(170))))
    assert decision.is_keyframe


def test_a_jump_is_seen_in_a_dim_scene_too():
    dim = [image // 8 + 20 for image in (picture(), picture(turned(170)))]
    assert gate_at(noisy(dim[0], 0, 2)).decide(view(noisy(dim[1], 1, 2))).is_keyframe
    assert not gate_at(noisy(dim[0], 0, 2)).decide(view(noisy(dim[0], 1, 2))).is_keyframe


def test_motion_of_fine_texture_too_far_to_follow_is_a_keyframe():
    gravel = np.random.default_rng(1).integers(60, 200, (84, 400, 1), dtype=np.uint8)
    ground = gravel.repeat(3, axis=2)
    decision = gate_at(ground[:, :112]).decide(view(ground[:, 200:312]))
    assert decision.is_keyframe


def test_a_blank_wall_is_no_keyframe_however_noisy():
    wall = np.full((84, 112, 3), 120, np.uint8)
    for sigma in (0.0, 1.0, 3.0, 8.0):
        gate = gate_at(noisy(wall, 0, sigma))
        for seed in range(1, 5):
            assert not gate.decide(view(noisy(wall, seed, sigma))).is_keyframe


def test_losing_all_texture_is_a_keyframe():
    wall = np.full((84, 112, 3), 120, np.uint8)
    assert gate_at(picture()).decide(view(wall)).is_keyframe
    assert gate_at(wall).decide(view(picture())).is_keyframe


def test_something_that_moves_through_the_image_is_not_the_camera():
    image = picture()
    passing = image.copy()
    passing[20:60, 30:70] = picture(turned(120))[20:60, 30:70]
    assert not gate_at(image).decide(view(passing)).is_keyframe


def test_zero_motion_asked_for_makes_every_frame_a_keyframe():
    gate = KeyframeGate(0.0)
    assert all(gate.decide(view(picture())).is_keyframe for _ in range(3))


def test_the_first_view_after_a_reset_is_a_keyframe():
    gate = gate_at(picture())
    assert not gate.decide(view(picture())).is_keyframe
    gate.reset()
    assert gate.decide(view(picture())).is_keyframe


def test_views_of_the_full_width_are_measured_alike():
    big = np.kron(picture(), np.ones((5, 5, 1), np.uint8))[:392, :518]
    moved = np.roll(big, 30, axis=1)
    decision = gate_at(big).decide(view(moved))
    assert decision.motion == pytest.approx(30 / 518, abs=0.003)
