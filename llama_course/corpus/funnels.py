"What a funnel counted, as a table and as a picture."


def funnel_table(
    counts: list[dict],  # of a Funnel
) -> str:
    "What each step removed, one line for each step."
    width = max(len(count["step"]) for count in counts)
    lines = [f"{'':{width}}  documents      kept        bytes      kept"]
    for c in counts:
        kept = [
            f"{c[f'{what}_out'] / max(1, c[f'{what}_in']):9.1%}" for what in ("documents", "bytes")
        ]
        lines.append(
            f"{c['step']:{width}}  {c['documents_out']:9,} {kept[0]} {c['bytes_out']:12,} {kept[1]}"
        )
    return "\n".join(lines)


def draw_funnel(
    counts: list[dict],  # of a Funnel
    ax=None,  # where to draw; a new picture if it is not given
):
    "A bar for each step: the share of all bytes that is left after it."
    import matplotlib.pyplot as plt

    ax = ax or plt.subplots(figsize=(7, 0.8 + 0.28 * len(counts)))[1]
    first = counts[0]
    rows = [("at first", first["documents_in"], first["bytes_in"])]
    rows += [(count["step"], count["documents_out"], count["bytes_out"]) for count in counts]
    for y, (_, documents, size) in enumerate(rows):
        share = 100 * size / max(1, first["bytes_in"])
        ax.barh(y, share, 0.75, left=(100 - share) / 2, color="C0" if y else "#888")
        ax.text(101, y, f"{share:.0f} %, {documents:,} documents", va="center", fontsize=8)
    ax.set(
        yticks=range(len(rows)),
        yticklabels=[row[0] for row in rows],
        ylim=(len(rows) - 0.4, -0.6),
        xlim=(0, 135),
        xticks=[],
        title="What is left of the text",
    )
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return ax
