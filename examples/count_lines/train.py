# /// script
# requires-python = ">=3.11"
# dependencies = ["torch>=2.4,<3", "numpy>=2", "matplotlib>=3.9,<4"]
# ///
"""Learn to count: how many straight lines, 1 to 8, are drawn at random in a picture of 64 x 64 pixels?

A child can do it, and so the difficulty surprises:

- No single place of the picture holds the answer. A network is made of small windows that see edges and corners; a
  line is only known to be *one* line by following it through all the windows that it passes.
- Lines cross. Each crossing cuts what is seen of a line into pieces, and with 8 lines there are eight or nine of them.
- Short cuts mislead. More ink means more lines, but four long ones have the ink of eight short ones. Twice as many ends
  as lines would be exact, but ends hide on other lines.
- Counts are neighbours. 5 and 6 look almost the same, so the loss falls fast to "about 5" and then crawls.

The pictures are drawn as they are needed, so none is seen twice and there is nothing to learn by heart. Runs on a GPU
when there is one, else on the CPU.

    runner submit examples/count_lines/train.py --steps 3000

Interrupted (SIGTERM) it saves its state in RUNNER_CHECKPOINT, and when it is started again it goes on where it was. On
a CPU it ends with the very same network as if nothing had happened, because every batch is drawn from the number of
its step and nothing else.
"""

import argparse
import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch import nn

matplotlib.use("Agg")  # draw into files: a box has no screen
import matplotlib.pyplot as plt

SIZE, MOST = 64, 8
TEST_PICTURES = 2000


def main() -> None:
    options = parse()
    out = Path(os.environ.get("RUNNER_OUT", "out"))
    out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    place = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"

    run = Run(options, device)
    weights = sum(weight.numel() for weight in run.network.parameters())
    print(f"counting 1 to {MOST} lines on {place}; {weights:,} weights, {options.steps} steps", flush=True)
    run.train()

    pictures, counts = draw_lines(TEST_PICTURES, seed=(options.seed, -1), device=device)
    probabilities = run.predict(pictures)
    predicted = probabilities.argmax(1) + 1
    off = (predicted - counts).abs().float()
    metrics = {
        "accuracy": (off == 0).float().mean().item(),
        "within_one": (off <= 1).float().mean().item(),
        "mean_error": off.mean().item(),
        "accuracy_by_count": [(predicted == counts)[counts == n].float().mean().item() for n in range(1, MOST + 1)],
        "chance": 1 / MOST,
        "loss": run.history[-1],
        "steps": run.step,
        "seconds": round(run.seconds, 1),
        "device": place,
        "seed": options.seed,
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    torch.save(run.network.state_dict(), out / "model.pt")
    shown = (part.cpu().numpy() for part in (pictures[:, 0], counts, predicted))
    draw(out / "report.png", run.history, *shown, metrics)
    print(
        f"accuracy {metrics['accuracy']:.4f} (chance {metrics['chance']:.3f}); "
        f"{metrics['within_one']:.1%} off by one line at most"
    )
    print(f"wrote metrics.json, model.pt and report.png to {out}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Learn to count lines.")
    parser.add_argument("--steps", type=int, default=1500, help="batches to learn from (default: 1500)")
    parser.add_argument("--batch", type=int, default=64, help="pictures in a batch (default: 64)")
    parser.add_argument("--lr", type=float, default=3e-3, help="highest learning rate (default: 0.003)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another run (default: 0)")
    return parser.parse_args()


class Run:
    """A network being trained. All that decides how it goes on is in `state`."""

    def __init__(self, options: argparse.Namespace, device: str) -> None:
        torch.manual_seed(options.seed)
        self.options, self.device = options, device
        self.network = network().to(device)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=options.lr, weight_decay=1e-3)
        self.step, self.seconds, self.history = 0, 0.0, []
        self.stop_asked = False
        folder = os.environ.get("RUNNER_CHECKPOINT")
        self.checkpoint = Path(folder) / "count_lines.pt" if folder else None
        self.resume()

    def train(self) -> None:
        signal.signal(signal.SIGTERM, self.ask_to_stop)
        started, before = time.perf_counter(), self.seconds
        while self.step < self.options.steps:
            self.history.append(self.learn())
            self.step += 1
            self.seconds = before + time.perf_counter() - started
            show(self.step, self.options.steps, self.history)
            if self.stop_asked:
                self.save()
                print(f"\nasked to stop: saved after step {self.step}", flush=True)
                sys.exit(128 + signal.SIGTERM)
            if self.step % 200 == 0:
                self.save()

    def learn(self) -> float:
        """One step. Warm-up for a tenth of them, then slower and slower: a cosine."""
        done = self.step / self.options.steps
        rate = min(10 * done + 0.01, 0.5 + 0.5 * math.cos(math.pi * done))
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.lr * rate
        pictures, counts = draw_lines(self.options.batch, (self.options.seed, self.step), self.device)
        self.network.train()
        loss = nn.functional.cross_entropy(self.network(pictures), counts - 1)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def predict(self, pictures):
        self.network.eval()
        return torch.cat([self.network(part).softmax(1) for part in pictures.split(250)])

    def ask_to_stop(self, *_: object) -> None:
        self.stop_asked = True  # the step under way is finished first

    def save(self) -> None:
        """Whole or not at all: whoever reads it, even after a power cut, finds the old one or the new one."""
        if self.checkpoint is None:
            return
        state = {
            "asked": vars(self.options), "step": self.step, "seconds": self.seconds, "history": self.history,
            "network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip
        temporary = self.checkpoint.with_suffix(".new")
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.checkpoint)

    def resume(self) -> None:
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        if state["asked"] != vars(self.options):
            print("the checkpoint is of a run with other options: starting anew", flush=True)
            return
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]
        print(f"going on after step {self.step}", flush=True)


