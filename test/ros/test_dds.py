"""Live without ROS: what DDS participants say to ROS 2, and a live graph of two processes."""

import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from support import recordings as room

pytest.importorskip("cyclonedds", reason="Cyclone DDS is not installed (the extra dds)")

from cyclonedds.builtin import BuiltinDataReader, BuiltinTopicDcpsPublication
from cyclonedds.domain import DomainParticipant
from cyclonedds.idl import IdlStruct, annotations, types
from cyclonedds.qos import Policy, Qos
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic

from qvggt_core.errors import ParameterError, TransportError
from qvggt_core.parameters import Parameters
from qvggt_ros.drivers.dds.node import DdsNode, Inputs
from qvggt_ros.drivers.dds.participant import Participant
from qvggt_ros.drivers.dds.player import Played, play
from qvggt_ros.drivers.dds.types import idl_type, wire_type
from qvggt_ros.io.conversions import stamp_ns
from qvggt_ros.io.messages import TYPES, rosbags_typestore
from qvggt_ros.publishing import OUTPUTS

ROOT = Path(__file__).parents[2]
TYPESTORE = rosbags_typestore()
IMAGE, INFO = "/camera/image_raw", "/camera/camera_info"
RATE_HZ = 30.0

# Of a ROS 2 Jazzy, from the share/PACKAGE/msg/NAME.json of its message packages.
ROS_TYPE_HASHES = {
    "sensor_msgs/msg/Image": "d31d41a9a4c4bc8eae9be757b0beed306564f7526c88ea6a4588fb9582527d47",
    "sensor_msgs/msg/CompressedImage": (
        "15640771531571185e2efc8a100baf923961a4d15d5569652e6cb6691e8e371a"
    ),
    "sensor_msgs/msg/CameraInfo": (
        "b3dfd68ff46c9d56c80fd3bd4ed22c7a4ddce8c8348f2f59c299e73118e7e275"
    ),
    "sensor_msgs/msg/PointCloud2": (
        "9198cabf7da3796ae6fe19c4cb3bdd3525492988c70522628af5daa124bae2b5"
    ),
    "geometry_msgs/msg/PoseStamped": (
        "10f3786d7d40fd2b54367835614bff85d4ad3b5dab62bf8bca0cc232d73b4cd8"
    ),
    "nav_msgs/msg/Odometry": "3cc97dc7fb7502f8714462c526d369e35b603cfc34d946e3f2eda2766dfec6e0",
    "nav_msgs/msg/Path": "1957a5bb3cee5da65c4e52e52b65a93df227efce4c20f8458b36e73066ca334b",
    "tf2_msgs/msg/TFMessage": "e369d0f05a23ae52508854b66f6aa0437f3449d652e8cbf22d5abe85d020f087",
    "diagnostic_msgs/msg/DiagnosticArray": (
        "5a8a36efb05fb25070fa0fb3810290c0e6cd4862b54a8fb975a1ee8dc55a333e"
    ),
    "rmw_dds_common/msg/ParticipantEntitiesInfo": (
        "91a0593bacdcc50ea9bdcf849a938b128412cc1ea821245c663bcd26f83c295e"
    ),
}

# Ports of domains above 101 lie where Linux takes those of connections from.
_domains = itertools.cycle(range(1, 102))
for _ in range(os.getpid() % 101):
    next(_domains)


@pytest.fixture
def domain_id() -> int:
    """A domain of its own, as far as tests that run side by side allow."""
    return next(_domains)


@pytest.fixture
def participant(domain_id) -> Iterator[Participant]:
    joined = Participant("tester", namespace="lab", domain_id=domain_id)
    yield joined
    joined.close()


