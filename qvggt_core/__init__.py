"""qvggt without ROS: the network, its quantization, the windows and the map.

A folder of images in ten lines:

    import qvggt_core as qvggt

    network = qvggt.load_network()
    reconstruction = qvggt.Reconstruction(network)
    for path in sorted(Path("photos").glob("*.jpg")):
        reconstruction.add(cv2.imread(str(path))[..., ::-1])
    reconstruction.finish()
    poses, depth = reconstruction.poses, reconstruction.depth
    reconstruction.points.write("points.ply")
"""

from typing import TYPE_CHECKING

from qvggt_core.util.late_imports import late_imports

if TYPE_CHECKING:
    from qvggt_core.errors import QvggtError
    from qvggt_core.geometry.camera import Camera
    from qvggt_core.geometry.cloud import Cloud
    from qvggt_core.sequence import Reconstruction, load_network

__all__ = ["Camera", "Cloud", "QvggtError", "Reconstruction", "load_network"]

__getattr__ = late_imports(
    __name__,
    {
        "Camera": "geometry.camera",
        "Cloud": "geometry.cloud",
        "QvggtError": "errors",
        "Reconstruction": "sequence",
        "load_network": "sequence",
    },
)
