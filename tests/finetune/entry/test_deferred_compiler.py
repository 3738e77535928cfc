from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# In a process of its own: torch's compiler cannot be imported twice in one.
USED = """
import sys
from finetune.entry.deferred_compiler import COMPILER, DeferredCompiler, _IMPORTERS
finder = DeferredCompiler((*_IMPORTERS, "wants_more"))
sys.meta_path.insert(0, finder)
import lightning_fabric.wrappers, timm, torch, torchvision.ops.roi_align, torchvision.tv_tensors
from torchvision import tv_tensors
print([name in sys.modules for name in (*_IMPORTERS, COMPILER)])
plain = torch.nn.Linear(2, 2)
print(lightning_fabric.wrappers._unwrap_compiled(plain)[0] is plain, COMPILER in sys.modules)
import wants_more
print(wants_more.is_dynamo_supported is sys.modules[COMPILER].is_dynamo_supported)
compiled = torch.compile(plain, backend="eager")
print(lightning_fabric.wrappers._unwrap_compiled(compiled)[0] is plain)
print(sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu"))
image = tv_tensors.Image(torch.zeros(3, 2, 2))
print(type(tv_tensors.wrap(torch.ones(3, 2, 2), like=image)).__name__, tv_tensors.wrap.__name__)
"""


@pytest.mark.slow
def test_libraries_start_without_the_compiler_and_get_it_where_they_use_it(tmp_path: Path) -> None:
    (tmp_path / "wants_more.py").write_text("from torch._dynamo import is_dynamo_supported\n")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({str(tmp_path)!r})\n{USED}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "[True, True, True, True, False]",
        "True False",
        "True",
        "True",
        "True",
        "Image wrap",
    ]