def spin_until(participant: Participant, done: Callable[[], Any], timeout_s: float = 60.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline:
            return False
        participant.spin(0.05)
    return True


# What goes over the wire


def test_a_message_arrives_as_it_was(participant):
    arrived: list[Any] = []
    subscription = participant.subscribe(IMAGE, TYPES["Image"], arrived.append)
    publisher = participant.publisher(IMAGE, TYPES["Image"])
    assert (publisher.subscribers, subscription.publishers) == (1, 1)
    sent = [room.image_message(index) for index in range(3)]
    for message in sent:
        publisher.publish(message)
    assert spin_until(participant, lambda: len(arrived) == 3)
    for before, after in zip(sent, arrived, strict=True):
        assert after.header == before.header
        assert after.encoding == before.encoding
        np.testing.assert_array_equal(after.data, before.data)


def diagnostics() -> Any:
    value = room.M.KeyValue(key="rate_hz", value="29.97")
    status = room.M.DiagnosticStatus(
        level=1, name="qvggt", message="warns", hardware_id="", values=[value, value]
    )
    return room.M.DiagnosticArray(header=room.header(1, ""), status=[status])


def cloud() -> Any:
    field = room.M.PointField(name="x", offset=0, datatype=room.M.PointField.FLOAT32, count=1)
    return room.M.PointCloud2(
        header=room.header(2),
        height=1,
        width=3,
        fields=[field],
        is_bigendian=False,
        point_step=4,
        row_step=12,
        data=np.arange(12, dtype=np.uint8),
        is_dense=True,
    )


def as_sample(message: Any, known: dict[str, Any]) -> Any:
    """Return one of rosbags' messages as a sample that Cyclone DDS serialises itself."""
    if isinstance(message, np.ndarray):
        return message.tobytes() if message.dtype == np.uint8 else message.tolist()
    if isinstance(message, list):
        return [as_sample(element, known) for element in message]
    if not hasattr(message, "__msgtype__"):
        return message
    _, fields = TYPESTORE.fielddefs[message.__msgtype__]
    return known[message.__msgtype__](
        **{name: as_sample(getattr(message, name), known) for name, _ in fields}
    )


@pytest.mark.parametrize(
    "message",
    [
        room.image_message(0),
        room.camera_info_message(1),
        room.pose_message(2),
        cloud(),
        diagnostics(),
    ],
    ids=lambda message: message.__msgtype__,
)
def test_what_is_sent_is_what_cyclone_dds_makes_of_the_announced_type(message):
    """The IDL that is announced and the bytes of the type store are one format."""
    known: dict[str, Any] = {}
    idl_type(TYPESTORE, message.__msgtype__, known)
    own = bytes(TYPESTORE.serialize_cdr(message, message.__msgtype__))
    theirs = as_sample(message, known).serialize(use_version_2=False)
    assert theirs[:2] == own[:2] == b"\x00\x01"
    # Both pad the end to whole words, and one of them says so in the room.header.
    size = min(len(own), len(theirs))
    assert own[4:size] == theirs[4:size]
    assert max(len(own), len(theirs)) - size < 4


def test_a_type_is_announced_by_one_class_however_many_topics_have_it():
    """With a class for each topic, Cyclone DDS takes all memory at the 33rd."""
    kinds = [wire_type(rosbags_typestore(), TYPES["Image"]) for _ in range(40)]
    assert len({id(kind.announced) for kind in kinds}) == 1
    other = get_typestore(Stores.EMPTY)
    other.register(get_types_from_msg("int32 width", "sensor_msgs/msg/Image"))
    assert wire_type(other, TYPES["Image"]).announced is not kinds[0].announced


def test_a_recording_with_forty_topics_of_a_type_can_be_played(participant):
    publishers = [participant.publisher(f"/joint_{n}", TYPES["PoseStamped"]) for n in range(40)]
    assert len({publisher.writer.guid for publisher in publishers}) == 40


def test_octets_are_announced_as_byte():
    """Announced as uint8, they crash peers of Cyclone DDS 0.10.5."""
    for name in ("Image", "CompressedImage", "PointCloud2"):
        known: dict[str, Any] = {}
        idl_type(TYPESTORE, TYPES[name], known)
        assert "uint8" not in repr([each.__annotations__ for each in known.values()])
        assert "'byte'" in repr(known[TYPES[name]].__annotations__["data"])


def announced(domain_id: int) -> dict[str, tuple[str, bytes]]:
    """Return topic, type name and user data of all publishers, as other participants see them."""
    observer = DomainParticipant(domain_id)
    reader = BuiltinDataReader(observer, BuiltinTopicDcpsPublication)
    return {
        each.topic_name: (each.type_name, each.qos[Policy.Userdata].data)
        for each in reader.take(100)
    }


@pytest.mark.parametrize("name", ROS_TYPE_HASHES)
def test_publishers_are_announced_with_the_names_and_type_hashes_of_ros(
    name, participant, domain_id
):
    topic = "rt/some/topic"
    if name in TYPES.values():
        participant.publisher("/some/topic", name)
    else:
        topic = "ros_discovery_info"
    package, _, short = name.split("/")
    assert announced(domain_id)[topic] == (
        f"{package}::msg::dds_::{short}_",
        f"typehash=RIHS01_{ROS_TYPE_HASHES[name]};".encode(),
    )


@dataclass
@annotations.final
class Gid(IdlStruct, typename="rmw_dds_common.msg.dds_.Gid_"):
    data: types.array[types.byte, 16]


@dataclass
@annotations.final
class NodeEntitiesInfo(IdlStruct, typename="rmw_dds_common.msg.dds_.NodeEntitiesInfo_"):
    node_namespace: types.bounded_str[256]
    node_name: types.bounded_str[256]
    reader_gid_seq: types.sequence[Gid]
    writer_gid_seq: types.sequence[Gid]


@dataclass
@annotations.final
class ParticipantEntitiesInfo(
    IdlStruct, typename="rmw_dds_common.msg.dds_.ParticipantEntitiesInfo_"
):
    gid: Gid
    node_entities_info_seq: types.sequence[NodeEntitiesInfo]


def test_the_node_says_which_endpoints_are_its_own(participant, domain_id):
    """As `ros2 node list` and `ros2 node info` read it: one latched message for the process."""
    publisher = participant.publisher("/a", TYPES["Image"])
    subscription = participant.subscribe("/b", TYPES["Image"], pytest.fail)
    other = DomainParticipant(domain_id)
    reader = DataReader(
        other,
        Topic(other, "ros_discovery_info", ParticipantEntitiesInfo),
        Qos(Policy.Reliability.Reliable(0), Policy.Durability.TransientLocal),
    )
    info = next(reader.take_iter(timeout=10 * 10**9))
    (node,) = info.node_entities_info_seq
    assert (node.node_namespace, node.node_name) == ("/lab", "tester")
    assert [bytes(gid.data) for gid in node.writer_gid_seq] == [publisher.writer.guid.bytes]
    assert [bytes(gid.data) for gid in node.reader_gid_seq] == [subscription.reader.guid.bytes]
    # All entities of one participant have its prefix.
    assert bytes(info.gid.data)[:12] == publisher.writer.guid.bytes[:12]


def test_who_comes_late_gets_what_is_latched(participant):
    publisher = participant.publisher("/path", TYPES["PoseStamped"], latched=True)
    publisher.publish(room.pose_message(1))
    publisher.publish(room.pose_message(2))
    arrived: list[Any] = []
    participant.subscribe(
        "/path", TYPES["PoseStamped"], arrived.append, reliable=True, latched=True
    )
    assert spin_until(participant, lambda: arrived)
    assert [stamp_ns(message) for message in arrived] == [room.stamp_of(2)]


def with_frame_id(frame_id: bytes) -> bytes:
    """Return an Image on the wire whose frame_id has these bytes."""
    data = bytes(TYPESTORE.serialize_cdr(room.image_message(0), TYPES["Image"]))
    own = b"camera_optical_frame"
    assert data.count(own) == 1
    return data.replace(own, frame_id.ljust(len(own), b"x"))


def test_bytes_that_are_no_message_cost_themselves(participant):
    """Cyclone DDS holds back what is not of the type; what it lets through may still be garbage."""
    arrived: list[Any] = []
    refused: list[str] = []
    participant.subscribe(IMAGE, TYPES["Image"], arrived.append, refuse=refused.append)
    publisher = participant.publisher(IMAGE, TYPES["Image"])
    publisher.publish_cdr(with_frame_id(b"\xff"))
    publisher.publish(room.image_message(1))
    assert spin_until(participant, lambda: arrived)
    (reason,) = refused
    assert re.match(r"a sensor_msgs/msg/Image of \d+ bytes cannot be read .*utf-8", reason)
    with pytest.raises(TransportError, match="a message cannot be sent"):
        publisher.publish_cdr(b"\x00\x01\x00\x00 no image at all")


# What is refused


@pytest.mark.parametrize("topic", ["", "/", "a b", "/1st", "/a//b", "~/image", "/image<"])
def test_a_topic_without_a_ros_name_is_refused(participant, topic):
    with pytest.raises(ParameterError, match="is no name of ROS"):
        participant.publisher(topic, TYPES["Image"])


def test_a_type_that_is_unknown_is_refused(participant):
    with pytest.raises(TransportError, match="my_msgs/msg/Mine is not known"):
        participant.publisher("/mine", "my_msgs/msg/Mine")


@pytest.mark.parametrize("interface", ["no_such_device", "203.0.113.77", 'lo"/><x y="'])
def test_an_interface_that_is_not_there_is_named(domain_id, interface):
    with pytest.raises(TransportError, match="cannot be joined on the interface"):
        Participant("tester", domain_id=domain_id, interface=interface)


def test_a_domain_is_left_when_it_is_closed(participant, domain_id):
    with pytest.raises(TransportError, match=f"domain {domain_id} cannot be joined"):
        Participant("second", domain_id=domain_id)
    participant.close()
    Participant("second", domain_id=domain_id).close()


@pytest.mark.parametrize("domain", [-1, 233])
def test_a_domain_that_has_no_ports_is_refused(domain):
    with pytest.raises(ParameterError, match=f"domain {domain} is not among 0 to 232"):
        Participant("tester", domain_id=domain)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"cameras": ["front", "left"]}, "put together by the ROS node alone"),
        ({"publish_tf": "map_to_odom"}, "needs the robot's transforms"),
    ],
)
def test_what_only_the_ros_node_can_do_is_refused_before_the_network_loads(values, reason):
    with pytest.raises(ParameterError, match=reason):
        DdsNode(Parameters.build(values), Inputs(IMAGE, INFO, "/odom"), load=pytest.fail)