def network() -> nn.Module:
    """Windows that see more and more of the picture (3 pixels at first, all of it at the end), then one sum over them:
    a count is a sum of what each place adds to it."""

    def widen(inputs: int, outputs: int) -> list[nn.Module]:
        return [
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), Look(outputs),
        ]  # fmt: skip

    return nn.Sequential(
        *widen(1, 24), *widen(24, 48), *widen(48, 96), Look(96), *widen(96, 128), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, MOST),
    )  # fmt: skip


class Look(nn.Module):
    """A second look at the same size, added to the first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, seen):
        return torch.relu(seen + self.body(seen))


def draw_lines(pictures: int, seed: tuple[int, int], device: str):
    """(pictures, how many lines each has). Drawn on the device; the random numbers are made by numpy, the same
    everywhere."""
    random = np.random.default_rng([seed[0], seed[1] + 1])
    counts = random.integers(1, MOST + 1, pictures)
    middle = random.uniform(12, SIZE - 12, (pictures, MOST, 2))
    angle, half = random.uniform(0, np.pi, (pictures, MOST)), random.uniform(8, 28, (pictures, MOST))
    reach = np.stack([np.cos(angle), np.sin(angle)], -1) * half[..., None]
    ends = np.clip([middle - reach, middle + reach], 2, SIZE - 3).astype(np.float32)
    a, b = torch.tensor(ends, device=device)[..., None, None]  # picture, line, x or y, 1, 1
    drawn = torch.tensor(np.arange(MOST) < counts[:, None], device=device)[..., None, None]

    x = torch.arange(SIZE, device=device, dtype=torch.float32)
    y = x[:, None]
    along = b - a
    length = (along**2).sum(2)
    at = (((x - a[:, :, 0]) * along[:, :, 0] + (y - a[:, :, 1]) * along[:, :, 1]) / length).clamp(0, 1)
    off_x, off_y = x - a[:, :, 0] - at * along[:, :, 0], y - a[:, :, 1] - at * along[:, :, 1]
    ink = (1.3 - (off_x**2 + off_y**2).sqrt()).clamp(0, 1) * drawn
    return ink.amax(1, keepdim=True), torch.tensor(counts, device=device)


def show(step: int, steps: int, history: list[float]) -> None:
    """A bar that redraws itself in its line; twenty of its states stay."""
    stays = step % max(1, steps // 20) == 0 or step == steps
    if stays or step % 5 == 0:
        bar = "█" * (20 * step // steps)
        loss = sum(history[-50:]) / len(history[-50:])
        line = f"\rstep {step:5}/{steps} ▕{bar:<20}▏ loss {loss:.4f}"
        print(line, end="\n" if stays else "", file=sys.stderr, flush=True)


INK, QUIET, BLUE, ORANGE, RULE = "#1d2433", "#8b93a5", "#2f6fde", "#e8702a", "#e8ebf1"


def draw(path: Path, history: list[float], pictures, counts, predicted, metrics: dict) -> None:
    """The report: how the loss fell, how well it counts how many, and pictures it counted rightly and wrongly."""
    plt.rcParams |= {
        "font.size": 10, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": QUIET, "xtick.color": QUIET,
        "ytick.color": QUIET, "axes.spines.top": False, "axes.spines.right": False, "axes.titleweight": "bold",
        "axes.titlelocation": "left", "axes.titlepad": 12, "axes.axisbelow": True,
    }  # fmt: skip
    figure = plt.figure(figsize=(12, 8.6), dpi=120, facecolor="white")
    figure.text(0.055, 0.95, f"{metrics['accuracy']:.1%}", fontsize=26, weight="bold", color=BLUE, va="center")
    figure.text(
        0.175, 0.95,
        f"of {len(counts)} new pictures counted exactly, {metrics['within_one']:.1%} within one line; "
        f"guessing would get {metrics['chance']:.1%}\n"
        f"{metrics['steps']} steps in {metrics['seconds']:.0f} s on {metrics['device']}",
        va="center", linespacing=1.5,
    )  # fmt: skip
    grid = figure.add_gridspec(
        4, 2, height_ratios=(2.3, 0.05, 1, 1), left=0.06, right=0.97, top=0.86, bottom=0.03, hspace=0.55, wspace=0.14
    )
    draw_loss(figure.add_subplot(grid[0, 0]), history)
    draw_accuracy(figure.add_subplot(grid[0, 1]), metrics)
    right, wrong = np.flatnonzero(predicted == counts), np.flatnonzero(predicted != counts)
    some = [number for n in range(1, MOST + 1) for number in right[counts[right] == n][:1]]
    draw_row(figure, grid[2, :], "Counted rightly", pictures, counts, predicted, some)
    draw_row(figure, grid[3, :], "Counted wrongly", pictures, counts, predicted, wrong[:MOST])
    figure.savefig(path)
    plt.close(figure)


def draw_loss(axes, history: list[float]) -> None:
    steps, values = np.arange(1, len(history) + 1), np.array(history)
    reach = max(1, min(50, len(values) // 4))
    axes.plot(steps, values, color=BLUE, linewidth=0.6, alpha=0.25)
    axes.plot(steps[reach - 1 :], np.convolve(values, np.ones(reach) / reach, "valid"), color=BLUE, linewidth=2.4)
    axes.axhline(np.log(MOST), color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
    axes.text(steps[-1], np.log(MOST) + 0.04, "guessing", color=QUIET, ha="right", va="bottom")
    axes.set(xlabel="step", xlim=(1, max(steps[-1], 2)), ylim=(0, 2.6), title="How the loss fell")
    axes.grid(axis="y", color=RULE, linewidth=0.8)


def draw_accuracy(axes, metrics: dict) -> None:
    shares = metrics["accuracy_by_count"]
    axes.bar(range(1, MOST + 1), shares, color=BLUE, width=0.68)
    for count, share in enumerate(shares, 1):
        axes.text(count, share + 0.02, f"{share:.0%}", ha="center", color=BLUE)
    axes.axhline(metrics["chance"], color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
    axes.set(xticks=range(1, MOST + 1), yticks=[], ylim=(0, 1.12), xlabel="lines in the picture")
    axes.set_title("How often it counts them exactly")
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0)


def draw_row(figure, place, title: str, pictures, counts, predicted, chosen) -> None:
    row = place.subgridspec(1, MOST, wspace=0.12)
    for at in range(MOST):
        axes = figure.add_subplot(row[at], xticks=[], yticks=[])
        if at == 0:
            axes.set_title(title, pad=24)
        if at >= len(chosen):
            axes.axis("off")
            continue
        number = chosen[at]
        axes.imshow(pictures[number], cmap="Greys", vmin=0, vmax=1.1)
        axes.spines[:].set(visible=True, color=RULE)
        hit = counts[number] == predicted[number]
        said = f"{counts[number]}" if hit else f"{counts[number]}, said {predicted[number]}"
        axes.text(31.5, -4, said, ha="center", color=BLUE if hit else ORANGE, weight="bold")


if __name__ == "__main__":
    main()
