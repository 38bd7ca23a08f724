"""The exceptions of qvggt: one root, one class per thing that can be wrong.

Every message says what was wrong, the value that was found, and what to do about it.
"""

from __future__ import annotations

from pathlib import Path


class QvggtError(Exception):
    """Root of all errors that qvggt raises on purpose."""


class MissingPackageError(QvggtError):
    """A package that only this feature needs is not installed."""


class ParameterError(QvggtError):
    """A parameter is unknown, of the wrong type, or out of its range."""


class CheckpointError(QvggtError):
    """A checkpoint is missing, truncated, foreign, or does not fit the network."""


class ImageError(QvggtError):
    """An image, a camera calibration or a message that carries one cannot be used."""


class RecordingError(QvggtError):
    """A recording cannot be read, or holds nothing that can be reconstructed."""


class MapError(QvggtError):
    """A saved map is missing, damaged, or of another network, or there is none to save."""


class OutputError(QvggtError):
    """An output cannot be written where it was asked for, or something else is there."""


class TransportError(QvggtError):
    """Live messages cannot be sent or received."""


class AlignmentError(QvggtError):
    """A window cannot be aligned to the map."""


class QuantizationError(QvggtError):
    """A network or a calibration set cannot be quantized as asked."""


class TrainingError(QvggtError):
    """A training run cannot start, resume or go on."""


class BenchmarkError(QvggtError):
    """Speed or memory cannot be measured as asked."""


class EvaluationError(QvggtError):
    """A metric is not defined on the data that it was given."""


class DatasetError(QvggtError):
    """A data set is missing, partial, or not laid out as its makers lay it out.

    Attributes:
        missing: the files and directories that are not there, all of them; the message names
            the first ones.
    """

    def __init__(self, message: str, missing: tuple[Path, ...] = ()) -> None:
        """Take the message and what is missing."""
        super().__init__(message)
        self.missing = missing


class ExcludedSceneError(DatasetError):
    """A scene is complete, but the protocol leaves it out; says why."""
