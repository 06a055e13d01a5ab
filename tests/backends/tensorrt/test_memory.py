"""Limits on shared memory, and the warning before the out-of-memory killer."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.backends.tensorrt import environment
from edge.backends.tensorrt.environment import Limits, Memory

MEMINFO = "MemTotal:        {total} kB\nMemFree:          1000 kB\nMemAvailable:    {available} kB\n"
SWAPS = "Filename\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"


def tree(root: Path, *, total: int, available: int, swaps: str = "") -> Path:
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text(MEMINFO.format(total=total * 1024, available=available * 1024))
    (root / "proc/swaps").write_text(SWAPS + swaps)
    return root


def test_proc_is_read(tmp_path: Path) -> None:
    swaps = "/dev/zram0 partition 2048000 1024000 5\n/swap file file 8388604 4194304 -2\n/swapfile file 4194304 0 -3\n"
    found = environment.read(tree(tmp_path, total=7600, available=2500, swaps=swaps))
    assert (found.total_mib, found.available_mib, found.zram_mib) == (7600, 2500, 1000)
    # A file with a blank in its name is written with \040 by the kernel; this line is not one of its kind.
    assert found.swap_mib == 4096


def test_nothing_to_read(tmp_path: Path) -> None:
    found = environment.read(tmp_path)
    assert found == Memory()
    assert environment.limits(found, workspace_mib=512, shared=True) == Limits(workspace_mib=512, tactic_mib=None)
    assert environment.warnings(found, Limits(workspace_mib=512, tactic_mib=None), model_bytes=0, shared=True) == []


@pytest.mark.parametrize(
    ("available", "workspace", "expected"),
    [
        pytest.param(6000, 1024, (1024, 4308), id="the profile's workspace"),
        pytest.param(6000, None, (1436, 4308), id="a quarter of what is free"),
        pytest.param(1000, 2048, (2048, 2048), id="tactics not below the workspace"),
        pytest.param(100, None, (128, 128), id="never nothing"),
    ],
)
def test_limits_on_a_jetson(available: int, workspace: int | None, expected: tuple[int, int]) -> None:
    found = environment.limits(Memory(available_mib=available), workspace_mib=workspace, shared=True)
    assert (found.workspace_mib, found.tactic_mib) == expected


def test_a_discrete_gpu_keeps_tensorrts_defaults() -> None:
    found = environment.limits(Memory(available_mib=1000), workspace_mib=None, shared=False)
    assert found == Limits(workspace_mib=None, tactic_mib=None)
    assert environment.warnings(Memory(available_mib=10), found, model_bytes=1 << 30, shared=False) == []


@pytest.mark.parametrize(
    ("here", "words"),
    [
        pytest.param(Memory(available_mib=6000), None, id="plenty"),
        pytest.param(Memory(available_mib=1200, swap_mib=4096), None, id="little, with swap on disk"),
        pytest.param(Memory(available_mib=1200), "1200 MiB of memory are free and 0 MiB of swap", id="little"),
        pytest.param(Memory(available_mib=1200, zram_mib=3000), "swap is only zram", id="only zram"),
        pytest.param(Memory(available_mib=600, swap_mib=100, zram_mib=3000), "100 MiB of swap on disk", id="both"),
        # 1200 MiB for TensorRT, the workspace, and the weights three times.
        pytest.param(Memory(available_mib=1771), "takes about 1772 MiB", id="one too few"),
        pytest.param(Memory(available_mib=1772), None, id="just enough"),
    ],
)
def test_a_warning_before_the_killer(here: Memory, words: str | None) -> None:
    chosen = Limits(workspace_mib=512, tactic_mib=800)
    found = environment.warnings(here, chosen, model_bytes=20 << 20, shared=True)
    assert len(found) == (words is not None)
    if words is not None:
        assert words in found[0]
        assert "build.workspace_mib" in found[0]
