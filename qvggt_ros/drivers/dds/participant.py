"""DDS participants that ROS 2 takes for nodes: publishers and subscriptions without a ROS.

A transport, not a ROS: topics with ROS 2's names, types, type hashes and quality of service, and
an entry in `ros2 node list`; no parameters, no services, no tf2. Messages are rosbags' classes.
"""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Callable
from typing import Any, NamedTuple
from xml.sax.saxutils import quoteattr

import numpy as np
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from qvggt_core.errors import ParameterError, TransportError
from qvggt_core.optional import missing_package
from qvggt_ros.io.messages import rosbags_typestore

try:
    from cyclonedds.core import (
        DDSException,
        InstanceState,
        ReadCondition,
        SampleState,
        ViewState,
        WaitSet,
    )
    from cyclonedds.domain import Domain, DomainParticipant
    from cyclonedds.internal import InvalidSample
    from cyclonedds.pub import DataWriter
    from cyclonedds.qos import Policy, Qos
    from cyclonedds.sub import DataReader
    from cyclonedds.topic import Topic
    from cyclonedds.util import duration

    from qvggt_ros.drivers.dds.types import WireType, wire_type
except ImportError as error:
    raise missing_package(error, "cyclonedds") or error from error

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
MAX_DOMAIN_ID = 232

_DISCOVERY_TOPIC = "ros_discovery_info"
_DISCOVERY_TYPE = "rmw_dds_common/msg/ParticipantEntitiesInfo"
# Of Iron and later, whose GID has 16 bytes (Humble: 24). rosbags' own definitions call them
# char, which ROS takes for uint8, and so have hashes that are not those of ROS.
_DISCOVERY_DEFINITIONS = {
    "rmw_dds_common/msg/Gid": "uint8[16] data",
    "rmw_dds_common/msg/NodeEntitiesInfo": (
        "string<=256 node_namespace\n"
        "string<=256 node_name\n"
        "Gid[] reader_gid_seq\n"
        "Gid[] writer_gid_seq"
    ),
    _DISCOVERY_TYPE: "Gid gid\nNodeEntitiesInfo[] node_entities_info_seq",
}

_TOPIC_NAME = re.compile(r"/?[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*")
# Longer than a whole cloud takes; then a reader that hangs costs messages, never the robot's time.
_MAX_BLOCKING = duration(milliseconds=100)
_MAX_SAMPLE = "256MiB"


