"""In processes of their own: what is set stays set."""

import resource
import subprocess
import sys

# Page faults of 20 tensors of 40 MB, one after the other, each written once, when as many have come and gone.
FAULTS = """
import resource, torch
{before}
def use(): torch.ones(10_000_000)
for _ in range(20): use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20): use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(before: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS.format(before=before)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_what_is_freed_is_used_again_without_asking_the_system() -> None:
    pages = 40_000_000 // resource.getpagesize()
    # Any command, so one that there is not.
    assert page_faults("from lit_cnn.cli import main; main(['no-such-command'])") < pages
    assert page_faults("") >= 20 * pages / 2
