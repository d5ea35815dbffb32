# /// script
# requires-python = ">=3.11"
# dependencies = ["scikit-learn>=1.5,<2", "matplotlib>=3.9,<4"]
# ///
"""Learn to read handwritten digits: 1,797 real ones, 8 x 8 pixels each, that come with scikit-learn.

A small neural network sees 80 % of them again and again, every time pushed by up to one pixel, and is then asked about
the rest, which it has never seen. A few seconds on any computer.

    runner submit examples/digits/train.py --epochs 100
    python examples/digits/train.py              the same by hand; results land in ./out
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import joblib
import matplotlib
import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

matplotlib.use("Agg")  # draw into files: a box has no screen
import matplotlib.pyplot as plt
import matplotlib.ticker


def main() -> None:
    options = parse()
    threadpool_limits(1)  # matrices this small are quicker on one core, and five times so when other jobs run beside
    out = Path(os.environ.get("RUNNER_OUT", "out"))
    out.mkdir(parents=True, exist_ok=True)

    digits = load_digits()
    images = digits.images / 16  # 0 = paper, 1 = ink
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, digits.target, test_size=0.2, stratify=digits.target, random_state=0
    )
    print(f"{len(train_images)} images to learn from, {len(test_images)} held out for the test", flush=True)

    started = time.perf_counter()
    model, history = train(options, train_images, train_labels, test_images, test_labels)
    predicted = model.predict(flat(test_images))
    metrics = {
        "accuracy": float(np.mean(predicted == test_labels)),
        "mistakes": int(np.sum(predicted != test_labels)),
        "tested": len(test_labels),
        "loss": history["loss"][-1],
        "epochs": len(history["loss"]),
        "seconds": round(time.perf_counter() - started, 2),
        **{name: getattr(options, name) for name in ("lr", "hidden", "seed")},
    }

    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    joblib.dump(model, out / "model.joblib")
    draw(out / "report.png", history, test_images, test_labels, predicted, metrics)
    print(f"accuracy {metrics['accuracy']:.4f}: {metrics['mistakes']} of {metrics['tested']} read wrongly")
    print(f"wrote metrics.json, model.joblib and report.png to {out}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Learn to read handwritten digits.")
    parser.add_argument("--epochs", type=int, default=200, help="times to go through the images (default: 200)")
    parser.add_argument("--lr", type=float, default=2e-3, help="learning rate at the start (default: 0.002)")
    parser.add_argument("--hidden", type=int, default=256, help="neurons in the hidden layer (default: 256)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another run (default: 0)")
    return parser.parse_args()


def train(options, images, labels, test_images, test_labels):
    """One pass over the images per epoch. With RUNNER_CHECKPOINT set, an interrupted run goes on where it was."""
    model = MLPClassifier((options.hidden,), learning_rate_init=options.lr, batch_size=32, random_state=options.seed)
    history = {"loss": [], "error": []}
    asked = vars(options)
    checkpoint = Path(os.environ["RUNNER_CHECKPOINT"]) / "digits.joblib" if "RUNNER_CHECKPOINT" in os.environ else None
    if checkpoint and checkpoint.exists():
        saved = joblib.load(checkpoint)
        if saved["asked"] == asked:
            model, history = saved["model"], saved["history"]
            print(f"going on after epoch {len(history['loss'])}", flush=True)

    for epoch in range(len(history["loss"]), options.epochs):
        random = np.random.default_rng([options.seed, epoch])  # of this epoch alone, so a resumed run sees the same
        order = random.permutation(len(images))
        model.partial_fit(flat(pushed(images, random)[order]), labels[order], classes=np.arange(10))
        history["loss"].append(float(model.loss_))
        history["error"].append(float(1 - model.score(flat(test_images), test_labels)))
        show(epoch + 1, options.epochs, history)
        if checkpoint and (epoch + 1) % 10 == 0:
            save(checkpoint, {"model": model, "history": history, "asked": asked})
    return model, history


def pushed(images, random):
    """Every image moved by up to one pixel, because a digit stays the same digit when it moves."""
    moved = np.zeros((len(images), 10, 10))
    moved[:, 1:9, 1:9] = images
    right, down = random.integers(0, 3, (2, len(images)))
    rows, columns = down[:, None, None] + np.arange(8)[:, None], right[:, None, None] + np.arange(8)
    return moved[np.arange(len(images))[:, None, None], rows, columns]


def flat(images):
    return images.reshape(len(images), -1)


def save(path: Path, state: dict) -> None:
    """Whole or not at all: whoever reads it, even after a power cut, finds the old one or the new one."""
    temporary = path.with_suffix(".new")
    with temporary.open("wb") as file:
        joblib.dump(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def show(epoch: int, epochs: int, history: dict) -> None:
    """A bar that redraws itself in its line; ten of its states stay."""
    bar = "█" * (20 * epoch // epochs)
    stays = epoch % max(1, epochs // 10) == 0 or epoch == epochs
    print(
        f"\repoch {epoch:3}/{epochs} ▕{bar:<20}▏ loss {history['loss'][-1]:.4f}  "
        f"test accuracy {1 - history['error'][-1]:.4f}",
        end="\n" if stays else "",
        file=sys.stderr,
        flush=True,
    )


INK, QUIET, BLUE, ORANGE = "#1d2433", "#8b93a5", "#2f6fde", "#e8702a"


def draw(path: Path, history: dict, images, labels, predicted, metrics: dict) -> None:
    """The report: how the loss fell, which digits are taken for which, and the images behind the mistakes."""
    plt.rcParams |= {
        "font.size": 10, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": QUIET, "xtick.color": QUIET,
        "ytick.color": QUIET, "axes.spines.top": False, "axes.spines.right": False, "axes.titleweight": "bold",
        "axes.titlelocation": "left", "axes.titlepad": 12,
    }  # fmt: skip
    figure = plt.figure(figsize=(12, 7.2), dpi=120, facecolor="white")
    figure.text(0.055, 0.945, f"{metrics['accuracy']:.1%}", fontsize=26, weight="bold", color=BLUE, va="center")
    figure.text(
        0.175, 0.945,
        f"of {metrics['tested']} handwritten digits never seen before read correctly\n"
        f"{metrics['epochs']} epochs in {metrics['seconds']:.1f} s, {metrics['hidden']} hidden neurons",
        color=INK, va="center", linespacing=1.5,
    )  # fmt: skip
    grid = figure.add_gridspec(
        2, 2, height_ratios=(3.6, 1), width_ratios=(1.2, 1), left=0.06, right=0.97, top=0.83, bottom=0.04,
        hspace=0.38, wspace=0.16,
    )  # fmt: skip
    draw_curves(figure.add_subplot(grid[0, 0]), history)
    draw_confusion(figure.add_subplot(grid[0, 1]), labels, predicted)
    draw_mistakes(figure, grid[1, :], images, labels, predicted)
    figure.savefig(path)
    plt.close(figure)


def draw_curves(axes, history: dict) -> None:
    """Each epoch thin and pale, its trend in full colour."""
    curves = (("loss", "loss in training", BLUE), ("error", "share of test images read wrongly", ORANGE))
    for at, (name, label, color) in enumerate(curves):
        values = np.maximum(history[name], 1e-3)
        epochs = np.arange(1, len(values) + 1)
        axes.plot(epochs, values, color=color, linewidth=1, alpha=0.3)
        axes.plot(epochs, trend(values), color=color, linewidth=2.4, solid_capstyle="round")
        axes.text(0.98, 0.95 - 0.07 * at, label, color=color, weight="bold", ha="right", transform=axes.transAxes)
    axes.set(yscale="log", xlabel="epoch", xlim=(1, max(epochs[-1], 2)), title="How it learned")
    axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.grid(axis="y", color="#e8ebf1", linewidth=0.8)
    axes.set_axisbelow(True)


def trend(values, reach: int = 8):
    """The geometric mean of each value's neighbours, as many on one side as on the other."""
    logs, last = np.log(values), len(values) - 1
    sides = [min(reach, at, last - at) for at in range(len(values))]
    return np.exp([logs[at - side : at + side + 1].mean() for at, side in enumerate(sides)])


