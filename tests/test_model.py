"The model against transformers', its configurations, and its files."

import json
import math
import os
import sys
from dataclasses import replace

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import transformers
from forked import as_program, ran
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from llama_course.model import Llama, LlamaConfig, Parts, hugging_face_settings, to_hugging_face
from llama_course.rope import rotary_table
from llama_course.support import weights as weights_files
from llama_course.support.disk import fingerprint, read_json, write_json
from llama_course.support.errors import UserError

SMALL = LlamaConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=60, hidden_dim=40)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@st.composite
def configs(draw):
    kv, share = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2, 4]))
    head = draw(st.sampled_from([2, 4, 6, 16, 64]))
    return LlamaConfig(
        dim=kv * share * head,
        n_layers=draw(st.integers(1, 4)),
        n_heads=kv * share,
        n_kv_heads=kv,
        vocab_size=draw(st.integers(20, 300)),
        hidden_dim=draw(st.sampled_from([None, 8, 37])),
        norm_eps=draw(st.sampled_from([1e-5, 1e-6, 1e-2])),
        rope_theta=draw(st.sampled_from([100.0, 1e4, 1e6])),
        max_seq_len=draw(st.sampled_from([24, 2048])),
        tie_embeddings=draw(st.booleans()),
    )


def shaken(config, dtype=torch.float32, seed=0):
    "A model whose every weight matters: gains are not all one, and attention is far from uniform."
    torch.manual_seed(seed)
    model = Llama(config).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) / (config.dim**0.5 if p.dim() > 1 else 5))
    return model


def reference_of(model):
    c, dtype = model.config, model.norm.weight.dtype
    reference = transformers.LlamaForCausalLM(transformers.LlamaConfig(**hugging_face_settings(c)))
    if dtype == torch.float64:  # its own norm goes through float32 always
        norm = lambda: nn.RMSNorm(c.dim, eps=c.norm_eps)
        for layer in reference.model.layers:
            layer.input_layernorm, layer.post_attention_layernorm = norm(), norm()
        reference.model.norm = norm()
    weights = to_hugging_face(dict(model.named_parameters()), c)
    found = reference.to(dtype).load_state_dict(weights, strict=False)
    assert not found.unexpected_keys and found.missing_keys == ["lm_head.weight"] * c.tie_embeddings
    return reference


