"""From raw files to token shards at any scale: `llama-course data recipe.toml --out FOLDER`.

`recipe` says what is read and how it is cleaned, `filters` names the steps of chapters 4 and 5,
`readers`, `documents`, `dumps` and `warc` read raw formats, `stages` cuts a source into the blocks
of a datatrove pipeline, `executors` runs them on one machine, on Slurm or on Ray, and `build` does
all of it. `funnels` shows what the filters removed; `installed` has the texts that installed
packages bring, which stand in for the web in the chapters.
"""
