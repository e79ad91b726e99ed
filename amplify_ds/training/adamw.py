"""torch's AdamW without torch's compiler.

`torch.optim` keeps torch.compile out of these three methods by a wrapper that imports the compiler when they are first
called, two seconds of every process that trains. Nothing here compiles an optimizer: these are the methods inside the
wrappers, and AdamW is torch's to the last bit (test_imports.py compares).
"""

from __future__ import annotations

import inspect

import torch


class AdamW(torch.optim.AdamW):
    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))  # no_grad: what its wrapper does besides
