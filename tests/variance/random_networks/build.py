"""From a seed to a plan of productions, and from a plan to the source of a network."""

import random
from dataclasses import dataclass, field, replace

from tests.variance.random_networks import layers, loops, mixing, rows, views
from tests.variance.random_networks.ends import LOSSES, OPENINGS, Loss, Opening
from tests.variance.random_networks.rule import MIXES, ODD, Rule

RULES = (*views.RULES, *layers.RULES, *rows.RULES, *loops.RULES)
COUPLING = mixing.RULES
_SIZES = (1, 2, 3, 4, 5, 6)


@dataclass(frozen=True)
class Plan:
    """All choices of one network: two plans that are equal give the same source.

    Attributes:
        seed: of sizes, inputs, loss and values.
        steps: the productions, each with the number its own choices come from.
        first: a dense layer comes first.
        head: a dense layer comes last.
    """

    seed: int
    steps: tuple[tuple[Rule, int], ...] = ()
    first: bool = True
    head: bool = True


@dataclass
class Network:
    """A network in source code and what is needed to run it."""

    plan: Plan
    opening: Opening
    loss: Loss
    sizes: dict[str, int]
    axes: tuple[str, ...]
    setup: list[str] = field(default_factory=list)
    body: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    tags: set[str] = field(default_factory=set)
    count: int = 0
    inside: bool = False
    mode: str = "one"
    float32: bool = False
    training: bool = True
    leaf: bool = False
    batches: tuple[int, ...] = ()
    examples: int | None = None

    @property
    def batch_dim(self) -> int:
        """Dimension of the inputs that holds the examples."""
        dims = self.opening.inputs["x"].split(": ")[1].split()
        return dims.index("B")

    @property
    def odd(self) -> bool:
        """Whether nobody expects svag to follow the network."""
        return ODD in self.tags - (self.opening.tags if self.examples is not None else set())

    def source(self) -> str:
        """Return the network and its loss as Python."""
        extra = ", y=None" if self.inside else ""
        ending = [f"if y is None:\n    return h\nout, net = h, self\nreturn {self.loss.whole}"]
        forward = [f"B = x.shape[{self.batch_dim}]", self.opening.code.format(**self.sizes)]
        forward += [*self.body, *(ending if self.inside else ["return h"])]
        return "\n".join(
            [
                "class Net(nn.Module):",
                "    def __init__(self):",
                "        super().__init__()",
                *_indented(self.setup),
                "",
                f"    def forward(self, {', '.join(self.opening.inputs)}{extra}):",
                *_indented(forward),
                "",
                "def rows(t):  # the examples in front",
                f"    return {self._rows()}",
                "",
                "def loss(net, x, y):",
                *_indented([self._loss(self.loss.whole)], 1),
                "",
                "def terms(net, x, y):  # whose sum is the loss",
                *_indented([self._loss(self.loss.terms, plain=True)], 1),
            ]
        )

    def _rows(self) -> str:
        for place, axis in enumerate(self.axes):
            if axis == "B":
                return "t" if place == 0 else f"t.movedim({place}, 0)"
            if axis == "BT":
                return f"t.unflatten({place}, (-1, {self.sizes['T']}))"
        return f"t.unflatten(0, ({self.sizes['T']}, -1)).movedim(1, 0)"

    def _loss(self, code: str, *, plain: bool = False) -> str:
        if self.inside and not plain:
            return "return net(*x, y=y)"
        lines = ["out = net(*x)"]
        if self.loss.calls == 2:
            lines.append("other = net(*[u.flip(-1) for u in x])")
        return "\n".join([*lines, f"return {code}"])

    def apply(self, step: Rule, seed: int) -> bool:
        """Write one production; return whether it could be used."""
        if not step.takes_axes(self.axes) or not eval(step.when, None, dict(self.sizes)):
            return False
        rng = random.Random(seed)
        sizes = self.sizes | {"E": rng.choice(self._pool())}
        after = sizes | {k: eval(v, None, dict(sizes)) for k, v in step.becomes.items()}
        if not 1 <= after["D"] <= 24 or not 1 <= after["T"] <= 12 or after["C"] > 8:
            return False
        self.count += 1
        values = sizes | {"n": self.count, "t": self._place("T"), "channels": self._channels()}
        for letter, code in step.parts.items():
            values[letter] = f"self.{letter}{self.count}"
            self.setup.append(f"self.{letter}{self.count} = {code.format(**values)}")
        self.setup += [line.format(**values) for line in step.setup]
        self.body.append(rng.choice(step.code).format(**values))
        self.axes, self.sizes = step.gives_axes(self.axes), after
        self.names.append(step.name)
        self.tags |= step.tags
        return True

    def _pool(self) -> list[int]:
        batch = self.sizes["B"]
        return [batch, batch, 2 * batch, 2, 3, 4]

    def _place(self, axis: str) -> int:
        return self.axes.index(axis) if axis in self.axes else 0

    def _channels(self) -> int:
        return self.sizes[self.axes[1]] if self.axes[0] == "B" else 0


