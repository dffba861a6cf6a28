"""How networks begin (their inputs) and end (their losses)."""

from dataclasses import dataclass

from tests.variance.random_networks.rule import MIXES, ODD


@dataclass(frozen=True)
class Opening:
    """The inputs of a network.

    Attributes:
        name: in reports.
        axes: the dimensions of ``h`` after ``code``.
        inputs: ``kind: dimensions`` by argument; kinds are ``float``, ``ids`` and ``mask``, and
            an input without B is no example's.
        code: what ``forward`` does first.
        parts: what ``__init__`` makes for it.
        tags: ``ODD`` where svag cannot know which argument holds the examples.
    """

    name: str
    axes: str
    inputs: dict[str, str]
    code: str = "h = x"
    parts: str = ""
    tags: frozenset[str] = frozenset()


_EMBED = "self.embed = nn.Embedding(7, {D})"

OPENINGS = (
    Opening("rows", "B D", {"x": "float: B D"}),
    Opening("rows", "B D", {"x": "float: B D"}),
    Opening("sequences", "B T D", {"x": "float: B T D"}),
    Opening("sequences", "B T D", {"x": "float: B T D"}),
    Opening("sequences, time first", "T B D", {"x": "float: T B D"}),
    Opening("tokens", "B T D", {"x": "ids: B T"}, "h = self.embed(x)", _EMBED),
    Opening("tokens", "B T D", {"x": "ids: B T"}, "h = F.embedding(x, self.embed.weight)", _EMBED),
    Opening("tokens, time first", "T B D", {"x": "ids: T B"}, "h = self.embed(x)", _EMBED),
    Opening("images", "B C H W", {"x": "float: B C H W"}),
    Opening(
        "sequences and rows",
        "B T D",
        {"x": "float: B T D", "z": "float: B D"},
        "h = self.first(x) + self.second(z)[:, None]",
        "self.first = nn.Linear({D}, {D})\nself.second = nn.Linear({D}, {D})",
    ),
    Opening(
        "rows and tokens",
        "B T D",
        {"z": "float: B D", "x": "ids: B T"},
        "h = torch.cat([z[:, None], self.embed(x)[:, 1:]], 1)",
        _EMBED,
    ),
    Opening(
        "sequences and a mask",
        "B T D",
        {"x": "float: B T D", "m": "mask: B T"},
        "h = x.masked_fill(~m[..., None], 0)",
    ),
    Opening(
        "sequences and a mask of keys",
        "B T D",
        {"x": "float: B T D", "m": "mask: B T"},
        "h = torch.softmax((self.first(x) @ x.mT).masked_fill(~m[:, None], -1e9), -1) @ x",
        "self.first = nn.Linear({D}, {D})",
    ),
    Opening(
        "two views",
        "B D",
        {"x": "float: B D", "z": "float: B D"},
        "u, v = self.first(torch.cat([x, z])).tanh().chunk(2)\nh = u * v",
        "self.first = nn.Linear({D}, {D})",
    ),
    Opening(
        "positions",
        "B T D",
        {"x": "ids: B T", "i": "steps: T"},
        "h = self.embed(x) + self.places(i)",
        _EMBED + "\nself.places = nn.Embedding({T}, {D})",
        frozenset({ODD}),
    ),
    Opening(
        "table first",
        "B T D",
        {"i": "float: T D", "x": "float: B T D"},
        "h = x + self.first(i)",
        "self.first = nn.Linear({D}, {D})",
        frozenset({ODD}),
    ),
)


@dataclass(frozen=True)
class Loss:
    """The loss, as users write it and as a sum of one term an example.

    Attributes:
        name: in reports.
        axes: of ``out`` that it takes, or ``*``; ``*-`` where examples must come first.
        whole: a scalar from ``out`` and ``y``.
        terms: one entry an example; ``rows(t)`` brings a tensor's examples to the front.
        target: what ``y`` is: ``like`` (as out), ``classes`` (one an example or token) or
            ``weights`` (one an example).
        calls: how often the model is called.
        tags: ``MIXES`` where terms depend on other examples.
    """

    name: str
    axes: str
    whole: str
    terms: str
    target: str = "like"
    calls: int = 1
    tags: frozenset[str] = frozenset()