def draw_confusion(axes, labels, predicted) -> None:
    counts = confusion_matrix(labels, predicted)
    right = np.eye(10, dtype=bool)
    shade = np.ones((10, 10, 3))
    shade[right] = matplotlib.colors.to_rgb("#dfe9fb")
    for row, column in zip(*np.nonzero(counts * ~right), strict=True):
        shade[row, column] = matplotlib.colors.to_rgb(ORANGE)
    axes.imshow(shade)
    for row, column in zip(*np.nonzero(counts), strict=True):
        color, weight = (BLUE, "normal") if row == column else ("white", "bold")
        axes.text(column, row, counts[row, column], ha="center", va="center", color=color, weight=weight)
    axes.set(xticks=range(10), yticks=range(10), xlabel="read as", ylabel="written", title="What it takes for what")
    axes.set_xticks(np.arange(-0.5, 10), minor=True)
    axes.set_yticks(np.arange(-0.5, 10), minor=True)
    axes.grid(which="minor", color="#e8ebf1", linewidth=0.8)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)


def draw_mistakes(figure, place, images, labels, predicted, most: int = 12) -> None:
    wrong = np.flatnonzero(labels != predicted)[:most]
    row = place.subgridspec(1, most, wspace=0.25)
    for at in range(most):
        axes = figure.add_subplot(row[at])
        axes.axis("off")
        if at == 0:
            axes.set_title("What it got wrong" if len(wrong) else "It got nothing wrong", pad=22)
        if at < len(wrong):
            number = wrong[at]
            axes.imshow(images[number], cmap="Greys", vmin=0, vmax=1.1)
            said = f"{labels[number]}, read as {predicted[number]}"
            axes.text(3.5, -1.1, said, ha="center", fontsize=8, color=ORANGE)


if __name__ == "__main__":
    main()
