#!/usr/bin/env bash
# Runs a command with ROS, the virtual environment and the workspace in place.
set -e
source "/opt/ros/${ROS_DISTRO}/setup.bash"
source /workspace/.venv/bin/activate
source /workspace/install/setup.bash
exec "$@"
