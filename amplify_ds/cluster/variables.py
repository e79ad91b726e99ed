"""Environment variables that every rank needs, on every machine.

ssh starts a command with hardly any environment, and pdsh passes on little. What stands in CARRIED, and is set where
the job is started, goes into a file in memory, which DeepSpeed's runner reads (DS_ENV_FILE names it): so nothing has to
be put back afterwards, and two jobs do not disturb each other. Lines of ~/.deepspeed_env and ./.deepspeed_env, which
the runner would read without that, are taken over; what is set where the job is started comes first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from amplify_ds.errors import AmplifyError

FILE = ".deepspeed_env"
CARRIED = {
    "OMP_NUM_THREADS": "threads of a rank: cores / ranks, set by launch/train.sh when you do not",
    "MKL_NUM_THREADS": "the same for MKL",
    "DS_ACCELERATOR": "cpu without GPUs, set by launch/train.sh",
    "AMPLIFY_LAUNCH": "the name of this start, by which its processes know each other",
    "NCCL_*": "communication between GPUs: NCCL_SOCKET_IFNAME, NCCL_IB_HCA, NCCL_DEBUG",
    "TORCH_NCCL_*": "and torch's own settings of it",
    "TORCH_FR_*": "torch's flight recorder, which knows the last collectives",
    "GLOO_SOCKET_IFNAME": "the network interface of CPU ranks, such as eth0",
    "UCX_*": "communication through UCX",
    "FI_*": "communication through libfabric (EFA, Slingshot)",
    "CUDA_DEVICE_MAX_CONNECTIONS": "order of kernels and copies",
    "PYTORCH_CUDA_ALLOC_CONF": "the allocator, such as expandable_segments:True",
    "PYTORCH_ALLOC_CONF": "its newer name",
    "TORCH_LOGS": "what torch tells of itself",
    "TORCHINDUCTOR_CACHE_DIR": "compiled kernels",
    "TRITON_CACHE_DIR": "and Triton's",
    "TORCH_EXTENSIONS_DIR": "operators that DeepSpeed builds",
    "XDG_CACHE_HOME": "other caches",
    "HF_HOME": "models and data of the hub",
    "HF_HUB_OFFLINE": "1: never ask the hub",
    "TRANSFORMERS_OFFLINE": "the same, its older name",
    "LD_LIBRARY_PATH": "shared libraries, such as CUDA of a module system",
    "PATH": "programs, such as the compiler that torch.compile calls",
}
# DeepSpeed writes a value into a line for the remote shell, in double quotes at most.
UNSAFE = re.compile(r'["$`\\\n\r]')


def to_carry(environment: Mapping[str, str]) -> dict[str, str]:
    """Return those of CARRIED that are set; AmplifyError for a value that the remote shell would change."""
    found = {
        name: value
        for name, value in sorted(environment.items())
        if any(fnmatchcase(name, pattern) for pattern in CARRIED)
    }
    for name, value in found.items():
        if UNSAFE.search(value):
            raise AmplifyError(
                f'the environment has {name}={value!r}: a value with one of " $ ` \\ or a line end does not reach '
                "other machines unchanged; set another one, or unset it"
            )
    return found


def file_text(environment: Mapping[str, str], extra: Mapping[str, str]) -> str:
    """Return the variables for all ranks of a job as NAME=VALUE lines, for the file that DS_ENV_FILE names."""
    lines: dict[str, str] = {}
    for place in (Path.home(), Path.cwd()):  # in the order in which the runner reads them
        lines |= read(place / FILE)
    lines |= to_carry(environment) | dict(extra)
    return "".join(f"{name}={value}\n" for name, value in lines.items())


def read(file: Path) -> dict[str, str]:
    """NAME=VALUE lines of a file of the user's; {} without it, AmplifyError for a line of another kind."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise AmplifyError(f"{file}: cannot be read ({error})") from None
    found = {}
    for number, line in enumerate(lines, 1):
        name, equals, value = line.partition("=")
        if equals and re.fullmatch(r"[A-Za-z_]\w*", name.strip()):
            found[name.strip()] = value.strip()
        elif line.strip():
            raise AmplifyError(f"{file}, line {number}: expected NAME=VALUE, found {line!r}; DeepSpeed refuses it too")
    return found
