"""Which build of PyTorch an installation takes, with pip itself on indexes made of tiny wheels."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest
from support.modules import load_script
from support.packages import needs

ROOT = Path(__file__).parents[2]
install_torch = load_script("tools/install_torch.py")


def wheel(folder: Path, name: str, version: str, *requires: str) -> None:
    """Write a wheel without content, and list it as a package index does."""
    project = folder / name
    project.mkdir(parents=True, exist_ok=True)
    stem = f"{name.replace('-', '_')}-{version}"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {each}\n" for each in requires)
    with zipfile.ZipFile(project / f"{stem}-py3-none-any.whl", "w") as file:
        file.writestr(f"{stem}.dist-info/METADATA", metadata)
        file.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr(f"{stem}.dist-info/RECORD", "")
    links = "".join(f'<a href="{each.name}">{each.name}</a>' for each in project.glob("*.whl"))
    (project / "index.html").write_text(links)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """An index like PyPI, whose PyTorch requires CUDA; pip knows no other."""
    folder = tmp_path / "index"
    wheel(folder, "torch", "2.13.0", "nvidia-cudnn")
    wheel(folder, "nvidia-cudnn", "9.1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", folder.as_uri())
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def cpu_index(tmp_path):
    folder = tmp_path / "cpu"
    wheel(folder, "torch", "2.13.0+cpu")
    return folder


def installed(choices, target) -> list[str]:
    """Names of what the first choice that works installs."""
    for choice in choices:
        if install_torch._pip("install", "--quiet", "--target", target, *choice).returncode == 0:
            break
    return sorted(path.name for path in target.glob("*.dist-info"))


def test_a_machine_without_a_gpu_gets_no_cuda(index, cpu_index, tmp_path):
    choices = install_torch.installations("torch==2.13.0", False, cpu_index.as_uri())
    assert installed(choices, tmp_path / "site") == ["torch-2.13.0+cpu.dist-info"]


def test_a_machine_with_a_gpu_gets_cuda(index, cpu_index, tmp_path):
    choices = install_torch.installations("torch==2.13.0", True, cpu_index.as_uri())
    assert installed(choices, tmp_path / "site") == [
        "nvidia_cudnn-9.1.dist-info",
        "torch-2.13.0.dist-info",
    ]


def test_an_index_that_cannot_be_reached_leaves_the_configured_one(index, tmp_path):
    choices = install_torch.installations("torch==2.13.0", False, (tmp_path / "none").as_uri())
    assert "torch-2.13.0.dist-info" in installed(choices, tmp_path / "site")


def test_a_mirror_or_a_folder_that_has_the_cpu_build_is_asked_alone(index, cpu_index, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(cpu_index / "torch"))
    choices = install_torch.installations("torch==2.13.0", False, "https://no.such.host.invalid")
    assert choices == [["torch==2.13.0"]]


def test_the_tested_release_is_the_pinned_one():
    pins = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert install_torch.pinned_requirement(pins) in pins.splitlines()


def test_a_pytorch_that_is_there_is_left_alone(capsys, monkeypatch):
    needs("torch")
    monkeypatch.setattr(install_torch, "_pip", lambda *_, **__: pytest.fail("pip was run"))
    assert install_torch.installed_version()
    assert install_torch.main([]) == 0
    assert "is installed" in capsys.readouterr().out


def test_the_command_can_be_shown_before_it_is_run(index, cpu_index, capsys, monkeypatch):
    monkeypatch.setattr(install_torch, "installed_version", lambda: None)
    monkeypatch.setattr(install_torch, "_NVIDIA_DRIVER", Path(sys.executable))
    assert install_torch.main(["--dry-run"]) == 0
    assert (
        capsys.readouterr().out
        == (
            "pip install "
            + install_torch.pinned_requirement((ROOT / "requirements.txt").read_text())
        )
        + "\n"
    )
