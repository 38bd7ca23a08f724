"""Replays of recordings with a network that a test made."""

from qvggt_core.results.options import EvaluationOptions
from qvggt_core.stream.load_network import LoadedNetwork
from qvggt_ros.drivers.options import ReplayOptions
from qvggt_ros.drivers.replay import Comparison, Watcher
from qvggt_ros.drivers.replay import replay as replay_loaded
from qvggt_ros.evaluation import evaluate_directory

BY_NAME = EvaluationOptions()


def replay(
    bag,
    output,
    network,
    parameters,
    *,
    evaluation=BY_NAME,
    truth_required=False,
    watcher=None,
    **options,
):
    """Replay, with the fields of `ReplayOptions` as arguments."""
    return replay_loaded(
        bag,
        output,
        LoadedNetwork(network, parameters, {}),
        ReplayOptions(**options),
        comparison=Comparison(evaluation, truth_required),
        watcher=watcher or Watcher(),
    )


def evaluate(directory, options, recording=None):
    """Evaluate a result directory; return its metrics."""
    return evaluate_directory(directory, options, recording).metrics
