"""The paper's equations of batch normalisation, against torch's."""

import pytest
import torch
import torch.nn.functional as F

from lit_cnn.models.batch_norm import batch_norm, batch_statistics

every_shape = pytest.mark.parametrize("shape", [(16, 5), (4, 5, 7, 3), (1, 5, 4, 4), (2, 5)])


def draw(*shape: int) -> torch.Tensor:
    """Values far from mean 0 and variance 1, another in each channel."""
    channels = torch.arange(1.0, shape[1] + 1).view(1, -1, *[1] * (len(shape) - 2))
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) * channels / 3 - channels


@every_shape
@pytest.mark.parametrize("epsilon", [1e-5, 1e-2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_torch(shape: tuple[int, ...], epsilon: float, dtype: torch.dtype) -> None:
    maps = draw(*shape).to(dtype)
    gamma, beta = torch.linspace(-1, 2, 5, dtype=dtype), torch.linspace(1, -1, 5, dtype=dtype)
    theirs = F.batch_norm(maps, None, None, gamma, beta, training=True, eps=epsilon)
    torch.testing.assert_close(batch_norm(maps, gamma, beta, epsilon), theirs, rtol=1e-6, atol=1e-6)


@every_shape
def test_gradients_agree_with_torch(shape: tuple[int, ...]) -> None:
    maps, weights = draw(*shape).double().requires_grad_(), draw(*shape).double().sin()
    gamma, beta = torch.full((5,), 1.5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    (ours,) = torch.autograd.grad((batch_norm(maps, gamma, beta) * weights).sum(), maps)
    theirs = F.batch_norm(maps, None, None, gamma, beta, training=True)
    torch.testing.assert_close(ours, *torch.autograd.grad((theirs * weights).sum(), maps), rtol=1e-6, atol=1e-6)


@every_shape
def test_is_the_identity_with_the_standard_deviation_as_gamma_and_the_mean_as_beta(shape: tuple[int, ...]) -> None:
    maps, epsilon = draw(*shape), 1e-2
    mean, variance = batch_statistics(maps)
    torch.testing.assert_close(batch_norm(maps, (variance + epsilon).sqrt(), mean, epsilon), maps, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(batch_norm(maps, variance.sqrt(), mean, epsilon), maps, rtol=1e-6, atol=1e-6)


def test_each_channel_gets_mean_beta_and_standard_deviation_gamma() -> None:
    gamma, beta = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([-1.0, 0.0, 3.0])
    normalized = batch_norm(draw(8, 3, 6, 6), gamma, beta)
    torch.testing.assert_close(normalized.mean((0, 2, 3)), beta, rtol=0, atol=1e-5)
    torch.testing.assert_close(normalized.std((0, 2, 3), correction=0), gamma, rtol=1e-3, atol=0)


def test_the_variance_divides_by_the_number_of_values() -> None:
    mean, variance = batch_statistics(torch.tensor([[0.0, 5.0], [2.0, 5.0]]))
    assert mean.tolist() == [1.0, 5.0]
    assert variance.tolist() == [1.0, 0.0]  # not 2.0, which is over m - 1


def test_a_constant_channel_becomes_beta() -> None:
    normalized = batch_norm(torch.full((4, 1), 7.0), torch.ones(1), torch.tensor([0.25]))
    assert normalized.tolist() == [[0.25]] * 4


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4)])
def test_another_number_of_axes_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"takes \(N, C\) or \(N, C, H, W\), not \("):
        batch_norm(torch.zeros(shape), torch.ones(3), torch.zeros(3))