def test_without_cyclone_dds_the_command_names_the_extra():
    code = (
        "import sys; sys.modules['cyclonedds'] = None\n"
        "from qvggt_ros.cli import app; app.main(['live'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 2
    assert "pip install 'qvggt_ros[dds]'" in done.stderr
    assert "Traceback" not in done.stderr


# Two processes


@contextmanager
def command(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run the `qvggt` command, its network the slow one of the room."""
    process = subprocess.Popen(
        [sys.executable, "-m", "support.slow_room", *map(str, arguments)],
        cwd=ROOT / "test",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def live(domain_id: int, *settings: str, options: Sequence[str] = ()) -> Any:
    settings = tuple(part for setting in settings for part in ("--set", setting))
    return command("live", "--domain-id", domain_id, *settings, *options)


# Each image that the network sees starts it, so that its age is known for all of them.
EVERY_FRAME = (
    "window_size=2",
    "window_stride=1",
    "keyframe_min_motion=0",
    "metres_per_unit=1",
    "publish_tf=world_to_camera",
    "diagnostics_period_s=0.2",
    # The network knows the room by the number of images that it saw: where some are dropped, the
    # images contradict it, rightly, and there is no depth and no map.
    "confirm=false",
    "refine=false",
)


class Camera:
    """Publishes images of the room at 30 Hz from a thread, stamped when they are taken."""

    def __init__(self, participant: Participant) -> None:
        self.stamps: list[int] = []
        self.image = participant.publisher(IMAGE, TYPES["Image"])
        self._info = participant.publisher(INFO, TYPES["CameraInfo"])
        self._pictures = [room.image_message(index) for index in range(20)]
        self._stopped = threading.Event()
        self._running = threading.Event()
        self._running.set()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Camera":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        self._running.set()
        self._thread.join()

    def pause(self) -> None:
        self._running.clear()
        time.sleep(2.0 / RATE_HZ)

    def go_on(self) -> None:
        self._running.set()

    def _run(self) -> None:
        due = time.monotonic()
        for index in itertools.count():
            self._running.wait()
            stamp = time.time_ns()
            message = self._pictures[index % len(self._pictures)]
            message.header = room.header(0, stamp_ns=stamp)
            self._info.publish(room.camera_info_message(0, header=message.header))
            self.image.publish(message)
            self.stamps.append(stamp)
            due += 1.0 / RATE_HZ
            if self._stopped.wait(max(0.0, due - time.monotonic())):
                return


class Listener:
    """Hears all that the server publishes."""

    def __init__(self, participant: Participant) -> None:
        self.messages: dict[str, list[Any]] = defaultdict(list)
        self.state: dict[str, str] = {}
        for topic, name in OUTPUTS.items():
            participant.subscribe(
                "/tf" if topic == "tf" else f"/qvggt/{topic}",
                TYPES[name],
                self.messages[topic].append,
                reliable=True,
                depth=100,
            )
        participant.subscribe("/diagnostics", TYPES["DiagnosticArray"], self._diagnostics)

    def count(self, name: str) -> int:
        return int(self.state.get(name, 0))

    def _diagnostics(self, message: Any) -> None:
        (status,) = message.status
        self.state = {value.key: value.value for value in status.values}


@pytest.mark.timing
def test_a_camera_at_30_hz_against_a_slow_network(participant, domain_id):
    """The newest image wins, what is older is dropped and counted, and Ctrl-C ends it at once."""
    listener = Listener(participant)
    with live(domain_id, *EVERY_FRAME) as server, Camera(participant) as camera:
        spin_until(participant, lambda: listener.count("windows") >= 30)
        state = dict(listener.state)
        server.send_signal(signal.SIGINT)
        printed, errors = server.communicate(timeout=2.0)
    sent = set(camera.stamps)

    assert listener.count("windows") >= 30, errors
    assert float(state["age_s.p50"]) <= 0.050, state
    # At most the one that waits and the one that is worked on are neither seen nor dropped.
    images, received, dropped = (int(state[name]) for name in ("images", "received", "dropped"))
    assert 0 <= images - received - dropped <= 2
    assert dropped > received
    assert images <= len(sent)

    for topic in OUTPUTS:
        assert listener.messages[topic], f"nothing came on {topic}"
    for topic in ("pose", "odometry", "depth/image", "depth/camera_info", "confidence", "points"):
        stamps = [stamp_ns(message) for message in listener.messages[topic]]
        assert set(stamps) <= sent, topic
        assert stamps == sorted(set(stamps)), topic
    assert listener.messages["pose"][-1].header.frame_id == "map"

    assert server.returncode == 0
    assert "dropped" in printed.splitlines()[-1]
    assert "Traceback" not in errors


@pytest.mark.timing
def test_who_listens_late_is_served_and_garbage_is_left_out(participant, domain_id, tmp_path):
    states: list[dict[str, str]] = []

    def take(message: Any) -> None:
        states.append({value.key: value.value for value in message.status[0].values})

    def rejected() -> int:
        return sum(int(n) for name, n in states[-1].items() if name.startswith("rejected."))

    participant.subscribe("/diagnostics", TYPES["DiagnosticArray"], take)
    garbage = [
        room.image_message(0, data=np.zeros(10, dtype=np.uint8)),
        room.image_message(0, encoding="32FC1"),
        room.image_message(0, width=2**31),
    ]
    with (
        live(
            domain_id,
            *EVERY_FRAME,
            f"map_directory={tmp_path}",
            options=("--namespace", "robot", "--save-map"),
        ) as server,
        Camera(participant) as camera,
    ):
        assert spin_until(participant, lambda: states and int(states[-1]["published"]) > 3)
        poses: list[Any] = []
        participant.subscribe("/robot/pose", TYPES["PoseStamped"], poses.append, reliable=True)
        assert spin_until(participant, lambda: poses)

        camera.pause()
        for message in garbage:
            before = rejected()
            message.header = room.header(0, stamp_ns=time.time_ns())
            camera.image.publish(message)
            assert spin_until(participant, lambda before=before: rejected() == before + 1)
        camera.image.publish_cdr(with_frame_id(b"\xff"))
        assert spin_until(participant, lambda: rejected() == len(garbage) + 1)
        camera.go_on()
        before = len(poses)
        assert spin_until(participant, lambda: len(poses) > before + 2)

        server.send_signal(signal.SIGINT)
        printed, _ = server.communicate(timeout=30)
    assert server.returncode == 0
    (saved,) = tmp_path.glob("map_*.ply")
    assert f"wrote {saved}" in printed
    assert {message.header.frame_id for message in poses} == {"map"}


def test_a_recording_is_played_as_if_it_happened_now(participant, domain_id, tmp_path):
    bag = room.write_recording(tmp_path / "room", room.room_entries(12))
    arrived: dict[str, list[Any]] = {IMAGE: [], INFO: []}
    for topic, name in ((IMAGE, "Image"), (INFO, "CameraInfo")):
        participant.subscribe(topic, TYPES[name], arrived[topic].append, reliable=True, depth=100)
    began = time.time_ns()
    with command("play", bag, "--domain-id", domain_id, "--rate", 2) as player:
        assert spin_until(participant, lambda: len(arrived[INFO]) == 12)
        printed, _ = player.communicate(timeout=30)
    stamps = [stamp_ns(message) for message in arrived[IMAGE]]
    assert began < stamps[0]
    assert stamps[-1] < time.time_ns()
    # Twice as fast, so half the period, to the rounding of nanoseconds.
    np.testing.assert_allclose(np.diff(stamps), room.PERIOD_NS / 2, atol=1)
    assert [stamp_ns(message) for message in arrived[INFO]] == stamps
    np.testing.assert_array_equal(arrived[IMAGE][5].data, room.image_message(5).data)
    assert f"played 36 messages of {bag}" in printed


def test_a_recording_is_played_with_its_own_stamps_on_request(participant, tmp_path):
    bag = room.write_recording(tmp_path / "room", room.room_entries(3))
    arrived: list[Any] = []
    participant.subscribe(IMAGE, TYPES["Image"], arrived.append, reliable=True, depth=100)
    assert play(bag, participant, rate=10.0, keep_stamps=True) == Played(9, ())
    assert spin_until(participant, lambda: len(arrived) == 3)
    recorded = [data for _, data, _ in room.read_recording(bag)[IMAGE]]
    sent = [bytes(TYPESTORE.serialize_cdr(message, TYPES["Image"])) for message in arrived]
    assert sent == recorded


def test_a_message_that_is_broken_costs_itself(participant, tmp_path):
    bag = tmp_path / "room"
    with Writer(bag, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection(IMAGE, TYPES["Image"], typestore=TYPESTORE)
        writer.write(connection, room.stamp_of(0), with_frame_id(b"\xff"))
        good = TYPESTORE.serialize_cdr(room.image_message(1), TYPES["Image"])
        writer.write(connection, room.stamp_of(1), good)
    arrived: list[Any] = []
    participant.subscribe(IMAGE, TYPES["Image"], arrived.append, reliable=True, depth=100)
    played = play(bag, participant)
    assert spin_until(participant, lambda: arrived)
    assert played.messages == len(arrived) == 1
    (warning,) = played.warnings
    assert warning.startswith(f"a message of {IMAGE} is left out: a sensor_msgs/msg/Image")


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_rate_that_is_none_is_refused(rate, participant, tmp_path):
    with pytest.raises(ParameterError, match="is not above zero"):
        play(tmp_path, participant, rate=rate)


def test_nothing_is_sent_beyond_this_machine_by_default(participant):
    """Cyclone DDS receives on all addresses; what it sends from is bound to the interface."""
    bound = {each.laddr.ip for each in psutil.Process().net_connections("udp")}
    assert bound == {"0.0.0.0", "127.0.0.1"}
