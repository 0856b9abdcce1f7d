"""The split layer is one linear layer over the features of both sides."""

import torch
import torch.nn.functional as F

from torchrec_adrec.modules.split_linear import SplitLinear

B, U, A, D = 5, 3, 2, 4


def test_it_is_a_linear_layer_over_the_concatenation() -> None:
    torch.manual_seed(0)
    layer = SplitLinear(U, A, D)
    user, ad = torch.randn(B, U), torch.randn(B, A)
    weight = torch.cat([layer.user.weight, layer.ad.weight], dim=1)
    expected = F.linear(torch.cat([user, ad], dim=1), weight, layer.user.bias)
    torch.testing.assert_close(layer(user, ad), expected)
    repeated = layer(user[:1].expand(B, -1), ad)
    torch.testing.assert_close(layer(user[:1], ad), repeated)
