"""What is imported late is not imported at a start, and is the real thing when it is asked for."""

import subprocess
import sys

import pytest

from lit_cnn.core.late_imports import StandIn
from tests.conftest import REPO_ROOT

TRAIN_AND_COMPILE = """
import sys
from lit_cnn.core.late_imports import postpone_imports
postpone_imports()
import lightning.fabric.wrappers, torch, torchvision, torchmetrics
from timm.optim import create_optimizer_v2

net = torch.nn.Linear(2, 2)
optimizer = create_optimizer_v2(net, "adamw", lr=0.1)
net(torch.ones(1, 2)).sum().backward()
optimizer.step()
assert not {"torch._dynamo.symbolic_convert", "scipy.signal._signaltools"} & sys.modules.keys()
assert not isinstance(net, lightning.fabric.wrappers.OptimizedModule)

compiled = torch.compile(net, backend="eager")
assert torch.equal(compiled(torch.ones(1, 2)), net(torch.ones(1, 2)))
assert isinstance(compiled, lightning.fabric.wrappers.OptimizedModule)
import torch._dynamo
assert torch._dynamo is sys.modules["torch._dynamo"] and torch._dynamo.__file__
assert torch._dynamo.config.cache_size_limit == 1_000_000  # as timm sets it
assert not hasattr(torch.optim.Optimizer.zero_grad.__wrapped__, "__dynamo_disable")
import scipy.signal
from scipy.signal import get_window
assert len(scipy.signal.windows.hann(5)) == len(get_window("hann", 5)) == 5
torchvision.ops.roi_align(torch.ones(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 2, 2]]), 2)
"""


@pytest.mark.timeout(200)
def test_a_start_needs_no_compiler_and_whoever_compiles_gets_it() -> None:
    command = [sys.executable, "-c", TRAIN_AND_COMPILE]
    done = subprocess.run(command, cwd=REPO_ROOT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr


def test_a_stand_in_makes_way_for_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    import colorsys

    monkeypatch.setitem(sys.modules, "colorsys", StandIn("colorsys", known=1))
    import colorsys as stand_in

    assert stand_in.__dict__["known"] == 1 and isinstance(stand_in, StandIn)
    assert stand_in.rgb_to_hsv(0, 0, 0) == colorsys.rgb_to_hsv(0, 0, 0)
    assert not isinstance(sys.modules["colorsys"], StandIn)
