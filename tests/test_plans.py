"Ten plans, each a file, run by real processes: the layout and the memory are the planned ones."

import pytest
import torch

from llama_course.collectives import spawn
from llama_course.command.plan import run_plan
from llama_course.dryrun import prepare_step, record_step, rows_of
from llama_course.files.plan import read_plan, write_plan
from llama_course.model import LlamaConfig
from llama_course.parallel import make_mesh
from llama_course.planner import GPU, Planning, plan

DEEP = LlamaConfig(dim=256, n_layers=6, n_heads=4, vocab_size=1024, hidden_dim=768, max_seq_len=128)
WIDE = LlamaConfig(dim=384, n_layers=4, n_heads=4, n_kv_heads=2, vocab_size=512, max_seq_len=128)
WORDY = LlamaConfig(dim=128, n_layers=5, n_heads=4, vocab_size=8192, hidden_dim=384, max_seq_len=64)
BIASED = LlamaConfig(  # heads of their own width, biases everywhere: what a config.json can ask for
    dim=256,
    n_layers=4,
    n_heads=4,
    n_kv_heads=2,
    head_dim=96,
    vocab_size=512,
    hidden_dim=512,
    attention_bias=True,
    mlp_bias=True,
    max_seq_len=128,
)
TINY = GPU("tiny", 1e12, 1e9, 1e11, 4, 1e10, 1e9)
ASKED = {  # ranks -> plans
    1: [
        Planning(DEEP, 1, TINY, batch=4, seq_len=128, micro_batch=2, checkpointing="none"),
        Planning(WORDY, 1, TINY, batch=4, seq_len=64, micro_batch=4, checkpointing="selective"),
    ],
    2: [
        Planning(DEEP, 2, TINY, batch=8, seq_len=128, tensor=1, checkpointing="selective"),
        Planning(WIDE, 2, TINY, batch=8, seq_len=128, tensor=2, checkpointing="none"),
        Planning(WORDY, 2, TINY, batch=4, seq_len=64, tensor=2, checkpointing="full"),
        Planning(BIASED, 2, TINY, batch=6, seq_len=128, tensor=1, micro_batch=1),
    ],
    4: [
        Planning(DEEP, 4, TINY, batch=8, seq_len=128, tensor=2, checkpointing="selective"),
        Planning(BIASED, 4, TINY, batch=16, seq_len=128, tensor=2, checkpointing="full"),
        Planning(DEEP, 4, TINY, batch=8, seq_len=128, tensor=2, checkpointing="none"),
        Planning(WORDY, 4, TINY, batch=8, seq_len=64, tensor=1, accumulate=2),
    ],
}
NAMES = [(ranks, i) for ranks, asked in ASKED.items() for i in range(len(asked))]


def counted(files):
    "What this rank held at its fullest, and where it stood."
    torch.set_num_threads(1)
    found = []
    for file in files:
        planned = read_plan(file)
        mesh, layout = make_mesh(planned.tensor), planned.layout
        step_of = prepare_step(planned.model, layout, mesh)
        record = record_step(step_of, rows_of(layout, planned.seq_len), mesh)
        moments = record.moments()
        found.append((tuple(mesh.shape), max(sum(m.values()) for m in moments.values())))
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("plans"), {}
    for ranks, asked in ASKED.items():
        files = [folder / f"{ranks}.{i}.json" for i in range(len(asked))]
        for one, file in zip(asked, files):
            write_plan(run_plan(one, plan(one)), file)
        rows = spawn(counted, ranks, files)
        found |= {(ranks, i): (file, [row[i] for row in rows]) for i, file in enumerate(files)}
    return found


@pytest.mark.parametrize("name", NAMES, ids=lambda name: f"{name[0]} ranks, {name[1]}")
def test_what_was_planned_is_what_was_counted(runs, name):
    file, ranks = runs[name]
    planned = read_plan(file)
    gib = sum(size for part, size in planned.expected_memory_gib.items() if part != "under way")
    assert len(ranks) == planned.gpus
    for shape, most in ranks:
        assert shape == (planned.data, planned.tensor)
        assert most == pytest.approx(gib * 2**30, rel=0.1)
