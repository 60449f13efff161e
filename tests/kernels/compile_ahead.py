"""Compiles the operations' shipped Triton kernels for one target without a GPU; run as a script, prints JSON.

A process of its own, because the tests run kernels through the interpreter, which Triton decides on import.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
"""A100, H100, B200, MI300X."""

MATRIX = {"sm_80": r"mma\.sync", "sm_90": r"wgmma\.mma", "sm_100": r"tcgen05\.mma", "gfx942": r"v_mfma"}
"""The matrix instruction of each target, as it is spelt in its assembly."""


def compile_all(operation: str, target: str) -> list[dict[str, Any]]:
    """One row for each shipped configuration: bytes spilled (None where the target does not tell) and matrix use."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernels = importlib.import_module(f"medseqft_kernels.{operation}.triton")
    rows = []
    for shipped in kernels.SHIPPED:
        kernel = getattr(kernels, shipped.kernel)
        names = set(kernel.arg_names)
        assert names == {*shipped.types, *shipped.constants}, (
            shipped.kernel,
            names ^ {*shipped.types, *shipped.constants},
        )
        signature = {name: shipped.types.get(name, "constexpr") for name in kernel.arg_names}
        # Memory that PyTorch allocates is aligned; a launch tells the compiler so, and so do we.
        pointers = [index for index, name in enumerate(kernel.arg_names) if signature[name].startswith("*")]
        aligned = {(index,): [["tt.divisibility", 16]] for index in pointers}
        source = ASTSource(kernel, signature, constexprs=dict(shipped.constants), attrs=aligned)
        options = {"num_warps": shipped.warps, "num_stages": shipped.stages}
        compiled = triton.compile(source, target=GPUTarget(*TARGETS[target]), options=options)
        text = compiled.asm["amdgcn" if target == "gfx942" else "ptx"]
        rows.append(
            {
                "operation": operation,
                "kernel": shipped.kernel,
                "spilled": _spilled(compiled.asm, Path(triton.__file__).parent),
                "uses_matrix": bool(re.search(MATRIX[target], text)),
                "needs_matrix": shipped.matrix,
            }
        )
    return rows


def _spilled(asm: Any, triton: Path) -> int | None:
    if "cubin" not in asm:
        return None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        command: list[Any] = [triton / "backends" / "nvidia" / "bin" / "cuobjdump", "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"STACK:(\d+).*LOCAL:(\d+)", usage)  # registers are spilled to the stack
    assert found, usage
    return int(found[1]) + int(found[2])


if __name__ == "__main__":
    print(json.dumps([row for operation in sys.argv[2:] for row in compile_all(operation, sys.argv[1])]))
