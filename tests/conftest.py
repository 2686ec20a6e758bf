"""What all tests share: one thread, since several on shared cores are far slower than one."""

import torch

torch.set_num_threads(1)
