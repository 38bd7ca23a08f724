"""The one parameter schema: ROS parameters, YAML files and documentation all come from it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from qvggt_core.errors import ParameterError
from qvggt_core.util.quoting import short
from qvggt_core.util.yaml_text import read_yaml

_STRUCTURAL: dict[str, Any] = {"read_only": True}
_FROM_START: dict[str, Any] = {"read_only": True, "from_start": True}
_CAMERA_NAME = re.compile(r"^[A-Za-z][A-Za-z0-9_]*$")


@dataclass(frozen=True)
class ParameterDescription:
    """One parameter: its name, default and allowed values.

    Attributes:
        name: its name.
        default: its default.
        description: what it is, in a sentence or two.
        read_only: whether it is fixed once the network is loaded.
        from_start: whether it is fixed once the node has started.
        choices: the values that a text may have; empty if any.
        minimum: smallest number allowed, None without a bound.
        maximum: largest number allowed, None without a bound.
        minimum_excluded: whether the minimum itself is not allowed.
        maximum_excluded: whether the maximum itself is not allowed.
    """

    name: str
    default: bool | int | float | str | list[str]
    description: str
    read_only: bool
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    minimum_excluded: bool = False
    maximum_excluded: bool = False
    from_start: bool = False

    @property
    def allowed(self) -> str:
        """The values that are allowed, in words; empty for any."""
        if self.choices:
            return ", ".join(f"`{choice}`" for choice in self.choices)
        if isinstance(self.default, bool):
            return "`true`, `false`"
        bounds = []
        if self.minimum is not None:
            bounds.append(f"{'>' if self.minimum_excluded else '≥'} {self.minimum:g}")
        if self.maximum is not None:
            bounds.append(f"{'<' if self.maximum_excluded else '≤'} {self.maximum:g}")
        return ", ".join(bounds)


class Parameters(BaseModel):
    """How a reconstruction is made; structural ones are fixed once a model is loaded."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # The network
    checkpoint: str = Field(
        "",
        description="Network file (.safetensors or .pt); empty means the small one that ships.",
        json_schema_extra=_STRUCTURAL,
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="auto, cpu, cuda or cuda:N; auto takes a GPU when there is one.",
        json_schema_extra=_STRUCTURAL,
    )
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Arithmetic of the network; auto measures what the device does fastest.",
        json_schema_extra=_STRUCTURAL,
    )
    threads: int = Field(
        0,
        ge=0,
        le=256,
        description="CPU threads of the network; 0 leaves the choice to PyTorch.",
        json_schema_extra=_STRUCTURAL,
    )
    linears: Literal["auto", "float", "int8", "fp8"] = Field(
        "float",
        description=(
            "Arithmetic of 4-bit linears: float multiplies in compute_dtype, int8 in 8-bit "
            "integers, fp8 in 8-bit floats (GPUs from compute capability 8.9; slow elsewhere), "
            "auto in integers on CPUs with VNNI and without AMX and as float on all else."
        ),
        json_schema_extra=_STRUCTURAL,
    )
    attention: Literal["auto", "int8"] = Field(
        "auto",
        description=(
            "auto computes attention in compute_dtype; int8 multiplies queries and keys as 8-bit "
            "integers, for speed on GPUs and CPUs that have kernels for it."
        ),
        json_schema_extra=_STRUCTURAL,
    )
    cuda_graphs: bool = Field(
        True,
        description=(
            "Replay the network as CUDA graphs, one per shape of window; a CPU does without."
        ),
        json_schema_extra=_STRUCTURAL,
    )
    memory_budget_mb: int = Field(
        0,
        ge=0,
        le=999_999,
        description=(
            "Megabytes that the network's weights and a window may take, 0 for no bound. First "
            "slices and chunks become smaller, then the window, down to one view more than "
            "window_stride."
        ),
        json_schema_extra=_STRUCTURAL,
    )
    image_width: int = Field(
        0,
        ge=0,
        le=2048,
        description="Width in pixels that the network sees; 0 takes the width it was trained at.",
        json_schema_extra=_STRUCTURAL,
    )

    condition_on: Literal["none", "intrinsics", "odometry"] = Field(
        "none",
        description=(
            "What the network is given of its cameras, if its file has a camera encoder (Depth "
            "Anything 3, kept with `quantize --conditioning`): odometry gives poses and "
            "CameraInfo, so that depth and map are in odometry's metres; intrinsics gives "
            "CameraInfo and the poses of a first pass, which takes twice the time."
        ),
        json_schema_extra=_STRUCTURAL,
    )
    poses_from: Literal["auto", "camera_head", "matches"] = Field(
        "auto",
        description=(
            "Where a window's poses come from: camera_head, or matches between its views, which "
            "also correct its depth and take CameraInfo where there is some. auto takes matches "
            "where the network was trained to match, as the one that ships was."
        ),
        json_schema_extra=_STRUCTURAL,
    )
    reference_view: Literal["saddle_balanced", "saddle_sim_range", "first", "middle"] = Field(
        "saddle_balanced",
        description=(
            "How Depth Anything 3 chooses the view of a window that the others refer to; VGGT "
            "always takes the first."
        ),
        json_schema_extra=_STRUCTURAL,
    )

    # Which frames make a window
    window_size: int = Field(
        8,
        ge=1,
        le=64,
        description="Views in a window.",
        json_schema_extra=_STRUCTURAL,
    )
    window_stride: int = Field(
        4,
        ge=1,
        le=63,
        description="New frames per run of the network; the rest of the window is overlap.",
        json_schema_extra=_STRUCTURAL,
    )
    scale_views: int = Field(
        2,
        ge=0,
        le=64,
        description=(
            "Views of the overlap, the newest, that get depth again to fix the window's scale; "
            "0 takes all. New views always get depth."
        ),
        json_schema_extra=_STRUCTURAL,
    )
    keyframe_min_motion: float = Field(
        0.03,
        ge=0.0,
        le=1.0,
        description=(
            "Median image motion since the last keyframe, as a fraction of the image's width, "
            "from which a frame becomes a keyframe and stays in the window; 0 makes every frame "
            "one. Every frame gets its geometry, keyframe or not."
        ),
    )
    max_gap_s: float = Field(
        10.0,
        gt=0.0,
        description="Seconds without a frame after which a new map segment begins.",
    )

    # Geometry
    rectify: bool = Field(
        True,
        description="Undistort images whose CameraInfo has distortion.",
        json_schema_extra=_STRUCTURAL,
    )
    use_camera_intrinsics: bool = Field(
        True,
        description="Unproject with CameraInfo where there is one, not with predicted intrinsics.",
    )
    metres_per_unit: float = Field(
        0.0,
        ge=0.0,
        le=1e6,
        description=(
            "Length of one map unit in metres; 0 leaves it to odometry and the other sources. "
            "While it is unknown, the world frame is `unscaled_frame`."
        ),
    )
    scale_network: str = Field(
        "",
        description=(
            "Network file of metric depth for single images (da3metric-large) that gives the "
            "scale, beside the other sources; empty for none. Its run holds the stream up."
        ),
        json_schema_extra=_STRUCTURAL,
    )
    scale_period_s: float = Field(
        5.0,
        gt=0.0,
        description=(
            "Seconds between two images that the scale_network sees once the scale is known: a "
            "twentieth of it at a segment's beginning, a fifth while the scale is uncertain. Live, "
            "the network gets a third of the time at most."
        ),
    )
    min_odometry_distance: float = Field(
        1.0,
        gt=0.0,
        le=1000.0,
        description=(
            "Metres of odometry, GPS or altitude after which its scale is trusted. Along as many "
            "metres the map's own scale is taken to drift by 1.5 %."
        ),
    )
    camera_height: float = Field(
        0.0,
        ge=0.0,
        le=1000.0,
        description=(
            "Metres from the ground up to the first camera, where that never changes and the "
            "ground is seen; 0 if it is not known. A source of the scale."
        ),
    )
    max_scale_spread: float = Field(
        1.5,
        gt=1.0,
        le=10.0,
        description=(
            "Largest ratio by which the scales of the overlap's frames may disagree "
            "before a window is refused."
        ),
    )

    confirm: bool = Field(
        True,
        description=(
            "Follow points through the images and compare each window of the network with them; "
            "without, its geometry goes out unchecked."
        ),
    )
    refine: bool = Field(
        True,
        description=(
            "Take poses from followed points by bundle adjustment, and scale depth to agree with "
            "them; without, poses and depth are the network's."
        ),
    )
    on_contradiction: Literal["tracks", "withhold", "publish"] = Field(
        "tracks",
        description=(
            "Where the images contradict the network: tracks gives poses by followed points and "
            "depth where they support it (withheld where refine is off), withhold gives nothing, "
            "publish gives the network's geometry all the same."
        ),
    )

    loop_closure: bool = Field(
        False,
        description=(
            "Find places that are seen again, and take the drift between out of the map; "
            "odometry stays continuous."
        ),
    )
    load_map: str = Field(
        "",
        description=(
            "Directory of a saved map in which the camera is looked for. Turns loop_closure on."
        ),
        json_schema_extra=_STRUCTURAL,
    )
    localization_only: bool = Field(
        True,
        description=(
            "Leave a loaded map as it is; without, new keyframes are added to it, and loops may "
            "move it."
        ),
        json_schema_extra=_STRUCTURAL,
    )

    # The floor plan
    occupancy_grid: bool = Field(
        False,
        description=(
            "Publish the floor plan `map_grid` once the map is in metres, upright, and the ground "
            "was seen."
        ),
        json_schema_extra=_STRUCTURAL,
    )
    grid_resolution: float = Field(
        0.05,
        ge=0.01,
        le=1.0,
        description="Metres of a cell's side.",
        json_schema_extra=_STRUCTURAL,
    )
    grid_min_height: float = Field(
        0.1,
        ge=0.02,
        le=10.0,
        description="Metres over the ground from which something is an obstacle.",
        json_schema_extra=_STRUCTURAL,
    )
    grid_max_height: float = Field(
        1.5,
        gt=0.0,
        le=100.0,
        description="Metres over the ground up to which something is an obstacle.",
        json_schema_extra=_STRUCTURAL,
    )
    grid_max_range: float = Field(
        5.0,
        gt=0.0,
        le=50.0,
        description="Metres from the camera up to which depth marks and clears cells.",
        json_schema_extra=_STRUCTURAL,
    )
    grid_period_s: float = Field(
        1.0,
        ge=0.0,
        le=3600.0,
        description="Seconds between two `map_grid` messages; 0 sends one with each window.",
        json_schema_extra=_STRUCTURAL,
    )

    # What is published
    map_frame: str = Field(
        "map",
        pattern=r"^[A-Za-z][A-Za-z0-9_/]*$",
        description="World frame once the scale is known.",
        json_schema_extra=_STRUCTURAL,
    )
    unscaled_frame: str = Field(
        "qvggt_unscaled",
        pattern=r"^[A-Za-z][A-Za-z0-9_/]*$",
        description="World frame while the scale is unknown.",
        json_schema_extra=_STRUCTURAL,
    )
    camera_frame: str = Field(
        "camera_optical_frame",
        pattern=r"^[A-Za-z][A-Za-z0-9_/]*$",
        description="Camera frame for images whose header names none.",
        json_schema_extra=_STRUCTURAL,
    )
    compressed_depth: bool = Field(
        False,
        description=(
            "Publish depth as `depth/image/compressedDepth` too, as image_transport's plugin does."
        ),
        json_schema_extra=_STRUCTURAL,
    )
    points_frame: Literal["camera", "world"] = Field(
        "camera",
        description=(
            "Frame of the clouds: the camera's optical frame, from which costmaps can clear, or "
            "the world."
        ),
    )
    min_confidence_percentile: float = Field(
        20.0,
        ge=0.0,
        lt=100.0,
        description="Pixels below this percentile of a frame's confidence become invalid.",
    )
    max_depth_edge: float = Field(
        0.1,
        gt=0.0,
        le=1.0,
        description="Relative depth step to a neighbour above which a point is left out of clouds.",
    )
    point_stride: int = Field(
        1,
        ge=1,
        le=64,
        description="Every n-th pixel per axis goes into a cloud.",
    )
    map_voxel: float = Field(
        0.01,
        gt=0.0,
        le=1.0,
        description="Voxel of the saved map, as a fraction of the median depth.",
        json_schema_extra=_STRUCTURAL,
    )

    # The node
    autostart: bool = Field(
        True,
        description="Node: configure and activate at start; false leaves that to others.",
        json_schema_extra=_STRUCTURAL,
    )
    bond_id: str = Field(
        "",
        pattern=r"^[A-Za-z0-9_/]*$",
        description=(
            "Node: its name in `node_names` of Nav2's lifecycle manager, which then notices when "
            "the node dies; empty for no bond."
        ),
        json_schema_extra=_STRUCTURAL,
    )
    cameras: list[str] = Field(
        [""],
        min_length=1,
        max_length=16,
        description=(
            "Node: names of a rig's cameras, whose topics they precede (`front/image`); the first "
            "one gives the pose. One empty name is a single camera without a prefix."
        ),
        json_schema_extra=_STRUCTURAL,
    )
    sync_slop_s: float = Field(
        0.03,
        gt=0.0,
        le=1.0,
        description="Node: largest difference in seconds between the stamps of a rig's images.",
        json_schema_extra=_STRUCTURAL,
    )
    image_transport: Literal["raw", "compressed"] = Field(
        "raw",
        description="Node: raw (`image`) or compressed (`image/compressed`: JPEG, PNG).",
        json_schema_extra=_STRUCTURAL,
    )
    publish_tf: Literal["none", "world_to_camera", "map_to_odom", "odom_to_base"] = Field(
        "none",
        description=(
            "Node: which transform it owns. map_to_odom where other odometry exists, odom_to_base "
            "where it is the only one, world_to_camera for a camera in the hand. The former two "
            "wait for the scale."
        ),
        json_schema_extra=_STRUCTURAL,
    )
    odom_frame: str = Field(
        "odom",
        pattern=r"^[A-Za-z][A-Za-z0-9_/]*$",
        description="Node: world of the robot's odometry.",
        json_schema_extra=_STRUCTURAL,
    )
    base_frame: str = Field(
        "base_link",
        pattern=r"^[A-Za-z][A-Za-z0-9_/]*$",
        description="Node: the robot's base.",
        json_schema_extra=_STRUCTURAL,
    )
    transform_rate_hz: float = Field(
        20.0,
        ge=0.0,
        le=1000.0,
        description=(
            "Node: how often map_to_odom and odom_to_base are broadcast, stamped now; 0 sends each "
            "once, with its image's stamp."
        ),
        json_schema_extra=_STRUCTURAL,
    )
    transform_tolerance_s: float = Field(
        0.2,
        ge=0.0,
        le=10.0,
        description=(
            "Node: seconds by which these are stamped ahead of now, so that who looks up the "
            "present finds them."
        ),
        json_schema_extra=_STRUCTURAL,
    )
    map_directory: str = Field(
        "~/qvggt_maps",
        min_length=1,
        description=(
            "Node: where the service save_map writes; fixed from its start, so that no one on the "
            "graph can choose another place."
        ),
        json_schema_extra=_FROM_START,
    )
    diagnostics_period_s: float = Field(
        1.0,
        ge=0.1,
        le=60.0,
        description="Node: seconds between diagnostics.",
        json_schema_extra=_STRUCTURAL,
    )

    @model_validator(mode="after")
    def _stride_leaves_overlap(self) -> Parameters:
        if self.window_size > 1 and self.window_stride >= self.window_size:
            raise ValueError(
                f"window_stride {self.window_stride} leaves no overlap in a window of "
                f"{self.window_size}: choose at most {self.window_size - 1}"
            )
        return self

    @model_validator(mode="after")
    def _unit_has_a_length(self) -> Parameters:
        if 0.0 < self.metres_per_unit < 1e-6:
            raise ValueError(
                f"metres_per_unit {self.metres_per_unit:g} is no length: give at least 1e-06, or 0 "
                "to take it from odometry"
            )
        return self

    @model_validator(mode="after")
    def _grid_has_a_band(self) -> Parameters:
        if self.grid_max_height < self.grid_min_height + self.grid_resolution:
            raise ValueError(
                f"grid_max_height {self.grid_max_height:g} leaves no cell over grid_min_height "
                f"{self.grid_min_height:g} at grid_resolution {self.grid_resolution:g}"
            )
        return self

    @model_validator(mode="after")
    def _cameras_have_names_of_their_own(self) -> Parameters:
        if len(set(self.cameras)) < len(self.cameras):
            raise ValueError(f"cameras {self.cameras} has a name twice")
        for name in self.cameras if len(self.cameras) > 1 else ():
            if not _CAMERA_NAME.match(name):
                raise ValueError(
                    f"camera {name!r} is no name of a topic: letters, digits and underscores, a "
                    "letter first"
                )
        if len(self.cameras) > self.window_size:
            raise ValueError(
                f"{len(self.cameras)} cameras do not fit into a window of {self.window_size} views"
            )
        return self

    @classmethod
    def describe(cls) -> tuple[ParameterDescription, ...]:
        """Return each parameter's description, in order."""
        return tuple(
            ParameterDescription(
                name=name,
                default=schema["default"],
                description=schema["description"],
                read_only=schema.get("read_only", False),
                choices=tuple(schema.get("enum", ())),
                minimum=schema.get("minimum", schema.get("exclusiveMinimum")),
                maximum=schema.get("maximum", schema.get("exclusiveMaximum")),
                minimum_excluded="exclusiveMinimum" in schema,
                maximum_excluded="exclusiveMaximum" in schema,
                from_start=schema.get("from_start", False),
            )
            for name, schema in cls.model_json_schema()["properties"].items()
        )

    @classmethod
    def build(cls, values: dict[str, Any]) -> Parameters:
        """Return validated parameters.

        Raises:
            ParameterError: a name is unknown or a value is refused; says which and why.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ParameterError(_reasons(error)) from None

    @classmethod
    def read(cls, path: Path, overrides: dict[str, Any] | None = None) -> Parameters:
        """Read a parameter file in ROS form (`/**: ros__parameters: ...`) or a flat mapping.

        Raises:
            ParameterError: the file cannot be read, or a parameter is unknown or refused.
        """
        try:
            content = read_yaml(path) or {}
        except (OSError, ValueError) as error:
            raise ParameterError(f"cannot read the parameter file {path}: {error}") from error
        for _ in range(2):
            if isinstance(content, dict) and len(content) == 1:
                (only,) = content.values()
                content = only if isinstance(only, dict) else content
        if not isinstance(content, dict):
            raise ParameterError(
                f"{path} holds a {type(content).__name__}, not a mapping of parameters"
            )
        return cls.build({**content, **(overrides or {})})

    def with_values(self, **values: Any) -> Parameters:
        """Return a copy with some values replaced, validated.

        Raises:
            ParameterError: a name is unknown or a value is refused.
        """
        return self.build({**self.model_dump(), **values})

    def to_yaml(self) -> str:
        """Return the parameters as a ROS parameter file."""
        return yaml.safe_dump(
            {"/**": {"ros__parameters": self.model_dump()}},
            sort_keys=False,
            allow_unicode=True,
        )


def _reasons(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            known = ", ".join(Parameters.model_fields)
            lines.append(f"there is no parameter {short(name)}; known: {known}")
        elif not name:
            lines.append(item["msg"].removeprefix("Value error, "))
        else:
            lines.append(f"parameter {name} = {short(item['input'])} is refused: {item['msg']}")
    return "; ".join(lines)