class Participant:
    """What is one process, and one node, to the graph.

    A process has one at a time in a domain. Callbacks run in `spin`; publishing is possible from
    any thread.
    """

    def __init__(
        self, name: str, *, namespace: str = "", domain_id: int = 0, interface: str = LOOPBACK
    ) -> None:
        """Join a domain.

        Args:
            name: name of the node.
            namespace: its namespace.
            domain_id: as ROS_DOMAIN_ID, 0 to 232.
            interface: name or address of the network interface; by default nothing is sent
                beyond this machine. Cyclone DDS listens on all addresses whatever the interface:
                who is on a hostile network needs a firewall. CYCLONEDDS_URI is not read.

        Raises:
            ParameterError: a name or the domain is refused.
            TransportError: the interface cannot be used, or the process is in this domain already.
        """
        if not 0 <= domain_id <= MAX_DOMAIN_ID:
            raise ParameterError(f"domain {domain_id} is not among 0 to {MAX_DOMAIN_ID}")
        self._namespace = "/" + _checked(namespace).strip("/") if namespace.strip("/") else "/"
        self._name = _checked(name)
        self._typestore = rosbags_typestore()
        self._discovery = _discovery_typestore()
        self._subscriptions: list[Subscription] = []
        self._publishers: list[Publisher] = []
        try:
            self._domain = Domain(domain_id, _configuration(interface))
            self._entity = DomainParticipant(domain_id, Qos(Policy.Userdata(b"enclave=/;")))
            self._waitset = WaitSet(self._entity)
            discovery = wire_type(self._discovery, _DISCOVERY_TYPE)
            self._announcement = Publisher(
                _Channel(self._entity, _DISCOVERY_TOPIC, discovery, _quality(latched=True))
            )
        except DDSException as error:
            raise TransportError(
                f"domain {domain_id} cannot be joined on the interface {interface}: {error}; "
                "`ip address` lists the interfaces"
            ) from error
        self._announce()

    def publisher(
        self,
        topic: str,
        type_name: str,
        *,
        latched: bool = False,
        depth: int = 1,
        typestore: Typestore | None = None,
    ) -> Publisher:
        """Publish a topic, reliably.

        Args:
            topic: absolute name.
            type_name: full name of the message type, such as sensor_msgs/msg/Image.
            latched: whether who comes late gets the newest messages too (transient local).
            depth: messages that are kept for who is slow.
            typestore: where the type is defined, if not in ROS 2 itself.

        Raises:
            ParameterError: the name is refused.
            TransportError: the type cannot be announced.
        """
        quality = _quality(latched=latched, depth=depth)
        publisher = Publisher(self._channel(topic, type_name, quality, typestore))
        self._publishers.append(publisher)
        self._announce()
        return publisher

    def subscribe(
        self,
        topic: str,
        type_name: str,
        take: Callable[[Any], None],
        *,
        refuse: Callable[[str], None] = logger.warning,
        reliable: bool = False,
        latched: bool = False,
        depth: int = 5,
    ) -> Subscription:
        """Subscribe to a topic; best effort by default, which hears every publisher.

        Args:
            topic: absolute name.
            type_name: full name of the message type.
            take: called with each message; its arrays are read-only.
            refuse: called with the reason when the bytes are no message of this type.
            reliable: ask for what was lost on the way; hears only reliable publishers.
            latched: get what was published before; hears only latched publishers.
            depth: messages that are kept between two calls of `spin`.

        Raises:
            ParameterError: the name is refused.
            TransportError: the type cannot be announced.
        """
        quality = _quality(reliable=reliable, latched=latched, depth=depth)
        channel = self._channel(topic, type_name, quality)
        subscription = Subscription(channel, take, refuse, depth)
        self._subscriptions.append(subscription)
        self._waitset.attach(subscription.condition)
        self._announce()
        return subscription

    def _channel(
        self, topic: str, type_name: str, quality: Qos, typestore: Typestore | None = None
    ) -> _Channel:
        announced = wire_type(typestore or self._typestore, type_name)
        return _Channel(self._entity, _wire_topic(topic), announced, quality)

    def spin(self, timeout_s: float) -> None:
        """Wait for messages, at most for so long, and hand over those that came."""
        if self._waitset.wait(duration(seconds=timeout_s)):
            for subscription in self._subscriptions:
                subscription.deliver()

    def close(self) -> None:
        """Leave the domain; others see it at once. Publishers and subscriptions end with it."""
        if not hasattr(self, "_domain"):
            return
        for attached, _ in list(self._waitset.attached):
            self._waitset.detach(attached)
        for subscription in self._subscriptions:
            subscription.close()
        for publisher in (*self._publishers, self._announcement):
            publisher.close()
        self._subscriptions, self._publishers = [], []
        # A binding's entity ends when nothing refers to it: children first, the domain last.
        del self._announcement, self._waitset, self._entity, self._domain

    def _announce(self) -> None:
        """Say which endpoints are the node's, as a ROS node does (rmw_dds_common)."""
        gid, node, participant = (self._discovery.types[name] for name in _DISCOVERY_DEFINITIONS)

        def gid_of(entity: Any) -> Any:
            return gid(data=np.frombuffer(entity.guid.bytes, dtype=np.uint8))

        self._announcement.publish(
            participant(
                gid=gid_of(self._entity),
                node_entities_info_seq=[
                    node(
                        node_namespace=self._namespace,
                        node_name=self._name,
                        reader_gid_seq=[gid_of(each.reader) for each in self._subscriptions],
                        writer_gid_seq=[gid_of(each.writer) for each in self._publishers],
                    )
                ],
            )
        )


class _Channel(NamedTuple):
    """A topic in a domain, with its type and the quality of service of one who takes part."""

    participant: DomainParticipant
    topic: str
    type: WireType
    quality: Qos

    def description(self) -> tuple[DomainParticipant, Topic, Qos]:
        """Return what a reader or a writer is made of."""
        topic = Topic(self.participant, self.topic, self.type.announced)
        quality = Qos(Policy.Userdata(self.type.user_data), base=self.quality)
        return self.participant, topic, quality


