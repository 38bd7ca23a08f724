"""The recording of a result: what it takes over from the input's."""

from types import SimpleNamespace

from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from qvggt_ros.drivers.bag_writer import BagWriter
from qvggt_ros.io.recording import open_recording


def test_a_reference_whose_type_is_not_defined_whole_is_left_out(tmp_path):
    typestore = get_typestore(Stores.ROS2_HUMBLE)
    typestore.register(get_types_from_msg("a_msgs/msg/Poinu place", "a_msgs/msg/Broken"))
    recording = SimpleNamespace(
        types={"/whole": "geometry_msgs/msg/PoseStamped", "/broken": "a_msgs/msg/Broken"},
        typestore=typestore,
    )
    topics = SimpleNamespace(reference=("/whole", "/broken"))
    writer = BagWriter(tmp_path / "bag", "mcap", recording, topics)
    for topic in topics.reference:
        writer.copy(topic, bytes(64), 5)
    writer.close()
    with open_recording(tmp_path / "bag") as written:
        assert "/whole" in written.types
        assert "/broken" not in written.types
