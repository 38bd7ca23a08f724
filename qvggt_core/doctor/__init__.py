"""Checks of an installation, a machine, a checkpoint and a camera, each with what to do."""

from qvggt_core.doctor.camera_stream import CameraStream, check_camera_stream
from qvggt_core.doctor.checkpoint import check_checkpoint
from qvggt_core.doctor.computing import check_computing
from qvggt_core.doctor.finding import Finding, Level
from qvggt_core.doctor.installation import check_installation
from qvggt_core.doctor.machine import check_machine
from qvggt_core.doctor.ros_environment import check_ros_environment

__all__ = [
    "CameraStream",
    "Finding",
    "Level",
    "check_camera_stream",
    "check_checkpoint",
    "check_computing",
    "check_installation",
    "check_machine",
    "check_ros_environment",
]
