"""qvggt on ROS 2: messages and recordings in, poses, depth and points out."""