class Publisher:
    """Publishes one topic; made by `Participant.publisher`.

    Attributes:
        dropped: messages that were not sent because a reader kept up too badly.
        writer: the DDS entity.
    """

    def __init__(self, channel: _Channel) -> None:
        """Announce the publisher."""
        self.dropped = 0
        self._type = channel.type
        self.writer = DataWriter(*channel.description())

    @property
    def subscribers(self) -> int:
        """Number of subscriptions that hear this publisher."""
        return self.writer.get_publication_matched_status().current_count

    def publish(self, message: Any) -> None:
        """Send a message.

        Raises:
            TransportError: it cannot be sent.
        """
        self.publish_cdr(self._type.serialize(message))

    def publish_cdr(self, data: bytes) -> None:
        """Send a message that is serialised already, such as one from a recording.

        Raises:
            TransportError: it cannot be sent.
        """
        try:
            self.writer.write(self._type.announced.of(data))
        except DDSException as error:
            if error.code != DDSException.DDS_RETCODE_TIMEOUT:
                raise TransportError(f"a message cannot be sent: {error}") from error
            self.dropped += 1

    def close(self) -> None:
        """Take the publisher back."""
        del self.writer


class Subscription:
    """Hears one topic; made by `Participant.subscribe`.

    Attributes:
        reader: the DDS entity.
        condition: what a wait set waits for.
    """

    def __init__(
        self,
        channel: _Channel,
        take: Callable[[Any], None],
        refuse: Callable[[str], None],
        depth: int,
    ) -> None:
        """Announce the subscription."""
        self._type = channel.type
        self._take = take
        self._refuse = refuse
        self._depth = depth
        self.reader = DataReader(*channel.description())
        self.condition = ReadCondition(
            self.reader, SampleState.Any | ViewState.Any | InstanceState.Any
        )

    @property
    def publishers(self) -> int:
        """Number of publishers that this subscription hears."""
        return self.reader.get_subscription_matched_status().current_count

    def deliver(self) -> None:
        """Hand over what came, the oldest first."""
        for sample in self.reader.take(self._depth):
            # Not data but news: that a publisher went away.
            if isinstance(sample, InvalidSample):
                continue
            try:
                message = self._type.deserialize(sample.cdr)
            except Exception as error:  # bytes from the network raise whatever they lead to
                self._refuse(
                    f"a {self._type.name} of {len(sample.cdr)} bytes cannot be read "
                    f"({type(error).__name__}: {error})"
                )
            else:
                self._take(message)

    def close(self) -> None:
        """Take the subscription back."""
        del self.condition, self.reader


def _discovery_typestore() -> Typestore:
    typestore = get_typestore(Stores.EMPTY)
    for name, text in _DISCOVERY_DEFINITIONS.items():
        typestore.register(get_types_from_msg(text, name))
    return typestore


def _wire_topic(topic: str) -> str:
    return f"rt/{_checked(topic).lstrip('/')}"


def _checked(name: str) -> str:
    if not _TOPIC_NAME.fullmatch(name.rstrip("/")):
        raise ParameterError(
            f"{name!r} is no name of ROS: letters, digits and underscores between slashes, and "
            "no digit first"
        )
    return name


def _quality(*, reliable: bool = True, latched: bool = False, depth: int = 1) -> Qos:
    return Qos(
        Policy.Reliability.Reliable(_MAX_BLOCKING) if reliable else Policy.Reliability.BestEffort,
        Policy.Durability.TransientLocal if latched else Policy.Durability.Volatile,
        Policy.History.KeepLast(depth),
        Policy.DataRepresentation(use_cdrv0_representation=True),
        Policy.WriterDataLifecycle(autodispose=False),
    )


def _configuration(interface: str) -> str:
    """Return the configuration of a domain: one interface, room for whole clouds."""
    try:
        address = ipaddress.ip_address(interface)
        chosen, loopback = f"address={quoteattr(interface)}", address.is_loopback
    except ValueError:
        chosen, loopback = f"name={quoteattr(interface)}", interface in ("lo", "lo0")
    # The loopback device has no multicast: participants are looked for one by one, by the ports
    # of their index, as ROS 2 does with ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST.
    multicast = "<AllowMulticast>false</AllowMulticast>" if loopback else ""
    discovery = (
        "<Discovery><ParticipantIndex>auto</ParticipantIndex>"
        "<MaxAutoParticipantIndex>100</MaxAutoParticipantIndex>"
        f'<Peers><Peer address="{LOOPBACK}"/></Peers></Discovery>'
    )
    return (
        '<CycloneDDS><Domain Id="any"><General>'
        f"<Interfaces><NetworkInterface {chosen}/></Interfaces>{multicast}"
        "<MaxMessageSize>65500B</MaxMessageSize></General>"
        f"{discovery if loopback else ''}"
        '<Internal><SocketReceiveBufferSize max="16MiB"/>'
        f"<MaxSampleSize>{_MAX_SAMPLE}</MaxSampleSize></Internal>"
        "</Domain></CycloneDDS>"
    )
