"Plots of a chapter: one look, and SVG that is the same at every run."

import matplotlib.pyplot as plt

from llama_course.support.optional import need


def svg_plots(
    style: str = "course.mplstyle",  # the look; the file lies beside the chapters
):
    "Every plot of this notebook, from here on, is an SVG in the course's look."
    plt.style.use(style)
    inline = need("matplotlib_inline.backend_inline", "dev")
    unsaid = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # it would differ between runs
    inline.set_matplotlib_formats("svg", metadata=unsaid)
