"""Package qvggt for pip and for colcon (ament_python)."""

import os
import platform
import runpy
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

# Resolved: colcon's --symlink-install runs this file through a link in its build directory.
ROOT = Path(__file__).resolve().parent
NAME = "qvggt_ros"


def files(directory: str, pattern: str) -> list[str]:
    """Return the files to install, relative to this one, as setuptools wants them."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / directory).glob(pattern))


def requirements(file: str) -> list[str]:
    """Return the requirements that a file lists."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    return [line for each in lines if (line := each.partition("#")[0].strip())]


NATIVE = "kernels/qvggt_kernels/native"
COMPILATION = runpy.run_path(str(ROOT / NATIVE / "compilation.py"))
SOURCES = COMPILATION["SOURCES"].get(platform.machine(), {}) if sys.platform == "linux" else {}


class BuildKernels(build_ext):
    """Compiles each file for its own instruction set, with `QVGGT_CXXFLAGS` after all others."""

    def build_extensions(self):
        compile_file = self.compiler._compile

        def compile_for_its_processors(obj, src, ext, cc_args, extra_postargs, pp_opts):
            flags = [*SOURCES[Path(src).name], *os.environ.get("QVGGT_CXXFLAGS", "").split()]
            compile_file(obj, src, ext, cc_args, [*extra_postargs, *flags], pp_opts)

        self.compiler._compile = compile_for_its_processors
        super().build_extensions()


def native_kernels() -> list[Extension]:
    """Return the C++ kernels, for Linux on x86 and ARM; PyTorch computes the same elsewhere."""
    if not SOURCES:
        return []
    return [
        Extension(
            "qvggt_kernels.native._library",
            sources=[f"{NATIVE}/{name}" for name in SOURCES],
            depends=files(NATIVE, "*.h"),
            language="c++",
            extra_compile_args=list(COMPILATION["OPTIONS"]),
            extra_link_args=["-fopenmp"],
            optional=True,
        )
    ]


setup(
    name=NAME,
    version="0.1.0",
    description="Live metric 3D from a robot's camera with a 4-bit VGGT",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    maintainer="The qvggt maintainers",
    maintainer_email="qvggt@users.noreply.github.com",
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["qvggt_ros*", "qvggt_core*"]),
        *find_packages("kernels"),
    ],
    ext_modules=native_kernels(),
    cmdclass={"build_ext": BuildKernels},
    package_dir={"qvggt_kernels": "kernels/qvggt_kernels"},
    package_data={
        "qvggt_core": [
            "models/*.safetensors",
            "quantize/studies/*.yaml",
            "training/configs/*.yaml",
            "report/templates/*",
        ],
        "qvggt_kernels": ["gemm_configs_data/*.json"],
    },
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", files("launch", "*.launch.py")),
        (f"share/{NAME}/config", files("config", "*.*")),
        (f"share/{NAME}/config/presets", files("config/presets", "*.yaml")),
    ],
    install_requires=requirements("requirements.in"),
    extras_require={
        "dds": ["cyclonedds>=11,<12"],
        "quantize": ["scikit-learn>=1.3"],
        "ray": ["ray>=2.40"],
        "test": ["hypothesis", "psutil", "pytest", "selenium"],
        "viz": ["viser>=1.0"],
    },
    entry_points={
        "console_scripts": [
            "qvggt = qvggt_ros.cli.app:main",
            "reconstruct = qvggt_ros.drivers.node_main:main",
        ]
    },
    zip_safe=False,
)
