"""Small real problems on which the predictions of ``svag dissect`` are tested.

scikit-learn's bundled data: dense, convolutional and transformer models, classification and
regression. Nothing is downloaded.
"""

from pathlib import Path

import torch
from sklearn import datasets
from torch import Tensor, nn
from torch.nn import functional

from svag.problems import Data, Problem, Split, r_squared_metric
from svag.problems.quadratic import quadratic_problem


def _shuffled(inputs: Tensor, targets: Tensor, tested: int) -> Data:
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    inputs, targets = inputs[order], targets[order]
    return Data(Split(inputs[tested:], targets[tested:]), Split(inputs[:tested], targets[:tested]))


def _standardised(inputs: Tensor) -> Tensor:
    return (inputs - inputs.mean(0)) / inputs.std(0).clamp_min(1e-6)


def _bundled(name: str) -> tuple[Tensor, Tensor]:
    inputs, targets = getattr(datasets, f"load_{name}")(return_X_y=True)
    return torch.as_tensor(inputs).float(), torch.as_tensor(targets)


def _load_wine(data_dir: Path | None) -> Data:
    inputs, targets = _bundled("wine")
    return _shuffled(_standardised(inputs), targets.long(), 40)


def wine() -> Problem:
    return Problem(
        name="wine",
        description="three vineyards from 13 measurements, two hidden layers",
        model=lambda: nn.Sequential(
            nn.Linear(13, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 3)
        ),
        load=_load_wine,
        batch_size=16,
        steps=200,
        quick_steps=200,
    )


def _load_iris(data_dir: Path | None) -> Data:
    inputs, targets = _bundled("iris")
    return _shuffled(_standardised(inputs), targets.long(), 40)


def iris_linear() -> Problem:
    return Problem(
        name="iris-linear",
        description="softmax regression on four measurements",
        model=lambda: nn.Linear(4, 3),
        load=_load_iris,
        batch_size=10,
        steps=300,
        quick_steps=300,
    )


def _load_digits(data_dir: Path | None) -> Data:
    inputs, targets = _bundled("digits")
    return _shuffled((inputs / 8 - 1), targets.long(), 400)


def digits_dense() -> Problem:
    return Problem(
        name="digits-dense",
        description="handwritten digits, three dense layers with layer normalisation",
        model=lambda: nn.Sequential(
            nn.Linear(64, 128),
            nn.LayerNorm(128),
            nn.GELU(),
            nn.Linear(128, 64),
            nn.LayerNorm(64),
            nn.GELU(),
            nn.Linear(64, 10),
        ),
        load=_load_digits,
        batch_size=64,
        steps=400,
        quick_steps=400,
    )


class _RowsTransformer(nn.Module):
    """A transformer encoder that reads the eight rows of an image as tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(8, 32)
        self.places = nn.Parameter(0.02 * torch.randn(8, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        rows = self.embedding(images.unflatten(1, (8, 8))) + self.places
        return self.head(self.encoder(rows).mean(dim=1))


def digits_transformer() -> Problem:
    return Problem(
        name="digits-transformer",
        description="handwritten digits, two-layer transformer encoder over the rows",
        model=_RowsTransformer,
        load=_load_digits,
        batch_size=64,
        steps=300,
        quick_steps=300,
    )


def _load_images(data_dir: Path | None) -> Data:
    inputs, _ = _bundled("digits")
    images = (inputs / 16).reshape(-1, 1, 8, 8)
    return _shuffled(images, images.clone(), 400)


def digits_autoencoder() -> Problem:
    return Problem(
        name="digits-autoencoder",
        description="convolutional autoencoder of handwritten digits, squared error",
        model=lambda: nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 4, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(4, 16, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1),
        ),
        load=_load_images,
        loss=functional.mse_loss,
        batch_size=64,
        steps=400,
        quick_steps=400,
    )


class _Picture(nn.Module):
    """Colours from coordinates, by random Fourier features and two hidden layers."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("frequencies", 6 * torch.randn(2, 64, generator=generator))
        self.layers = nn.Sequential(
            nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)
        )

    def forward(self, places: Tensor) -> Tensor:
        angles = places @ self.frequencies
        return self.layers(torch.cat((angles.sin(), angles.cos()), dim=-1))


def _load_picture(data_dir: Path | None) -> Data:
    image = torch.as_tensor(datasets.load_sample_image("flower.jpg"))[::4, ::4].float() / 255
    height, width, _ = image.shape
    rows, columns = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    places = torch.stack((rows, columns), dim=-1).reshape(-1, 2)
    return _shuffled(places, image.reshape(-1, 3), 3000)


def picture() -> Problem:
    return Problem(
        name="picture",
        description="a photograph as a function of coordinates, dense regression",
        model=_Picture,
        load=_load_picture,
        loss=functional.mse_loss,
        metric=r_squared_metric(),
        batch_size=256,
        steps=500,
        quick_steps=500,
    )


def _quadratic(number: int) -> Problem:
    """Draw the kind of a quadratic from its number: spectrum, axes, noise, dimension."""
    generator = torch.Generator().manual_seed(number)
    ill, rotated = (bool(x) for x in torch.randint(0, 2, (2,), generator=generator))
    noise = 10 ** float(torch.empty(()).uniform_(-1, 1, generator=generator))
    dimension = int(torch.randint(20, 120, (), generator=generator))
    spectrum = "ill-conditioned" if ill else "well-conditioned"
    return quadratic_problem(
        spectrum, rotated=rotated, noise=round(noise, 3), dimension=dimension, seed=number
    )


QUADRATICS = 20
for _number in range(QUADRATICS):
    globals()[f"quadratic_{_number:02d}"] = lambda number=_number: _quadratic(number)
