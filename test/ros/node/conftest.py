"""Lets the tests with a real ROS use the messages and the rooms of the other tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
