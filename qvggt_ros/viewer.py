"""A page that shows a reconstruction while it grows, or a result that is done (viser)."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from qvggt_core.errors import ParameterError
from qvggt_core.evaluate.track import Track
from qvggt_core.geometry.cloud import Cloud
from qvggt_core.optional import import_optional
from qvggt_core.report.pictures import limits
from qvggt_core.report.scene import Framing, thinned
from qvggt_core.results.builder import ResultBuilder
from qvggt_core.results.result import Result
from qvggt_core.results.samples import Samples
from qvggt_core.stream.frame import Reconstruction
from qvggt_core.util.thinning import spread_indices
from qvggt_ros.viewer_access import guarded_server

_MAX_POINTS = 300_000
_MAX_CAMERAS = 60
_ORANGE, _BLUE, _GREY = (255, 140, 26), (76, 155, 255), (154, 164, 178)
_DEPTH_COLORS = "turbo_r"


class LiveView:
    """A viser server with the cloud, the path, cameras and the newest depth.

    It listens on loopback unless another host is given: whoever reaches the port sees the cloud,
    but pages of other sites in a browser here do not, and nothing puts it on the internet.

    Attributes:
        address: of the page.
        server: the viser server.
    """

    def __init__(self, port: int = 8080, host: str = "127.0.0.1") -> None:
        """Start the server.

        Args:
            port: of the page; another one near is taken if it is in use.
            host: address to listen on.

        Raises:
            MissingPackageError: viser is not installed.
            ParameterError: the port is refused.
        """
        if not 1 <= port <= 65535:
            raise ParameterError(f"a port of {port}: choose 1 to 65535")
        viser: Any = import_optional("viser")
        try:
            with guarded_server(host):
                self.server = viser.ViserServer(host=host, port=port, label="qvggt", verbose=False)
        except OSError as error:
            raise ParameterError(f"cannot listen on {host}:{port}: {error}") from error
        # A message of any client would open a public tunnel through viser's servers.
        self.server.request_share_url = lambda *arguments, **options: None
        self.address = f"http://{host}:{self.server.get_port()}"
        self._scene_size = 1.0
        self._positioned = False
        self.server.scene.set_up_direction("+z")
        self.server.gui.configure_theme(
            control_width="medium", show_logo=False, show_share_button=False
        )
        self._status = self.server.gui.add_markdown("waiting for the first window")
        with self.server.gui.add_folder("Show"):
            self._switches = {
                name: self.server.gui.add_checkbox(name, True)
                for name in ("cloud", "path", "cameras", "truth")
            }
            self._size = self.server.gui.add_slider("point size", 0.3, 3.0, 0.1, 1.0)
        for switch in self._switches.values():
            switch.on_update(lambda event: self._apply())
        self._size.on_update(lambda event: self._apply())
        self._pictures: dict[str, Any] = {}
        self._handles: dict[str, Any] = {}
        self._point_size = 0.01

    def __enter__(self) -> LiveView:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the server."""
        self.server.stop()

    def add(self, reconstruction: Reconstruction, built: ResultBuilder) -> None:
        """Show what became known; a new map segment takes the place of the last.

        Args:
            reconstruction: the newest frames.
            built: tracks and maps, these frames among them.
        """
        if not reconstruction.frames:
            return
        segment, newest = reconstruction.segment, reconstruction.frames[-1]
        track = built.tracks[segment]
        unit = "m" if reconstruction.scale.metres_per_unit is not None else "units"
        self._show_cloud(built.cloud(segment), track, built.voxel(segment))
        self._show_line("path", track.positions, _ORANGE)
        self._show_cameras(track, newest.intrinsics, newest.view.image)
        self._show_pictures(newest.view.image, newest.depth)
        self._show_status(f"segment {segment}", unit, len(track), track.length)

    def show_result(self, directory: Path) -> None:
        """Show a result that is done.

        Raises:
            RecordingError: it is no result, or a file of it cannot be read.
            EvaluationError: its metrics or trajectory cannot be read.
        """
        result = Result.read(directory)
        cloud, track = result.cloud, result.track
        spread = np.ptp(cloud.positions, axis=0).max(initial=0.0) if len(cloud) else 1.0
        self._show_cloud(cloud, track, 0.004 * float(spread))
        self._show_line("path", track.positions, _ORANGE)
        if result.errors is not None:
            self._show_line("truth", result.errors.truth, _GREY)
        samples = result.load_samples()
        if samples is None:
            self._show_cameras(track, None, None)
        else:
            self._show_cameras(track, samples.intrinsics[0], None)
            self._add_slider(track, samples)
        facts = result.metrics
        self._show_status(
            facts.recording.name, facts.result.unit, facts.result.published, track.length
        )
        self._apply()

    # What is on the page

    def _add_slider(self, track: Track, samples: Samples) -> None:
        """Let a slider choose the frame that is shown."""
        slider = self.server.gui.add_slider("frame", 0, max(len(samples) - 1, 1), 1, 0)
        stamps = np.array(track.stamps_ns)

        def choose(event: Any = None) -> None:
            index = min(int(slider.value), len(samples) - 1)
            image = samples.images[index]
            self._show_pictures(image, samples.depths[index])
            nearest = int(np.argmin(np.abs(stamps - samples.stamps_ns[index])))
            self._show_current(track.poses[nearest], samples.intrinsics[index], image)

        slider.on_update(choose)
        choose()

    def _show_status(self, name: str, unit: str, frames: int, length: float) -> None:
        path = f"{length:.2f} {unit}"
        self._status.content = f"**{_plain(name)}**\n\n{frames} frames, path of {path}"

    def _show_cloud(self, cloud: Cloud, track: Track, voxel: float) -> None:
        if len(cloud) == 0:
            return
        framing = Framing.of(cloud, track)
        self._scene_size = 2 * framing.radius
        self._point_size = max(voxel, 1e-4 * self._scene_size)
        shown = framing.below_ceiling(thinned(cloud, _MAX_POINTS))
        self._handles["cloud"] = self.server.scene.add_point_cloud(
            "/cloud",
            points=shown.positions,
            colors=shown.colors,
            point_size=self._point_size * self._size.value,
            point_shape="circle",
            precision="float32",
            visible=self._switches["cloud"].value,
        )
        if not self._positioned:
            self._positioned = True
            x, y = np.cos(framing.heading), np.sin(framing.heading)
            eye = framing.focus + self._scene_size * np.array([-0.75 * x, -0.75 * y, 0.6])
            self.server.initial_camera.position = tuple(eye.tolist())
            self.server.initial_camera.look_at = tuple(framing.focus.tolist())

    def _show_line(
        self, name: str, positions: NDArray[np.float64], color: tuple[int, int, int]
    ) -> None:
        if len(positions) < 2:
            return
        segments = np.stack([positions[:-1], positions[1:]], axis=1).astype(np.float32)
        self._handles[name] = self.server.scene.add_line_segments(
            f"/{name}",
            points=segments,
            colors=color,
            thickness=3.0,
            thickness_units="screen",
            visible=self._switches[name].value,
        )

    def _show_cameras(
        self,
        track: Track,
        intrinsics: NDArray[np.float64] | None,
        image: NDArray[np.uint8] | None,
    ) -> None:
        matrix = np.diag([1.0, 1.0, 1.0]) if intrinsics is None else intrinsics
        width, height = 2 * matrix[0, 2] + 1, 2 * matrix[1, 2] + 1
        x, y = width / 2 / matrix[0, 0], height / 2 / matrix[1, 1]
        size = 0.02 * self._scene_size
        corners = size * np.array([[-x, -y, 1], [x, -y, 1], [x, y, 1], [-x, y, 1]])
        edges = [(np.zeros(3), corner) for corner in corners]
        edges += list(zip(corners, np.roll(corners, -1, axis=0), strict=True))
        local = np.array(edges).reshape(-1, 3)
        lines = [
            (local @ track.poses[i][:3, :3].T + track.poses[i][:3, 3]).reshape(-1, 2, 3)
            for i in spread_indices(len(track), _MAX_CAMERAS)
        ]
        self._handles["cameras"] = self.server.scene.add_line_segments(
            "/cameras",
            points=np.concatenate(lines).astype(np.float32),
            colors=_BLUE,
            thickness=1.5,
            thickness_units="screen",
            visible=self._switches["cameras"].value,
        )
        if image is not None and intrinsics is not None:
            self._show_current(track.poses[-1], intrinsics, image)

    def _show_current(
        self, pose: NDArray[np.float64], matrix: NDArray[np.float64], image: NDArray[np.uint8]
    ) -> None:
        height, width = image.shape[:2]
        self.server.scene.add_camera_frustum(
            "/current",
            fov=2 * float(np.arctan2(height / 2, matrix[1, 1])),
            aspect=width / height,
            scale=0.06 * self._scene_size,
            thickness=2.0,
            thickness_units="screen",
            color=_ORANGE,
            image=image,
            wxyz=np.roll(Rotation.from_matrix(pose[:3, :3]).as_quat(), 1),
            position=pose[:3, 3],
        )

    def _show_pictures(self, image: NDArray[np.uint8], depth: NDArray[np.float32]) -> None:
        low, high = limits(depth)
        share = (np.ma.masked_invalid(depth) - low) / max(high - low, 1e-9)
        colors = mpl.colormaps[_DEPTH_COLORS].with_extremes(bad=(0.5, 0.5, 0.5, 1.0))
        painted = colors(share, bytes=True)[..., :3]
        for label, pixels in (("image", image), ("depth: near is red", painted)):
            if label in self._pictures:
                self._pictures[label].image = pixels
            else:
                self._pictures[label] = self.server.gui.add_image(pixels, label=label)

    def _apply(self) -> None:
        for name, switch in self._switches.items():
            if name in self._handles:
                self._handles[name].visible = switch.value
        if "cloud" in self._handles:
            self._handles["cloud"].point_size = self._point_size * self._size.value


def _plain(text: str) -> str:
    """Return text without what Markdown or HTML would take for markup."""
    return "".join(sign if sign.isalnum() or sign in " -." else f"&#{ord(sign)};" for sign in text)
