"The loss of logits that are sharded by vocabulary: equal to the whole one, and never whole."

import pytest
import torch
import torch.nn.functional as F
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import loss_parallel

from llama_course.collectives import spawn
from llama_course.model import Llama, LlamaConfig
from llama_course.parallel import make_mesh, parallelize
from llama_course.support.ledger import Counter
from llama_course.training import loss_of

CONFIG = LlamaConfig(dim=64, n_layers=2, n_heads=4, vocab_size=512, hidden_dim=96, max_seq_len=32)
TEXT = torch.randint(512, (3, 33), generator=torch.Generator().manual_seed(1))


def whole(t):
    return (t.full_tensor() if hasattr(t, "full_tensor") else t).detach().clone()


def loss_and_gradients(spread):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = spread(Llama(CONFIG))
    model.output.weight.data.mul_(30)  # logits of size, so that the maximum matters
    with Counter() as count:
        loss = loss_of(model, TEXT)
        loss.backward()
    gathered = count.collectives.get("all_gather", (0, 0))[1]
    return whole(loss), {name: whole(p.grad) for name, p in model.named_parameters()}, gathered


ARRANGED = {
    "sharded": {"sequence": True},
    "sharded, no sequence": {"sequence": False},
    "whole": {"sequence": True, "whole_logits": True},
}


def on_ranks():
    mesh = make_mesh(2)
    spread = {
        name: lambda m, how=how: parallelize(m, mesh, **how) for name, how in ARRANGED.items()
    }
    return {name: loss_and_gradients(how) for name, how in spread.items()} | {"at": extremes(mesh)}


@pytest.fixture(scope="module")
def ranks():
    return spawn(on_ranks, 2)


@pytest.fixture(scope="module")
def alone():
    return loss_and_gradients(lambda model: model)  # PyTorch's loss of whole logits


@pytest.mark.parametrize("name", ARRANGED)
def test_loss_and_gradient_are_those_of_whole_logits(alone, ranks, name):
    for rank in ranks:
        loss, gradients, _ = rank[name]
        torch.testing.assert_close(loss, alone[0], rtol=1e-5, atol=0)
        for of, gradient in gradients.items():
            scale = alone[1][of].abs().max().item()
            torch.testing.assert_close(gradient, alone[1][of], rtol=1e-4, atol=1e-5 * scale)


def test_sharded_logits_are_never_gathered(ranks):
    gathered = {name: ranks[0][name][2] for name in ARRANGED}
    logits = 4 * TEXT[:, 1:].numel() * 512  # bytes
    assert gathered["whole"] - gathered["sharded"] == logits


def test_the_loss_at_its_extremes(ranks):
    "Logits of 1e4 on one rank and -1e4 on the other; the target on either."
    for rank in ranks:
        for sharded, expected in rank["at"]:
            torch.testing.assert_close(sharded, expected, rtol=1e-6, atol=0)


def extremes(grid):
    mesh, found = grid["tensor"], []
    logits = torch.cat((torch.full((4, 8), 1e4), torch.full((4, 8), -1e4)), 1)
    logits[2, 3] += 1
    for target in (torch.tensor([0, 7, 3, 1]), torch.tensor([8, 15, 9, 0])):
        shard = DTensor.from_local(logits.chunk(2, 1)[mesh.get_local_rank()], mesh, [Shard(1)])
        with loss_parallel():
            sharded = F.cross_entropy(shard, target).full_tensor()
        found.append((sharded, F.cross_entropy(logits, target)))
    return found
