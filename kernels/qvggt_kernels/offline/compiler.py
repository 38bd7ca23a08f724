"""Compiles kernels for GPUs that are not there and reads their machine code.

Everything needed comes with Triton: its compiler, NVIDIA's assembler and disassembler. Triton must
not interpret (TRITON_INTERPRET unset).
"""

from __future__ import annotations

import functools
import multiprocessing
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .variants import MODULES, KernelVariant, variants_of

_SHARED_LIMIT = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB of shared memory that one program may have, per architecture."""

_TENSOR_CORE = re.compile(r"\b(?:[HIQ]GMMA|[HIQ]MMA|UTC[HIQ]MMA)\b")
_LOCAL_MEMORY = re.compile(r"\b(?:LDL|STL)\b")
_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;")
_BRANCH = re.compile(r"\bBRA(?:\.\S+)?\s+(?:\S+,\s*)?0x([0-9a-f]+)")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+)")


@dataclass(frozen=True)
class Facts:
    """Resources and instructions of a compiled kernel.

    Attributes:
        registers: per thread.
        stack: bytes per thread.
        shared: bytes per program.
        tensor_core: tensor-core instructions.
        loop: instructions of the main loop: the innermost one with tensor-core instructions,
            or else the longest; 0 where there is none.
        loop_tensor_core: tensor-core instructions in it.
        loop_spills: loads and stores of local memory in it.
    """

    registers: int
    stack: int
    shared: int
    tensor_core: int
    loop: int
    loop_tensor_core: int
    loop_spills: int


def compile_variant(variant: KernelVariant, architecture: int) -> Facts:
    """Compile a variant for an architecture and read the machine code.

    Raises:
        Exception: the compiler's own, where it cannot.
    """
    compiled = triton.compile(
        _source(variant),
        target=GPUTarget("cuda", architecture, 32),
        options={
            "num_warps": variant.warps,
            "num_stages": variant.stages,
            "enable_fp_fusion": False,
        },
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _USAGE.search(_tool("cuobjdump", "-res-usage", file.name))
        code = _instructions(_tool("cuobjdump", "-sass", file.name))
    if usage is None or not code:
        raise RuntimeError(f"cuobjdump did not describe {variant.name} for sm_{architecture}")
    loop = _main_loop(code)
    return Facts(
        registers=int(usage[1]),
        stack=int(usage[2]),
        shared=compiled.metadata.shared,
        tensor_core=_count(_TENSOR_CORE, code.values()),
        loop=len(loop),
        loop_tensor_core=_count(_TENSOR_CORE, loop),
        loop_spills=_count(_LOCAL_MEMORY, loop),
    )


def _source(variant: KernelVariant) -> ASTSource:
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(variant.kernel.params):
        value = variant.arguments[parameter.name]
        if parameter.is_constexpr or value is None:
            signature[parameter.name] = "constexpr"
            constants[(index,)] = value
            continue
        kind, _, divisor = value.partition(":")
        signature[parameter.name] = kind
        if kind.startswith("*") or divisor:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(variant.kernel, signature, constants, attributes)


def broken_rules(variant: KernelVariant, architecture: int, facts: Facts) -> list[str]:
    """Describe the rules that a compiled kernel breaks; empty if none."""
    broken = []
    limit = _SHARED_LIMIT[architecture] * 1024
    if facts.shared > limit:
        broken.append(f"{facts.shared} bytes of shared memory, the limit is {limit}")
    if facts.loop_spills:
        broken.append(f"{facts.loop_spills} loads and stores of local memory in its main loop")
    if variant.tensor_core and not facts.tensor_core:
        broken.append("no tensor-core instruction")
    return broken


def survey(modules: Iterable[str] = MODULES, processes: int = 2) -> dict[str, dict[str, Any]]:
    """Compile all variants of modules for all their architectures.

    Returns:
        By `module.name@architecture`: the fields of `Facts`, and `broken`, a list of sentences.
    """
    jobs = [
        (module, variant.name, architecture)
        for module in modules
        for variant in variants_of(module)
        for architecture in variant.architectures
    ]
    # Compilers hold locks that a forked process would inherit.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        results = pool.map(_survey_one, jobs, chunksize=4)
        return {
            f"{module}.{name}@{architecture}": result
            for (module, name, architecture), result in zip(jobs, results, strict=True)
        }


def _survey_one(job: tuple[str, str, int]) -> dict[str, Any]:
    module, name, architecture = job
    (variant,) = (one for one in variants_of(module) if one.name == name)
    facts = compile_variant(variant, architecture)
    return {**vars(facts), "broken": broken_rules(variant, architecture, facts)}


@functools.cache
def _tools() -> Path:
    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def _tool(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [_tools() / name, *arguments], check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout


def _instructions(listing: str) -> dict[int, str]:
    """Return the instructions of a listing by address."""
    found = (_INSTRUCTION.match(line) for line in listing.splitlines())
    return {int(match[1], 16): match[2] for match in found if match}


def _main_loop(code: Mapping[int, str]) -> list[str]:
    loops = []
    for address, instruction in code.items():
        branch = _BRANCH.search(instruction)
        if branch and int(branch[1], 16) < address:
            first = int(branch[1], 16)
            loops.append([text for at, text in code.items() if first <= at <= address])
    multiplying = [loop for loop in loops if _count(_TENSOR_CORE, loop)]
    if multiplying:
        return min(multiplying, key=len)
    return max(loops, key=len, default=[])


def _count(pattern: re.Pattern[str], instructions: Iterable[str]) -> int:
    return sum(bool(pattern.search(instruction)) for instruction in instructions)
