"What the judges of this chapter's exercises share."

import torch

B1, B2, EPS = 0.9, 0.95, 1e-8


def _by_pytorch(p, grad, mean, square, step, lr, decay, betas=(B1, B2), eps=EPS):
    "One step of PyTorch's AdamW from the given state: the new tensor, mean and square."
    p = p.detach().clone().requires_grad_()
    optimizer = torch.optim.AdamW([p], lr=lr, betas=betas, eps=eps, weight_decay=decay)
    optimizer.state[p] = {
        "step": torch.tensor(float(step - 1)),
        "exp_avg": mean.clone(),
        "exp_avg_sq": square.clone(),
    }
    p.grad = grad.clone()
    optimizer.step()
    state = optimizer.state[p]
    return p.detach(), state["exp_avg"], state["exp_avg_sq"]


def _step(
    p, grad, mean, square, step, lr, decay, *,
    corrected=True, root=lambda v: v.sqrt() + EPS, l2=False, apart=True, b1=B1, b2=B2, swap=False,
    before=False,
):  # fmt: skip
    "The right answer, with a switch for each mistake."
    if l2:
        grad, decay = grad + decay * p, 0.0
    new_mean = b1 * mean + (1 - b1) * grad
    new_square = b2 * square + (1 - b2) * grad**2
    m, v = (mean, square) if before else (new_mean, new_square)
    if corrected:
        t = step - 1 if corrected == "late" else step
        m, v = m / max(1 - b1**t, 1e-3), v / max(1 - b2**t, 1e-3)
    kept = p * (1 - (lr if apart else 1) * decay)
    return kept - lr * m / root(v), new_mean, new_square
