"""What the NVIDIA driver says, without PyTorch."""

import ctypes
import shutil
import subprocess

_NO_GPU = "No devices were found"


def nvidia_smi(*fields: str) -> list[list[str]]:
    """A row of these fields for each GPU; none where no driver is installed.

    Raises:
        RuntimeError: nvidia-smi is there and fails.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise RuntimeError(str(error)) from error
    if answer.returncode != 0:
        said = (answer.stdout + answer.stderr).strip()
        if _NO_GPU in said:
            return []
        raise RuntimeError(said or f"exit status {answer.returncode}")
    return [[field.strip() for field in line.split(",")] for line in answer.stdout.splitlines()]


def version() -> str | None:
    """Such as "580.65.06"; None where nvidia-smi cannot tell."""
    try:
        rows = nvidia_smi("driver_version")
    except RuntimeError:
        return None
    return rows[0][0] if rows else None


def cuda_version() -> str | None:
    """The newest CUDA that the driver knows, such as "13.0"; None without a driver.

    The library says it, which may be newer than the kernel module whose version nvidia-smi shows.
    """
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(number)) != 0:
        return None
    return f"{number.value // 1000}.{number.value % 1000 // 10}"
