"""The networks of the paper's test problems P1 to P4, initialised as DeepOBS does in TensorFlow.

References:
    L. Balles, P. Hennig, "Dissecting Adam", ICML 2018, section 6.
    F. Schneider, L. Balles, P. Hennig, "DeepOBS", ICLR 2019.
    S. Zagoruyko, N. Komodakis, "Wide Residual Networks", BMVC 2016.
"""

import math
from typing import cast

from torch import Tensor, nn
from torch.nn import functional, init

from svag.errors import InvalidOption


def max_pool() -> nn.MaxPool2d:
    """Pool 3x3 with stride 2 and TensorFlow's SAME padding, for even heights and widths.

    An even size is padded with -inf by one row at the bottom and one column at the right, which
    is what ``ceil_mode`` does without copying the input.
    """
    return nn.MaxPool2d(3, stride=2, ceil_mode=True)


def conv_2c2d() -> nn.Sequential:
    """Build P1's network: two convolutions, two dense layers; 3,274,634 parameters.

    Weights are normal with standard deviation 0.05 cut at twice that, biases 0.05. Takes
    ``(B, 1, 28, 28)``, returns logits ``(B, 10)``.
    """
    model = nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        max_pool(),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        max_pool(),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 1024),
        nn.ReLU(),
        nn.Linear(1024, 10),
    )
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            init.trunc_normal_(layer.weight, std=0.05, a=-0.1, b=0.1)
            init.constant_(cast(Tensor, layer.bias), 0.05)
    return model


def conv_3c3d(classes: int = 10) -> nn.Sequential:
    """Build P2's network: three convolutions, three dense layers; 895,210 parameters.

    Convolutions are Xavier-normal, dense layers Xavier-uniform, biases 0. Takes
    ``(B, 3, 32, 32)``, returns logits ``(B, classes)``.
    """
    model = nn.Sequential(
        nn.Conv2d(3, 64, 5),
        nn.ReLU(),
        max_pool(),
        nn.Conv2d(64, 96, 3),
        nn.ReLU(),
        max_pool(),
        nn.Conv2d(96, 128, 3, padding=1),
        nn.ReLU(),
        max_pool(),
        nn.Flatten(),
        nn.Linear(128 * 3 * 3, 512),
        nn.ReLU(),
        nn.Linear(512, 256),
        nn.ReLU(),
        nn.Linear(256, classes),
    )
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            xavier = init.xavier_normal_ if isinstance(layer, nn.Conv2d) else init.xavier_uniform_
            xavier(layer.weight)
            init.zeros_(cast(Tensor, layer.bias))
    return model


class ResidualBlock(nn.Module):
    """Pre-activation block ``x + conv(relu(bn(conv(relu(bn(x))))))`` with two 3x3 convolutions.

    If the number of channels changes, a 1x1 convolution of ``relu(bn(x))`` replaces ``x``.
    """

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in, momentum=0.1)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels, momentum=0.1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut = (
            nn.Conv2d(channels_in, channels, 1, stride, bias=False)
            if channels_in != channels
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, channels_in, H, W)`` to ``(B, channels, H / stride, W / stride)``."""
        activated = functional.relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(activated)
        hidden = functional.relu(self.bn2(self.conv1(activated)))
        return cast(Tensor, skip + self.conv2(hidden))


def wide_resnet(depth: int = 40, widen: int = 4, classes: int = 100) -> nn.Sequential:
    """Build P3's wide residual network, WRN-40-4 without dropout; 8,972,340 parameters.

    Convolutions (no bias) and the dense layer (bias 0) are Xavier-uniform. Strided convolutions
    pad both sides, as in the original paper; TensorFlow pads right and bottom only. Takes
    ``(B, 3, 32, 32)``, returns logits ``(B, classes)``.

    Args:
        depth: number of layers with weights, 4 more than a multiple of 6.
        widen: factor on the 16, 32 and 64 channels of the three groups.
        classes: number of logits.

    Raises:
        InvalidOption: ``depth`` is not 4 more than a multiple of 6.
    """
    if depth < 10 or (depth - 4) % 6:
        raise InvalidOption(f"depth={depth}: give 10, 16, 22, 28, 34, 40 or 6 more and so on")
    blocks: list[nn.Module] = []
    channels_in = 16
    for channels, stride in ((16 * widen, 1), (32 * widen, 2), (64 * widen, 2)):
        for position in range((depth - 4) // 6):
            blocks.append(ResidualBlock(channels_in, channels, stride if position == 0 else 1))
            channels_in = channels
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        *blocks,
        nn.BatchNorm2d(channels_in, momentum=0.1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels_in, classes),
    )
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            init.xavier_uniform_(layer.weight)
        if isinstance(layer, nn.Linear):
            init.zeros_(layer.bias)
    return model


class CharLSTM(nn.Module):
    """P4's network: embedding, LSTM layers, dense layer; 285,266 parameters for 82 characters.

    Weights are Glorot-uniform; both weights of an LSTM layer are drawn as one matrix
    ``(input + hidden, 4 hidden)``, as in TensorFlow. Biases are 0, those of the forget gates sum to
    1. In training, inputs and outputs of every layer have dropout, so that between two layers a
    value is dropped with probability ``1 - (1 - dropout)^2``. With ``carry`` a call starts from the
    final state of the last call, as in DeepOBS, otherwise from zero. The state is in
    ``carried_state``; the lab detaches it after every step and sets it to None at the start of
    every epoch.

    Args:
        vocabulary: number of characters, indices 0 to ``vocabulary - 1``.
        embedding: size of a character's vector.
        hidden: size of each layer's state.
        layers: number of LSTM layers.
        dropout: probability of dropout, as above.
        carry: whether the state is carried from call to call.
    """

    def __init__(
        self,
        vocabulary: int,
        embedding: int = 128,
        hidden: int = 128,
        layers: int = 2,
        dropout: float = 0.2,
        *,
        carry: bool = False,
    ) -> None:
        super().__init__()
        self.carry = carry
        self.carried_state: tuple[Tensor, Tensor] | None = None
        between = 1 - (1 - dropout) ** 2 if layers > 1 else 0.0
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.LSTM(embedding, hidden, layers, batch_first=True, dropout=between)
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(hidden, vocabulary)
        init.xavier_uniform_(self.embedding.weight)
        init.xavier_uniform_(self.dense.weight)
        init.zeros_(self.dense.bias)
        self._init_lstm()

    def _init_lstm(self) -> None:
        hidden = self.lstm.hidden_size
        for name, parameter in self.lstm.named_parameters():
            if name.startswith("weight"):
                first = name.endswith("_l0")
                inputs = self.lstm.input_size if first else hidden
                bound = math.sqrt(6 / (inputs + hidden + 4 * hidden))
                init.uniform_(parameter, -bound, bound)
            else:
                init.zeros_(parameter)
                if name.startswith("bias_ih"):  # torch adds bias_hh to it; gates i, f, g, o
                    init.ones_(parameter.data[hidden : 2 * hidden])

    def forward(self, characters: Tensor) -> Tensor:
        """Map indices ``(B, T)`` to logits of the next characters ``(B, T, vocabulary)``."""
        states, last = self.lstm(self.dropout(self.embedding(characters)), self.carried_state)
        if self.carry:
            self.carried_state = last
        return cast(Tensor, self.dense(self.dropout(states)))
