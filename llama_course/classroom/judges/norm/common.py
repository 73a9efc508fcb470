"What the judges of this chapter's exercises share."

import torch


def norm_cases(seed: int):
    "Arguments (x, weight, eps) in all dtypes, rows from 0.001 to 1 times the case's size."
    random = torch.Generator().manual_seed(seed)
    for dtype, size, shape, eps in (
        (torch.float64, 1.0, (3, 8), 1e-5),
        (torch.float32, 1.0, (5, 24), 1e-5),
        (torch.float32, 0.05, (2, 3, 16), 1e-3),
        (torch.float32, 3.0, (2, 4, 2, 64), 1e-6),
        (torch.bfloat16, 2.0, (2, 6, 32), 1e-5),
        (torch.float16, 300.0, (4, 4, 32), 1e-5),
        (torch.float16, 0.02, (6, 48), 1e-6),
        (torch.float32, 2.0, (12,), 1e-5),  # a single vector
    ):
        spread = 10 ** (3 * torch.rand(*shape[:-1], 1, generator=random) - 3)
        x = size * spread * (0.5 + torch.randn(shape, generator=random))
        if size == 1.0:
            x.view(-1, shape[-1])[0] = 0
        weight = 1 + 0.5 * torch.randn(shape[-1], generator=random)
        yield x.to(dtype), weight.to(dtype), eps