def draw(seed: int) -> Plan:
    """Draw the plan of a network."""
    rng = random.Random(seed)
    plan = Plan(seed, (), rng.random() < 0.6, rng.random() < 0.85)
    network, length = start(plan), rng.randint(1, 5)
    coupled = rng.randrange(length + 1) if rng.random() < 0.2 else -1
    for place in range(length + 1):
        rules = COUPLING if place == coupled else RULES
        fitting = [r for r in rules if r.takes_axes(network.axes)]
        exact = [r for r in fitting if not r.takes.startswith("*")]
        chosen = rng.choice(exact if exact and rng.random() < 0.6 else fitting or list(RULES))
        step = chosen, rng.randrange(2**30)
        if network.apply(*step):
            plan = replace(plan, steps=(*plan.steps, step))
    return plan


def start(plan: Plan) -> Network:
    """Begin a network: its inputs and sizes."""
    rng = random.Random(plan.seed)
    batch = rng.choice((2, 3, 4, 6))
    pool = [batch, batch, 2 * batch, 2, 3, 4]
    sizes = {name: rng.choice(pool) for name in "TDC"} | {"B": batch, "E": 2}
    sizes |= {"H": rng.choice((2, 3)), "W": rng.choice((2, 3))}
    opening = rng.choice(OPENINGS)
    network = Network(plan, opening, LOSSES[0], sizes, tuple(opening.axes.split()))
    network.setup += [opening.parts.format(**sizes)] if opening.parts else []
    network.tags |= opening.tags
    if plan.first and network.axes[-1] == "D":
        _dense(network, "first_layer", rng.choice(pool))
    return network


def build(plan: Plan) -> Network:
    """Write the network of a plan."""
    network = start(plan)
    for step in plan.steps:
        network.apply(*step)
    rng = random.Random(plan.seed + 1)
    _head(network, rng)
    fitting = [x for x in LOSSES if _takes(x, network)]
    quiet = [x for x in fitting if MIXES not in x.tags]
    network.loss = rng.choice(fitting if rng.random() < 0.15 else quiet)
    network.inside = network.loss.calls == 1 and "rows" not in network.loss.whole
    network.inside = network.inside and rng.random() < 0.1
    network.tags |= network.loss.tags
    network.mode = rng.choice(("one", "one", "two", "two", "accumulate"))
    network.float32, network.training = rng.random() < 0.25, rng.random() < 0.8
    network.leaf = rng.random() < 0.2
    if ODD in network.opening.tags and rng.random() < 0.7:
        network.examples = list(network.opening.inputs).index("x")
    sizes = rng.choice((2, 3, 4, 5)), network.sizes["B"]
    network.batches = (network.sizes["B"], rng.choice(sizes))
    return network


def _takes(loss: Loss, network: Network) -> bool:
    if loss.target == "classes" and network.sizes["D"] < 2:
        return False
    axes = " ".join(network.axes)
    return loss.axes in (axes, "*") or (loss.axes == "*-" and network.axes[0] == "B")


def _head(network: Network, rng: random.Random) -> None:
    """Bring the examples to the front, mostly, and end with a dense layer."""
    ways = {
        ("BT", "D"): "h = h.reshape(B, {T}, {D})",
        ("TB", "D"): "h = h.unflatten(0, ({T}, B))",
        ("B", "C", "H", "W"): "h = h.flatten(1)",
    }
    if network.axes in ways and (rng.random() < 0.7 or network.axes[-1] == "W"):
        network.body.append(ways[network.axes].format(**network.sizes))
        network.axes = {"BT": ("B", "T", "D"), "TB": ("T", "B", "D"), "B": ("B", "D")}[
            network.axes[0]
        ]
        if len(network.axes) == 2:
            s = network.sizes
            network.sizes = s | {"D": s["C"] * s["H"] * s["W"]}
    if network.plan.head or not network.setup:
        _dense(network, "head", rng.choice([2, 3, network.sizes["B"]]))
    if network.axes[0] == "T" and rng.random() < 0.6:
        network.body.append("h = h.transpose(0, 1)")
        network.axes = ("B", "T", "D")


def _dense(network: Network, name: str, width: int) -> None:
    network.setup.append(f"self.{name} = nn.Linear({network.sizes['D']}, {width})")
    network.body.append(f"h = self.{name}(h)")
    network.sizes = network.sizes | {"D": width}


def _indented(code: list[str], depth: int = 2) -> list[str]:
    return ["    " * depth + line for part in code for line in part.split("\n")]
