"""Says whether dwconv works on this machine, and if not, why: what to put into a bug report.

Shows what is installed, what the kernels were compiled for, and which GPUs and driver are there;
computes a small convolution and its gradients on the CPU and on each GPU, and compares them with
PyTorch's in float64. Ends with a sentence for each problem, and what to do about it. The exit
status is 0 where there is none; a machine without a GPU is none.
"""

from dwconv.doctor.command import add_arguments, run

__all__ = ["add_arguments", "run"]
