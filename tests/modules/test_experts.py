"""Experts with a gate for each label are what the paper writes, and split by side."""

import torch

from torchrec_adrec.modules.experts import MultiGateExperts

B, U, A, EXPERTS, HIDDEN, LABELS = 5, 4, 3, 2, 6, 3


def test_each_label_reads_its_own_mixture() -> None:
    torch.manual_seed(0)
    layer = MultiGateExperts((U, A), EXPERTS, HIDDEN, LABELS, dropout=0.0)
    user, ad = torch.randn(1, U), torch.randn(B, A)
    logits = layer(user, ad)
    torch.testing.assert_close(logits, layer(user.expand(B, -1), ad))
    hidden = layer.experts(user, ad).relu().chunk(EXPERTS, dim=1)
    gates = layer.gates(user, ad).chunk(LABELS, dim=1)
    for t in range(LABELS):
        shares = gates[t].softmax(dim=1)
        mixed = sum(shares[:, [k]] * hidden[k] for k in range(EXPERTS))
        expected = mixed @ layer.out.weight[t] + layer.out.bias[t]
        torch.testing.assert_close(logits[:, t], expected)
