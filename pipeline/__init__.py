"""The stages of `dvc.yaml`: one short script each."""

import maskdm  # noqa: F401 - first, before torch: it says how threads wait
from maskdm.runtime.errors import one_line_interrupts

one_line_interrupts()
