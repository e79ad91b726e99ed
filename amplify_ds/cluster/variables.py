"""The environment variables that every rank needs, on every machine.

ssh and pdsh pass on hardly any variables. Those in CARRIED that are set where the job is started are written to a file
in memory, named by DS_ENV_FILE, which DeepSpeed's runner reads. No file has to be restored afterwards, and two jobs do
not disturb each other. The file also contains ~/.deepspeed_env and ./.deepspeed_env, which the runner would read
without DS_ENV_FILE; the variables of the environment override them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from amplify_ds.errors import AmplifyError

FILE = ".deepspeed_env"
CARRIED = {
    "OMP_NUM_THREADS": "threads per rank; if unset, launch/train.sh sets cores / ranks",
    "MKL_NUM_THREADS": "the same for MKL",
    "DS_ACCELERATOR": "cpu without GPUs, set by launch/train.sh",
    "AMPLIFY_LAUNCH": "the name of this start, shared by its processes",
    "NCCL_*": "communication between GPUs: NCCL_SOCKET_IFNAME, NCCL_IB_HCA, NCCL_DEBUG",
    "TORCH_NCCL_*": "torch's settings for NCCL",
    "TORCH_FR_*": "torch's flight recorder, which records the last collectives",
    "GLOO_SOCKET_IFNAME": "the network interface of CPU ranks, such as eth0",
    "UCX_*": "communication through UCX",
    "FI_*": "communication through libfabric (EFA, Slingshot)",
    "CUDA_DEVICE_MAX_CONNECTIONS": "order of kernels and copies",
    "PYTORCH_CUDA_ALLOC_CONF": "memory allocation, such as expandable_segments:True",
    "PYTORCH_ALLOC_CONF": "newer name of PYTORCH_CUDA_ALLOC_CONF",
    "TORCH_LOGS": "torch's log messages",
    "TORCHINDUCTOR_CACHE_DIR": "cache of compiled kernels",
    "TRITON_CACHE_DIR": "cache of Triton's kernels",
    "TORCH_EXTENSIONS_DIR": "cache of operators that DeepSpeed builds",
    "XDG_CACHE_HOME": "other caches",
    "HF_HOME": "cache of models and data from the hub",
    "HF_HUB_OFFLINE": "1: do not connect to the hub",
    "TRANSFORMERS_OFFLINE": "older name of HF_HUB_OFFLINE",
    "LD_LIBRARY_PATH": "shared libraries, such as CUDA from a module system",
    "PATH": "programs, such as the compiler that torch.compile calls",
}
# DeepSpeed writes values into a remote shell command, at most in double quotes.
UNSAFE = re.compile(r'["$`\\\n\r]')


def to_carry(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of CARRIED that are set. Raises AmplifyError if a remote shell would change a value."""
    carried = {
        name: value
        for name, value in sorted(environment.items())
        if any(fnmatchcase(name, pattern) for pattern in CARRIED)
    }
    for name, value in carried.items():
        if UNSAFE.search(value):
            raise AmplifyError(
                f'environment variable {name}={value!r}: values with " $ ` \\ or a line break cannot be passed to '
                "other machines; change or unset it"
            )
    return carried


def file_text(environment: Mapping[str, str], extra: Mapping[str, str]) -> str:
    """Return the variables for all ranks of a job as NAME=VALUE lines, for the file that DS_ENV_FILE names."""
    variables: dict[str, str] = {}
    for directory in (Path.home(), Path.cwd()):  # in the order in which the runner reads them
        variables |= read(directory / FILE)
    variables |= to_carry(environment) | dict(extra)
    return "".join(f"{name}={value}\n" for name, value in variables.items())


def read(file: Path) -> dict[str, str]:
    """Return the NAME=VALUE lines of a file, {} if it does not exist. Raises AmplifyError for any other line."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise AmplifyError(f"{file}: cannot be read ({error})") from None
    variables = {}
    for number, line in enumerate(lines, 1):
        name, equals, value = line.partition("=")
        if equals and re.fullmatch(r"[A-Za-z_]\w*", name.strip()):
            variables[name.strip()] = value.strip()
        elif line.strip():
            raise AmplifyError(f"{file}, line {number}: expected NAME=VALUE, found {line!r}")
    return variables
