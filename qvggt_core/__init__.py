"""qvggt without ROS: the network, its quantization, the windows and the map."""
