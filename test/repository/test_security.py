"""Bill of materials, SROS 2 policy and the checklist of conventions say what is so."""

from __future__ import annotations

import ast
import json
import re
from importlib.metadata import Distribution, version
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from support.modules import load_script
from support.packages import needs
from support.torture_page import page

from qvggt_ros.publishing import COMPRESSED_OUTPUT, GRID_OUTPUT, OUTPUTS

ROOT = Path(__file__).parents[2]
sbom = load_script("tools/sbom.py")
POLICY = ElementTree.parse(ROOT / "config/sros2_policy.xml").getroot()
NODE = "".join(
    path.read_text(encoding="utf-8") for path in (ROOT / "qvggt_ros/drivers").glob("node*.py")
)


@pytest.fixture(scope="module")
def bill():
    needs("torch")
    return sbom.bill(sbom.required(), "1.2.3")


def test_the_bill_of_materials_holds_what_is_required_as_it_is_installed(bill):
    known = {sbom.normal(each["name"]): each for each in bill["components"]}
    for line in (ROOT / "requirements.in").read_text(encoding="utf-8").splitlines():
        name = re.match(r"[\w-]+", line)
        if name:
            found = known[sbom.normal(name.group())]
            assert found["version"] == version(name.group())
            assert found["purl"].startswith(f"pkg:pypi/{sbom.normal(name.group())}@")


def test_the_bill_of_materials_has_what_packages_need_in_turn(bill):
    names = {each["name"].lower() for each in bill["components"]}
    assert {"pydantic-core", "jinja2", "sympy", "filelock"} <= {n.replace("_", "-") for n in names}
    known = {each["bom-ref"] for each in bill["components"]} | {"pkg:pypi/qvggt-ros@1.2.3"}
    assert len(known) == len(bill["components"]) + 1
    for each in bill["dependencies"]:
        assert {each["ref"], *each["dependsOn"]} <= known
    assert {each["ref"] for each in bill["dependencies"]} == known


def test_every_component_names_a_licence(bill):
    without = [each["name"] for each in bill["components"] if not each.get("licenses")]
    assert without == []


def test_a_package_that_names_no_licence_is_shown_as_one(tmp_path):
    """CUDA's, which is a list of others, comes with PyTorch's build for GPUs."""
    folder = tmp_path / "cuda_toolkit-13.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: cuda-toolkit\nVersion: 13.0\n")
    found = sbom.component(Distribution.at(folder))
    assert found["licenses"] == [{"license": {"name": "NOASSERTION"}}]


def test_dependencies_are_audited_and_listed_by_ci():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    runs = "\n".join(step.get("run", "") for step in workflow["jobs"]["dependencies"]["steps"])
    assert "pip-audit --requirement requirements.txt" in runs
    assert "tools/sbom.py" in runs


# SROS 2


def allowed(kind: str, access: str) -> set[str]:
    return {
        each.text
        for group in POLICY.iter(kind)
        if group.get(access) == "ALLOW"
        for each in group
        if each.text is not None
    }


def test_the_policy_is_of_the_form_that_sros_2_reads():
    """Its schema (policy.xsd of sros2) is not installed everywhere: the form by hand."""
    assert (POLICY.tag, POLICY.get("version")) == ("policy", "0.2.0")
    (profile,) = POLICY.findall("enclaves/enclave/profiles/profile")
    assert profile.attrib == {"ns": "/qvggt", "node": "reconstruct"}
    for group in profile:
        assert group.tag in ("topics", "services")
        (access,) = group.attrib
        assert access in ("publish", "subscribe") if group.tag == "topics" else access == "reply"
        assert {each.tag for each in group} == {group.tag[:-1]}


def test_the_policy_lets_the_node_publish_all_and_only_what_it_publishes():
    own = {*OUTPUTS, *GRID_OUTPUT, *COMPRESSED_OUTPUT} - {"tf"}
    ros = {"/tf", "/diagnostics", "/bond", "/rosout", "/parameter_events"}
    assert allowed("topics", "publish") == own | ros | {"reconstruct/transition_event"}


def test_the_policy_lets_the_node_hear_what_it_subscribes_to():
    own = set(re.findall(r'_subscribe\(\s*f?"(?:\{prefix\})?(\w+)"', NODE))
    assert own >= {"odom", "imu", "camera_info", "mask"}
    images = {"image", "image/compressed"}
    ros = {"/tf", "/tf_static", "/clock", "/bond", "/parameter_events"}
    assert allowed("topics", "subscribe") == own | images | ros
    for name in ('"image"', "/compressed", '"/bond"'):
        assert name in NODE


def test_the_policy_lets_the_node_answer_its_services():
    calls = [
        call
        for call in ast.walk(ast.parse(NODE.replace("from __future__ import annotations\n", "")))
        if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "create_service"
    ]
    made = {call.args[1].value for call in calls}
    assert made
    replies = allowed("services", "reply")
    assert {name for name in replies if not name.startswith("reconstruct/")} == made


# Conventions


def conventions() -> list[tuple[str, str]]:
    """Each line's convention and the test that it names."""
    page = (ROOT / "docs/conventions.md").read_text(encoding="utf-8")
    return re.findall(r"^\| ([^|]+) \| `(test/[^`|]+)` \|$", page, re.MULTILINE)


def test_every_convention_names_a_test():
    page = (ROOT / "docs/conventions.md").read_text(encoding="utf-8")
    rows = [row for row in page.splitlines() if row.startswith("|") and "---" not in row]
    heads = [row for row in rows if row == "| convention | held by |"]
    assert len(conventions()) == len(rows) - len(heads) >= 40


@pytest.mark.parametrize("place", sorted({place for _, place in conventions()}))
def test_every_test_that_a_convention_names_is_there(place):
    path, _, name = place.partition("::")
    source = (ROOT / path).read_text(encoding="utf-8")
    assert re.search(rf"^\s*def {re.escape(name)}\(", source, re.MULTILINE), place


def test_the_page_of_the_torture_is_that_of_its_raw_figures():
    raw = json.loads((ROOT / "benchmarks/results/torture.json").read_text(encoding="utf-8"))
    assert (ROOT / "docs/torture.md").read_text(encoding="utf-8") == page(raw)


def test_the_torture_was_survived_by_every_part():
    raw = json.loads((ROOT / "benchmarks/results/torture.json").read_text(encoding="utf-8"))
    known = {path.stem for path in (ROOT / "test/torture").glob("[a-z]*.py")}
    assert set(raw["parts"]) == known
    for figures in raw["parts"].values():
        assert figures["cases"] > 0
        assert figures["killed"] == figures["lost"] == figures["tracebacks"] == 0
