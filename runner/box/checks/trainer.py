"""The program of a job: a few steps of training with PyTorch on the GPU, and what came of it as a JSON object."""

from __future__ import annotations

PROGRAM = """\
import json

import torch

said = {"torch": torch.__version__}
try:
    device = torch.device("cuda")
    torch.manual_seed(0)
    said["device"] = torch.cuda.get_device_name(device)
    model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1)).to(device)
    rule = torch.randn(16, 1, device=device) / 4
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(200):
        data = torch.randn(256, 16, device=device)
        loss = torch.nn.functional.mse_loss(model(data), torch.sin(data @ rule))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    said |= {"before": sum(losses[:10]) / 10, "after": sum(losses[-10:]) / 10}
except Exception as error:
    said["error"] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""