def relative(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    config=configs(),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_logits_and_every_gradient_are_those_of_transformers(config, seed, dtype):
    model = shaken(config, dtype, seed)
    reference = reference_of(model)
    tokens, targets = torch.randint(config.vocab_size, (2, 2, 24))
    ours, theirs = model(tokens), reference(tokens).logits
    assert ours.dtype == dtype and relative(ours, theirs) < TOLERANCE[dtype]
    for logits in (ours, theirs):
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    gradients = to_hugging_face({name: p.grad for name, p in model.named_parameters()}, config)
    others = {name: p.grad for name, p in reference.named_parameters()}
    assert gradients.keys() == others.keys()
    for name in others:
        assert relative(gradients[name], others[name]) < TOLERANCE[dtype], name


def test_the_future_does_not_move_the_past():
    model, tokens = shaken(SMALL, torch.float64), torch.randint(60, (2, 20))
    other = tokens.clone()
    other[:, 12:] = (other[:, 12:] + 1) % 60
    torch.testing.assert_close(model(tokens)[:, :12], model(other)[:, :12], rtol=1e-12, atol=1e-12)
    assert (model(tokens)[:, 12:] - model(other)[:, 12:]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize(
    "name, count",
    [
        ("7B", 6_738_415_616),
        ("13B", 13_015_864_320),
        ("33B", 32_528_943_616),
        ("30B", 32_528_943_616),
        ("65B", 65_285_660_672),
        ("pocket", 8_524_032),
    ],
)
def test_parameter_counts(name, count):
    with torch.device("meta"):
        model = Llama(LlamaConfig.from_name(name))
    assert sum(p.numel() for p in model.parameters()) == count


def test_the_released_settings():
    for name, eps in (("7B", 1e-6), ("13B", 1e-6), ("33B", 1e-6), ("65B", 1e-5)):
        c = LlamaConfig.from_name(name)
        assert (c.norm_eps, c.head_dim, c.vocab_size) == (eps, 128, 32000)
        assert (c.max_seq_len, c.rope_theta) == (2048, 1e4)
        assert c.n_kv_heads == c.n_heads and not c.tie_embeddings


def test_parameters_have_the_names_of_the_release():
    parts = [
        "attention.wq",
        "attention.wk",
        "attention.wv",
        "attention.wo",
        "attention_norm",
        "ffn_norm",
        "feed_forward.w1",
        "feed_forward.w2",
        "feed_forward.w3",
    ]
    names = {f"layers.{i}.{part}.weight" for i in range(2) for part in parts}
    names |= {"tok_embeddings.weight", "norm.weight", "output.weight"}
    assert Llama(SMALL).state_dict().keys() == names


@pytest.mark.parametrize(
    "change",
    [
        dict(n_heads=3),
        dict(n_heads=6, n_kv_heads=4, dim=96),
        dict(dim=20, n_heads=4),
        dict(dim=0),
        dict(dim=-32),
        dict(dim=32.0),
        dict(dim="32"),
        dict(dim=True),
        dict(dim=None),
        dict(n_layers=0),
        dict(vocab_size=None),
        dict(n_kv_heads=0),
        dict(hidden_dim=-1),
        dict(norm_eps=0.0),
        dict(norm_eps=math.nan),
        dict(norm_eps="1e-5"),
        dict(rope_theta=math.inf),
        dict(max_seq_len=0),
        dict(tie_embeddings=1),
        dict(tie_embeddings=None),
    ],
)
def test_impossible_shapes_are_refused_in_one_line(change):
    right = dict(dim=32, n_layers=2, n_heads=4, n_kv_heads=2)
    with pytest.raises(UserError) as error:
        LlamaConfig(**right | change)
    assert "\n" not in str(error.value) and any(name in str(error.value) for name in change)


@pytest.mark.parametrize(
    "name, near",
    [("7b", "7B"), ("60B", "65B"), ("poket", "pocket"), ("gpt-2-xl", None), (7, "7B"), ("", None)],
)
def test_unknown_names(name, near):
    with pytest.raises(UserError) as error:
        LlamaConfig.from_name(name)
    message = str(error.value)
    assert "7B, 13B, 33B, 65B, pocket, demo" in message and "\n" not in message
    assert (f"did you mean {near}?" in message) if near else ("did you mean" not in message)


def test_names_and_changes():
    for name in LlamaConfig.names():
        assert LlamaConfig.from_name(name).dim > 0
    config = LlamaConfig.from_name("demo", vocab_size=300, max_seq_len=99)
    assert (config.vocab_size, config.max_seq_len) == (300, 99)
    with pytest.raises(AttributeError):
        config.dim = 8


def test_a_text_longer_than_the_context_is_refused():
    model = Llama(LlamaConfig(32, 1, 4, vocab_size=60, max_seq_len=16))
    model(torch.zeros(1, 16, dtype=torch.long))
    with pytest.raises(UserError, match="17 tokens .* context of 16"):
        model(torch.zeros(1, 17, dtype=torch.long))


def test_how_a_model_begins():
    config = LlamaConfig(dim=256, n_layers=8, n_heads=4, vocab_size=1000)
    models = []
    for tied in (False, True, True):
        torch.manual_seed(0)
        models.append(Llama(replace(config, tie_embeddings=tied)))
    weights = [dict(model.named_parameters()) for model in models]
    assert all(
        torch.equal(weights[1][name], weights[2][name]) for name in weights[1]
    )  # the seed decides
    deviation = {
        "tok_embeddings.weight": 1,
        "output.weight": 1 / 16,
        "layers.3.attention.wk.weight": 1 / 16,
        "layers.3.attention.wo.weight": 1 / 64,
        "layers.7.feed_forward.w2.weight": 1 / 64,
    }
    for name, std in deviation.items():
        assert math.isclose(weights[0][name].std().item(), std, rel_tol=0.02), name
    tokens, targets = torch.randint(1000, (2, 4, 32))
    for model in models:  # not much worse than knowing nothing
        assert F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten()) < math.log(1000) + 1


def test_the_rotary_table_keeps_float32_and_comes_back_from_meta():
    expected = rotary_table(SMALL.head_dim, SMALL.max_seq_len)
    assert torch.equal(Llama(SMALL).bfloat16().rope.table, expected)
    assert torch.equal(Llama(SMALL).double().rope.table, expected)
    with torch.device("meta"):
        model = Llama(SMALL)
    assert model.rope.table.is_meta
    assert torch.equal(model.to_empty(device="cpu").rope.table, expected)


def test_every_part_can_be_the_learners_own():
    class Norm(nn.LayerNorm):
        pass

    class Silence(nn.Module):
        def __init__(self, *sizes):
            super().__init__()
            self.sizes = sizes

        def forward(self, x, *rest):
            return torch.zeros_like(x)

    model = Llama(SMALL, Parts(norm=Norm, attention=Silence, feed_forward=Silence))
    assert model.layers[0].attention.sizes == (32, 4, 2) and model.layers[0].feed_forward.sizes == (
        32,
        40,
    )
    assert sum(isinstance(m, Norm) for m in model.modules()) == 5
    tokens = torch.randint(60, (1, 8))
    expected = model.output(F.layer_norm(model.tok_embeddings(tokens), (32,)))
    torch.testing.assert_close(model(tokens), expected)


# ---- files


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def run(tmp_path):
    model = shaken(SMALL)
    model.save(tmp_path / "run")
    return model, tmp_path / "run"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_saved_and_loaded_is_the_same(tmp_path, dtype, tied):
    config = replace(SMALL, n_kv_heads=1, norm_eps=1e-3, tie_embeddings=tied)
    model, tokens = shaken(config, dtype), torch.randint(60, (2, 9))
    model.save(tmp_path / "deep" / "run")
    again = Llama.load(tmp_path / "deep" / "run")
    assert again.config == config and again(tokens).dtype == dtype
    assert torch.equal(again(tokens), model(tokens))
    assert [n for n, _ in again.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert not any(t.is_meta for t in [*again.parameters(), *again.buffers()])
    again(tokens).sum().backward()  # it can be trained on
    assert all(p.grad is not None and p.requires_grad for p in again.parameters())
    again.save(tmp_path / "deep" / "run")  # over the file that it was read from
    assert torch.equal(Llama.load(tmp_path / "deep" / "run")(tokens), model(tokens))
    assert names_in(tmp_path / "deep" / "run") == ["config.json", "model.safetensors"]


def test_training_on_a_loaded_model_leaves_its_file_alone(run):
    _, folder = run
    before = fingerprint(folder / "model.safetensors")
    model = Llama.load(folder)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert fingerprint(folder / "model.safetensors") == before


def test_own_parts_are_saved_and_loaded(tmp_path):
    parts = Parts(norm=nn.LayerNorm)
    model, tokens = Llama(SMALL, parts), torch.randint(60, (2, 9))
    model.save(tmp_path)
    assert torch.equal(Llama.load(tmp_path, parts)(tokens), model(tokens))
    with pytest.raises(UserError, match="has a tensor .*bias"):
        Llama.load(tmp_path)


def edit(folder, **change):
    write_json(folder / "config.json", read_json(folder / "config.json") | change)


def rewrite(folder, change):
    "Other tensors, with a checksum that fits: only names and shapes can tell."
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors = {name: t.clone() for name, t in tensors.items()}
    change(tensors)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    edit(folder, sha256=fingerprint(folder / "model.safetensors"))


def retype(folder, tensor):
    rewrite(folder, lambda tensors: tensors.update({"norm.weight": tensor}))


def drop(folder, field):
    settings = read_json(folder / "config.json")
    del settings[field]
    write_json(folder / "config.json", settings)


def garbage(folder):
    (folder / "model.safetensors").write_bytes(b"not a table of tensors")
    edit(folder, sha256=fingerprint(folder / "model.safetensors"))


def cut(folder, n):
    os.truncate(folder / "model.safetensors", n)


def flip(folder, place):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[place] ^= 1
    (folder / "model.safetensors").write_bytes(data)


SPOILED = {
    "no config": (lambda f: (f / "config.json").unlink(), "not a run folder"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "not a run folder"),
    "no JSON": (lambda f: (f / "config.json").write_text('{"dim": 3'), "not readable JSON"),
    "a list": (lambda f: (f / "config.json").write_text("[1]"), "format"),
    "another format": (lambda f: edit(f, format="llama_course 99"), "format"),
    "an unknown field": (lambda f: edit(f, dropout=0.1), "dropout"),
    "a field less, without a default": (lambda f: drop(f, "n_heads"), "n_heads"),
    "no checksum": (lambda f: drop(f, "sha256"), "sha256"),
    "an impossible shape": (lambda f: edit(f, n_heads=5), "n_heads=5"),
    "a field of another type": (lambda f: edit(f, dim="32"), "dim"),
    "a head more": (lambda f: edit(f, n_kv_heads=4), "wk.weight"),
    "another vocabulary": (
        lambda f: edit(f, vocab_size=61),
        r"output\.weight .*\(60, 32\).*\(61, 32\)",
    ),
    "a layer more": (lambda f: edit(f, n_layers=3), r"no tensor layers\.2"),
    "a layer less": (lambda f: edit(f, n_layers=1), r"has a tensor layers\.1"),
    "truncated": (lambda f: cut(f, 5000), "truncated or altered"),
    "empty": (lambda f: cut(f, 0), "truncated or altered"),
    "one bit of the header": (lambda f: flip(f, 20), "truncated or altered"),
    "one bit of the last weight": (lambda f: flip(f, -1), "truncated or altered"),
    "no safetensors": (garbage, "not a safetensors file"),
    "a tensor less": (
        lambda f: rewrite(f, lambda t: t.pop("norm.weight")),
        r"no tensor norm\.weight",
    ),
    "a tensor more": (
        lambda f: rewrite(f, lambda t: t.update(extra=torch.zeros(2))),
        "has a tensor extra",
    ),
    "another shape": (lambda f: retype(f, torch.ones(31)), r"norm\.weight .*\(31,\).*\(32,\)"),
    "whole numbers": (lambda f: retype(f, torch.ones(32).long()), "int64"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_folder_is_refused_in_one_line(run, name):
    _, folder = run
    spoil, words = SPOILED[name]
    spoil(folder)
    with pytest.raises(UserError, match=words) as error:
        Llama.load(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


@pytest.mark.parametrize("path", ["nowhere", "file"])
def test_no_run_folder(tmp_path, path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is not a run folder"):
        Llama.load(tmp_path / path)


def test_nothing_is_unpickled(run, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    _, folder = run
    torch.save({"norm.weight": Trap()}, folder / "model.safetensors")
    edit(folder, sha256=fingerprint(folder / "model.safetensors"))
    with pytest.raises(UserError):
        Llama.load(folder)
    assert not (tmp_path / "sprung").exists()


def test_a_save_that_fails_leaves_the_old_model(run, monkeypatch):
    model, folder = run

    def full(*args):
        raise UserError("cannot write: no space left on device")

    monkeypatch.setattr(weights_files, "write_json", full)
    with pytest.raises(UserError):
        shaken(SMALL, seed=1).save(folder)
    tokens = torch.randint(60, (1, 5))
    assert torch.equal(Llama.load(folder)(tokens), model(tokens))
    assert names_in(folder) == ["config.json", "model.safetensors"]


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="reads the peak of memory from /proc"
)
def test_loading_takes_the_memory_once(tmp_path):
    config = LlamaConfig(dim=1024, n_layers=4, n_heads=8, vocab_size=8000, hidden_dim=2816)
    Llama(config).save(tmp_path / "large")
    Llama(SMALL).save(tmp_path / "small")
    code = """if True:
        import sys, torch
        from llama_course.model import Llama
        def memory(key):
            return next(int(line.split()[1]) for line in open("/proc/self/status") if key in line)
        # what is imported at first use is not counted
        Llama.load(sys.argv[1] + "/small").norm.weight.sum()
        open("/proc/self/clear_refs", "w").write("5")  # the peak begins here
        before = memory("VmRSS")
        model = Llama.load(sys.argv[1] + "/large")
        with torch.no_grad(): sum(p.sum() for p in model.parameters())  # every page is read
        weights = sum(p.nbytes for p in model.parameters())
        print((memory("VmHWM") - before) * 1024 / weights)
    """
    done = ran(as_program, code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert 0.9 < float(done.stdout) < 1.2


def test_what_an_older_file_lacks_has_its_default(run):
    model, folder = run
    for field in ("rope_theta", "tie_embeddings", "max_seq_len"):
        drop(folder, field)
    again = Llama.load(folder)
    assert again.config == replace(
        model.config, rope_theta=1e4, tie_embeddings=False, max_seq_len=2048
    )


def test_config_json_can_be_read_by_a_person(run):
    _, folder = run
    settings = json.loads((folder / "config.json").read_text())
    assert settings["format"] == "llama_course 1" and settings["dim"] == 32
    assert settings["sha256"] == fingerprint(folder / "model.safetensors")
