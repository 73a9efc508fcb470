"The pictures of the report."

import io

import numpy as np


def running_mean(values: np.ndarray, share: float = 0.02) -> np.ndarray:  # as many
    "Each value with its neighbours, over a share of all of them."
    width = max(1, round(share * len(values)))
    padded = np.pad(values, (width // 2, width - 1 - width // 2), "edge")
    return np.convolve(padded, np.ones(width) / width, "valid")


def loss_curve(
    metrics: dict[str, np.ndarray],
    held_out: dict[str, dict[int, float]] | None = None,  # source -> step -> bits per byte
    dark: bool = False,
) -> bytes:  # a PNG
    "The loss of every step, their running mean, held-out text if measured, the rate below."
    from matplotlib import rc_context  # slow to import, and only the end of a run needs it
    from matplotlib.figure import Figure

    light_colours = "#222222", "#e4e4e4", "#1f5aa6", "#d1602a"
    dark_colours = "#e8e6e1", "#3a3d42", "#7db1f0", "#f0a06a"
    ink, line, blue, red = dark_colours if dark else light_colours
    inked = "text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"
    style: dict = dict.fromkeys(inked, ink)
    style |= {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": line,
        "axes.axisbelow": True,
        "axes.facecolor": "none",
        "savefig.facecolor": "none" if dark else "white",
    }
    seen = np.isfinite(metrics["loss"])  # steps that were skipped have no loss
    millions, loss, rate = (metrics[name][seen] for name in ("tokens", "loss", "lr"))
    millions = millions / 1e6
    with rc_context(style):
        rows = (4, 3, 1) if held_out else (4, 1)
        figure = Figure(figsize=(7.6, 0.55 * sum(rows) + 1.65), dpi=160, layout="constrained")
        top, *middle, below = figure.subplots(len(rows), 1, sharex=True, height_ratios=rows)
        per_step = metrics["tokens"][0] / metrics["step"][0] / 1e6
        for axes in middle:
            for source, at in (held_out or {}).items():
                axes.plot([s * per_step for s in at], [*at.values()], "o-", ms=3, label=source)
            axes.set(ylabel="bits per byte")
            axes.legend(title="held out", frameon=False, fontsize=8, title_fontsize=8)
        top.plot(millions, loss, color=blue, lw=0.6, alpha=0.4)
        top.plot(millions, running_mean(loss), color=blue, lw=2)
        limits = (max(0, loss.min() - 0.1), loss.max() + 0.2)
        top.set(ylabel="loss (nats per token)", ylim=limits)
        below.plot(millions, rate, color=red, lw=1.6)
        below.set(xlabel="tokens read (millions)", ylabel="rate", ylim=(0, None))
        figure.savefig(file := io.BytesIO(), format="png")
    return file.getvalue()
