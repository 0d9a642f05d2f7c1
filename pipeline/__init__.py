"""The stages of `dvc.yaml`: one short script each."""

import os
from multiprocessing import parent_process

import maskdm  # noqa: F401 - first, before torch: it says how threads wait
from maskdm.runtime.children import stop_with_parent
from maskdm.runtime.errors import one_line_interrupts

one_line_interrupts()
if "DVC_STAGE" in os.environ and parent_process() is None:  # a stage, and no worker of one
    stop_with_parent()  # DVC that is killed tells its stage nothing, which would train on beside the next run's
