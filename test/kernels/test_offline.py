"""Every shipped kernel compiles for GPUs that are not there, and to the same code as before."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("compiling needs Triton that does not interpret", allow_module_level=True)

from qvggt_kernels.offline import compiler, variants  # noqa: E402

ROOT = Path(__file__).parents[2]
TABLE = json.loads((ROOT / "benchmarks/results/triton_static.json").read_text(encoding="utf-8"))


def variant(name):
    (found,) = (one for one in variants.variants_of("gemm") if one.name == name)
    return found


def test_the_table_names_what_is_shipped():
    shipped = {
        f"{module}.{one.name}@{architecture}"
        for module in variants.MODULES
        for one in variants.variants_of(module)
        for architecture in one.architectures
    }
    assert shipped == set(TABLE["kernels"]), "run `python benchmarks/triton_static.py`"


def test_a_product_runs_on_tensor_cores_without_spills():
    one = variant("int8 128x128x128 warps 8 stages 3")
    for architecture, instructions in ((80, 64), (90, 4)):
        facts = compiler.compile_variant(one, architecture)
        assert facts.loop_tensor_core == instructions
        assert facts.loop_spills == facts.stack == 0
        assert not compiler.broken_rules(one, architecture, facts)


def test_rules_catch_spills_and_too_much_shared_memory():
    """Configurations that are not shipped, and why."""
    four_warps = variant("int4 128x128x128 warps 8 stages 3")
    four_warps = dataclasses.replace(four_warps, warps=4)
    (spills,) = compiler.broken_rules(four_warps, 89, compiler.compile_variant(four_warps, 89))
    assert "local memory in its main loop" in spills
    large = variant("int8 128x256x128 warps 8 stages 3")
    large = dataclasses.replace(large, stages=5)
    (too_much,) = compiler.broken_rules(large, 90, compiler.compile_variant(large, 90))
    assert "of shared memory, the limit is 232448" in too_much


def test_rules_catch_a_product_without_tensor_cores():
    facts = dataclasses.replace(
        compiler.compile_variant(variant("quantize tokens"), 90), tensor_core=0
    )
    product = dataclasses.replace(variant("quantize tokens"), tensor_core=True)
    assert compiler.broken_rules(product, 90, facts) == ["no tensor-core instruction"]


@pytest.mark.slow
def test_every_shipped_kernel_compiles_to_what_it_did():
    found = compiler.survey(processes=len(os.sched_getaffinity(0)))
    wrong = {name: facts for name, facts in found.items() if not is_as_before(name, facts)}
    assert not wrong, "if this is meant, run `python benchmarks/triton_static.py`"


def is_as_before(name, facts):
    if facts["broken"]:
        return False
    if TABLE["triton"] != triton.__version__:
        return True
    return {**facts, "broken": []} == {**TABLE["kernels"][name], "broken": []}
