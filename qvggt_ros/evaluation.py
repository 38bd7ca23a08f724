"""Results against the truth that recordings hold: topics with poses, TF, depth images."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from qvggt_core.errors import RecordingError
from qvggt_core.parameters import Parameters
from qvggt_core.results import layout
from qvggt_core.results.evaluation import evaluate
from qvggt_core.results.options import EvaluationOptions
from qvggt_core.results.result import Result, read_parameters
from qvggt_core.results.truth import DepthTruth, GroundTruth
from qvggt_ros.io.conversions import frames_of
from qvggt_ros.io.depth_truth import depth_pairs, depth_topic
from qvggt_ros.io.ground_truth import named_ground_truth, read_ground_truth
from qvggt_ros.io.recording import Recording, open_recording


def evaluate_directory(
    directory: Path, options: EvaluationOptions, recording: Path | None = None
) -> Result:
    """Compare a result directory with the truth, and write what is found into it.

    Args:
        directory: a result, as `replay` makes it.
        options: how to compare.
        recording: what was reconstructed, if it is elsewhere now.

    Returns:
        The result with `accuracy` in its metrics.

    Raises:
        EvaluationError: nothing can be compared; the message has the reason.
        RecordingError: the result or the truth cannot be read.
    """
    result = Result.read(directory)
    parameters = read_parameters(directory)
    source = recording or Path(str(result.run.get("recording") or "?"))
    with ExitStack() as stack:
        bag = stack.enter_context(open_recording(directory / layout.BAG))
        if source.exists():
            original = stack.enter_context(open_recording(source))
            result = compare(result, parameters, bag, original, options)
        else:
            truth = truth_of([bag], "", options)
            note = f"there is no recording at {source}: true depth and TF are not used"
            result = evaluate(result, truth, options, notes=[note])
    result.write_comparison(directory)
    return result


def compare(
    result: Result,
    parameters: Parameters,
    bag: Recording,
    original: Recording,
    options: EvaluationOptions,
) -> Result:
    """Compare a result with the truth in its recording.

    Args:
        result: in memory, or read from its directory.
        parameters: those of the reconstruction.
        bag: what the reconstruction published.
        original: what was reconstructed.
        options: how to compare.

    Raises:
        EvaluationError: nothing can be compared; the message has the reason.
        RecordingError: there is no truth, or it cannot be read.
    """
    facts = result.metrics.recording
    truth = truth_of([original, bag], camera_frame_of(original, facts.image_topic), options)
    topic = depth_topic(original, facts.image_topic, options.depth_topic)
    depth = None
    if topic is not None:
        pairs = depth_pairs(
            bag,
            original,
            topic,
            facts.camera_info_topic,
            parameters,
            tolerance_s=options.tolerance_s,
            rectified="image_rect" in facts.image_topic,
        )
        depth = DepthTruth(topic, pairs)
    return evaluate(result, truth, options, depth=depth)


def camera_frame_of(recording: Recording, image_topic: str) -> str:
    """Return the frame that a recording's images are of; empty if they name none."""
    if image_topic not in recording.types:
        return ""
    image = recording.first(image_topic)
    return "" if image is None else frames_of(image)[0]


def truth_of(
    recordings: Sequence[Recording], camera_frame: str, options: EvaluationOptions
) -> GroundTruth:
    """Return the true poses that the options name, or those of the topic that is called so.

    Raises:
        EvaluationError: a file cannot be read.
        RecordingError: there is no such topic, frame or file, or it holds no pose.
    """
    source = options.ground_truth
    if source is None:
        topics = map(named_ground_truth, recordings)
        source = next((topic for topic in topics if topic is not None), None)
    if source is None:
        raise RecordingError(
            f"{recordings[0].path} has no topic that is called ground truth: name the topic or "
            "the file with --ground-truth"
        )
    return read_ground_truth(
        source,
        recordings,
        camera_frame=camera_frame,
        truth_frame=options.truth_frame,
        times=options.times,
    )
