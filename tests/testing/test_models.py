"""The shared models are what they claim to be."""

from __future__ import annotations

import pytest
import torch

from wolong_fx.testing.models import (
    CellStack,
    DecodeStep,
    GateGRUStack,
    GateLSTM,
    LiGRU,
    MergedGateLSTM,
    PeepholeLSTM,
    TowerRecommender,
    TreeLSTM,
    balanced_tree,
    random_tree,
    same_as_nn_gru,
    same_as_nn_lstm,
)
from wolong_fx.testing.oracle import error_against_float64


def test_gate_lstm_computes_what_nn_lstm_computes_from_the_same_weights():
    torch.manual_seed(0)
    model = GateLSTM(hidden=24, steps=7, inputs=10)
    x_TBI = model.example_input(batch=3)
    out, (h, c) = model(x_TBI)
    expected, (h_n, c_n) = same_as_nn_lstm(model)(x_TBI)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(h, h_n[0])
    torch.testing.assert_close(c, c_n[0])


def test_merged_gates_compute_what_single_gates_compute_with_an_eighth_of_the_matmuls():
    torch.manual_seed(0)
    model = GateLSTM(hidden=6, steps=4, inputs=5)
    merged, x_TBI = MergedGateLSTM(model), model.example_input(batch=3)
    torch.testing.assert_close(merged(x_TBI), model(x_TBI))
    with torch.profiler.profile() as profile:
        merged(x_TBI)
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["aten::mm"] + counts["aten::addmm"] == 1 + 4


def test_gate_lstm_carries_the_state_it_is_given():
    torch.manual_seed(0)
    model = GateLSTM(hidden=8, steps=6)
    x_TBI = model.example_input(batch=2)
    whole, _ = model(x_TBI)
    first, state = model(x_TBI[:2])
    second, _ = model(x_TBI[2:], *state)
    torch.testing.assert_close(torch.cat([first, second]), whole)


def test_gate_lstm_does_eight_matmuls_a_step_over_80_steps():
    from torch.fx.experimental.proxy_tensor import make_fx

    model = GateLSTM(hidden=4, steps=80).requires_grad_(False)
    calls = [n for n in make_fx(model)(model.example_input()).graph.nodes if n.op == "call_function"]
    matmuls = [n for n in calls if n.target in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)]
    assert len(matmuls) == 8 * 80
    assert 1_600 < len(calls) < 2_000


def test_gate_gru_stack_computes_what_nn_gru_computes_from_the_same_weights():
    torch.manual_seed(0)
    model = GateGRUStack(hidden=12, steps=5, layers=3, inputs=7)
    x_TBI = model.example_input(batch=3)
    torch.testing.assert_close(model(x_TBI), same_as_nn_gru(model)(x_TBI))


def test_a_peephole_lstm_without_peepholes_is_an_lstm():
    torch.manual_seed(0)
    peephole, plain = PeepholeLSTM(hidden=8, steps=5), GateLSTM(hidden=8, steps=5)
    plain.load_state_dict({k: v for k, v in peephole.state_dict().items() if not k.startswith("p.")})
    x_TBI = plain.example_input(batch=2)
    with torch.no_grad():
        assert not torch.allclose(peephole(x_TBI)[0], plain(x_TBI)[0])
        for vector in peephole.p:
            vector.zero_()
        torch.testing.assert_close(peephole(x_TBI), plain(x_TBI))


def test_a_ligru_step_mixes_the_old_state_with_a_rectified_new_one():
    torch.manual_seed(0)
    model = LiGRU(hidden=6, steps=2)
    x_TBI = model.example_input(batch=3)
    states_TBH, last_BH = model(x_TBI)
    first_BH = states_TBH[0]
    inner = [x_TBI[1] @ W + first_BH @ U + b for W, U, b in zip(model.W, model.U, model.b, strict=True)]
    keep, new = inner[0].sigmoid(), inner[1].clamp(min=0)
    torch.testing.assert_close(last_BH, keep * first_BH + (1 - keep) * new)
    assert torch.equal(last_BH, states_TBH[-1])


def test_a_tree_lstm_of_a_chain_joins_from_the_leaves_up():
    torch.manual_seed(0)
    model = TreeLSTM(hidden=6, tree=((0, 1), 2))
    (words_NBI,) = model.example_inputs(batch=2)
    leaves = [model._leaf(word) for word in words_NBI]
    torch.testing.assert_close(model(words_NBI), model._join(model._join(leaves[0], leaves[1]), leaves[2]))


