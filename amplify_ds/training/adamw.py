"""torch's AdamW without the import of torch's compiler.

`torch.optim` wraps these three methods to keep torch.compile out of them. The wrapper imports the compiler at the first
call, which takes every training process two seconds. Nothing here compiles an optimizer, so this class uses the methods
inside the wrappers. Results are those of torch's AdamW to the last bit (tested by test_imports.py).
"""

from __future__ import annotations

import inspect

import torch


class AdamW(torch.optim.AdamW):
    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))  # no_grad: the wrapper's other effect