_MIXES = frozenset({MIXES})
_PER = "rows(out).square().flatten(1).sum(1)"
_TOKENS = "F.cross_entropy(out.flatten(0, 1), y.flatten(), ignore_index=0{0})"

LOSSES = (
    Loss(
        "mean square",
        "*",
        "F.mse_loss(out, y)",
        "rows((out - y).square()).flatten(1).sum(1) / out.numel()",
    ),
    Loss("sum of squares", "*", "out.square().sum()", _PER),
    Loss(
        "mean of sines", "*", "out.sin().mean()", "rows(out.sin()).flatten(1).sum(1) / out.numel()"
    ),
    Loss(
        "smooth",
        "*",
        "F.smooth_l1_loss(out, y, reduction='sum')",
        "rows(F.smooth_l1_loss(out, y, reduction='none')).flatten(1).sum(1)",
    ),
    Loss(
        "cross entropy",
        "B D",
        "F.cross_entropy(out, y)",
        "F.cross_entropy(out, y, reduction='none') / len(y)",
        "classes",
    ),
    Loss(
        "cross entropy",
        "B D",
        "-out.log_softmax(-1)[torch.arange(len(y)), y].mean()",
        "F.cross_entropy(out, y, reduction='none') / len(y)",
        "classes",
    ),
    Loss(
        "cross entropy of tokens",
        "B T D",
        _TOKENS.format(""),
        "rows(" + _TOKENS.format(", reduction='none'") + ".view(y.shape)).sum(1) / (y != 0).sum()",
        "classes",
    ),
    Loss(
        "cross entropy of tokens",
        "T B D",
        _TOKENS.format(""),
        "rows(" + _TOKENS.format(", reduction='none'") + ".view(y.shape)).sum(1) / (y != 0).sum()",
        "classes",
    ),
    Loss("weighted", "*", "(y * " + _PER + ").sum()", "y * " + _PER, "weights"),
    Loss(
        "loop over examples",
        "*-",
        "sum((u - v).square().mean() for u, v in zip(out, y)) / len(out)",
        "(out - y).square().flatten(1).mean(1) / len(out)",
    ),
    Loss(
        "penalty",
        "*",
        "F.mse_loss(out, y) + 0.1 * sum(p.square().sum() for p in net.parameters())",
        "rows((out - y).square()).flatten(1).sum(1) / out.numel()",
    ),
    Loss(
        "siamese",
        "*",
        "F.mse_loss(out, other)",
        "rows((out - other).square()).flatten(1).sum(1) / out.numel()",
        calls=2,
    ),
    Loss(
        "triplet",
        "B D",
        "F.triplet_margin_loss(out, other, y)",
        "F.triplet_margin_loss(out, other, y, reduction='none') / len(out)",
        calls=2,
    ),
    Loss(
        "contrastive",
        "B D",
        "F.cross_entropy(out @ out.T, torch.arange(len(out)))",
        "F.cross_entropy(out @ out.T, torch.arange(len(out)), reduction='none') / len(out)",
        tags=_MIXES,
    ),
    Loss(
        "contrast of two calls",
        "B D",
        "F.cross_entropy(out @ other.T, torch.arange(len(out)))",
        "F.cross_entropy(out @ other.T, torch.arange(len(out)), reduction='none') / len(out)",
        calls=2,
        tags=_MIXES,
    ),
    Loss(
        "variance of the batch",
        "*-",
        "out.var(0).sum()",
        "(out - out.mean(0)).square().flatten(1).sum(1) / (len(out) - 1)",
        tags=_MIXES,
    ),
    Loss(
        "hardest example",
        "*",
        _PER + ".max()",
        _PER + " * F.one_hot(" + _PER + ".argmax(), out.numel())[: len(rows(out))]",
        tags=_MIXES,
    ),
    Loss(
        "normalised by the batch",
        "*",
        "(out / out.detach().std()).square().sum()",
        "rows(out / out.detach().std()).square().flatten(1).sum(1)",
        tags=_MIXES,
    ),
    Loss(
        "soft maximum of examples",
        "*",
        _PER + ".logsumexp(0)",
        _PER + " * " + _PER + ".detach().softmax(0)",
        tags=_MIXES,
    ),
)
