"""A small sum, to show that it runs."""

import torch

values = torch.arange(1_000_000, dtype=torch.float64)
print(f"torch {torch.__version__}: the sum of 0 to 999999 is {int(values.sum())}")
