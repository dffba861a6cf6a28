"""Train a small network on handwritten digits with M-SVAG: ``python examples/train_msvag.py``."""

import torch

from svag import MSVAG
from svag.problems import accuracy, get


def main() -> None:
    torch.manual_seed(0)
    problem = get("digits")
    data = problem.load(None)
    model = problem.model()
    optimizer = MSVAG(model.parameters(), lr=0.1, beta=0.9)

    for _ in range(problem.quick_steps):
        batch = torch.randint(len(data.train), (problem.batch_size,))
        loss = problem.loss(model(data.train.inputs[batch]), data.train.targets[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    with torch.no_grad():
        right = accuracy(model(data.test.inputs), data.test.targets)
    print(f"test accuracy after {problem.quick_steps} steps: {right:.1%}")


if __name__ == "__main__":
    main()
