"""A DDS participant with the topics and types of ROS 2."""