@pytest.mark.parametrize("tree", [balanced_tree(13), random_tree(13, seed=3)])
def test_a_tree_has_every_leaf_once_and_in_order(tree):
    def leaves(tree):
        return [tree] if isinstance(tree, int) else [leaf for part in tree for leaf in leaves(part)]

    assert leaves(tree) == list(range(13))


def test_a_balanced_tree_of_32_leaves_has_5_levels():
    def depth(tree):
        return 0 if isinstance(tree, int) else 1 + max(map(depth, tree))

    assert depth(balanced_tree(32)) == 5
    assert depth(random_tree(32)) > 5


def test_a_recommender_compares_every_pair_of_its_features_once():
    torch.manual_seed(0)
    model = TowerRecommender(rows=(5, 3, 9), dense=4, embed=8)
    dense_BD, indices_BF = model.example_inputs(batch=6)
    assert all(indices_BF[:, i].max() < rows for i, rows in enumerate(model.rows))
    features = [model.bottom(dense_BD), *(t(indices_BF[:, i]) for i, t in enumerate(model.towers))]
    pairs = [(a * b).sum(1) for i, a in enumerate(features) for b in features[i + 1 :]]
    expected = model.top(torch.cat([features[0], torch.stack(pairs, dim=1)], dim=1))
    torch.testing.assert_close(model(dense_BD, indices_BF), expected)


def test_decoding_token_by_token_is_decoding_at_once_under_a_causal_mask():
    torch.manual_seed(0)
    model = DecodeStep(16, layers=2, heads=4, positions=6, vocabulary=11, batch=2).eval()
    tokens_PB = torch.randint(11, (6, 2))
    with torch.no_grad():
        scores = [model(token_B, torch.tensor([at])) for at, token_B in enumerate(tokens_PB)]
        changed = tokens_PB.clone()
        changed[3:] = (changed[3:] + 1) % 11
        again = [model(token_B, torch.tensor([at])) for at, token_B in enumerate(changed)]
    assert torch.equal(torch.stack(scores[:3]), torch.stack(again[:3]))
    assert not torch.allclose(scores[4], again[4])
    torch.testing.assert_close(scores[5], _last_scores_at_once(model, tokens_PB))


@torch.no_grad()
def _last_scores_at_once(model, tokens_PB):
    x_PBD = model.tokens(tokens_PB) + model.places.weight[:, None]
    for layer in model.layers:
        normal = layer.attention_norm(x_PBD)
        split = [f(normal).unflatten(-1, (layer.heads, -1)) for f in (layer.query, layer.key, layer.value)]
        q, k, v = (part.permute(1, 2, 0, 3) for part in split)
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_PBD = x_PBD + layer.project(mixed.permute(2, 0, 1, 3).flatten(2))
        x_PBD = x_PBD + layer.down(torch.nn.functional.gelu(layer.up(layer.feed_norm(x_PBD))))
    return model.head(model.norm(x_PBD[-1]))


def test_a_cell_gives_a_sum_of_two_operations_for_each_pair_of_its_genotype():
    model = CellStack(cells=1, channels=4, genotype=((("skip", 0), ("skip", 1)), (("skip", 2), ("skip", 2))))
    (images,) = model.eval().example_inputs(batch=2)
    stem, (cell,) = model.stem(images), model.cells
    first, second = (block(stem) for block in cell.squeeze)
    torch.testing.assert_close(cell(stem, stem), torch.cat([first + second, 2 * (first + second)], dim=1))


MODELS = {
    "GateLSTM": lambda: GateLSTM(8, 3),
    "PeepholeLSTM": lambda: PeepholeLSTM(8, 3),
    "LiGRU": lambda: LiGRU(8, 3),
    "GateGRUStack": lambda: GateGRUStack(8, 3),
    "TreeLSTM": lambda: TreeLSTM(8, balanced_tree(5)),
    "TowerRecommender": lambda: TowerRecommender((5, 3)),
    "DecodeStep": lambda: DecodeStep(16, layers=1, heads=2, positions=5, vocabulary=9),
    "CellStack": lambda: CellStack(2, channels=4),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_same_seed_gives_the_same_example_and_float32_is_near_float64(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    inputs, again, other = (model.example_inputs(seed=seed) for seed in (1, 1, 2))
    assert all(map(torch.equal, inputs, again))
    assert not all(map(torch.equal, inputs, other))
    assert 0 < error_against_float64(model, model, inputs) < 1e-5


def test_the_error_against_float64_is_the_largest_over_all_results():
    model = torch.nn.Identity()
    x = torch.ones(3)
    assert error_against_float64(lambda x: x + torch.tensor([0.0, 0.25, -0.5]), model, (x,)) == 0.5
