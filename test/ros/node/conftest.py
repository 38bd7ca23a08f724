"""Lets the tests with a real ROS use the messages and the rooms of the other tests."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]
