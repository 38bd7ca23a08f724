"""Starts the node: an entry point that Ctrl-C ends quietly also while PyTorch is imported."""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Run the ROS 2 node until Ctrl-C."""
    # There is nothing to lose yet; from rclpy.init on its own handler is in place.
    signal.signal(signal.SIGINT, lambda signum, frame: os._exit(0))
    from qvggt_ros.drivers.node import main as run

    run()


if __name__ == "__main__":
    main()
