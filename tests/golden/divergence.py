"""Makes the golden fixture of the losses of distillation: values and gradients from torch's autograd in float64.

    pip install torch==2.15.0
    python tests/golden/divergence.py

divergence.json holds rows of teacher and student logits, the token that follows each, and for every loss its value and gradient by row.
Nothing is written out by hand here: the losses are sums of softmaxes, and autograd makes the gradients.
"""

import json
import pathlib

import torch

torch.manual_seed(11)
ROWS, VOCAB = 4, 23
teacher = torch.randn(ROWS, VOCAB, dtype=torch.float64) * torch.tensor([[1.0], [3.0], [8.0], [0.1]], dtype=torch.float64)
student = teacher + torch.randn(ROWS, VOCAB, dtype=torch.float64) * torch.tensor([[0.5], [2.0], [4.0], [3.0]], dtype=torch.float64)
target = torch.randint(VOCAB, (ROWS,))


def kl(log_a, log_b):
    return (log_a.exp() * (log_a - log_b)).sum(-1)


def divergence(kind, beta, log_p, log_q):
    if kind == "forward":
        return kl(log_p, log_q)
    if kind == "reverse":
        return kl(log_q, log_p)
    log_m = (beta * log_p.exp() + (1 - beta) * log_q.exp()).log()
    return beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m)


cases = []
for kind, beta in [("forward", 0.0), ("reverse", 0.0), ("jsd", 0.5), ("jsd", 0.1), ("jsd", 0.9)]:
    for temperature in [1.0, 2.5]:
        for weight in [0.0, 0.3]:
            z = student.clone().requires_grad_()
            log_p, log_q = (teacher / temperature).log_softmax(-1), (z / temperature).log_softmax(-1)
            token = torch.nn.functional.cross_entropy(z, target, reduction="none")
            value = temperature**2 * divergence(kind, beta, log_p, log_q) + weight * token
            value.sum().backward()
            cases.append({"kind": kind, "beta": beta, "temperature": temperature, "cross_entropy": weight,
                          "value": value.tolist(), "gradient": z.grad.tolist()})

path = pathlib.Path(__file__).parent / "divergence" / "expected.json"
path.parent.mkdir(exist_ok=True)
path.write_text(json.dumps({"teacher": teacher.tolist(), "student": student.tolist(), "target": target.tolist(), "cases": cases}) + "\n")
