"""What couples examples, in plain sight or by a mistake in the order of dimensions."""

from tests.variance.random_networks.rule import MIXES, parsed

RULES = parsed(
    """
softmax over examples: B D | B T D
  | h = h.softmax(0)
  | h = h.log_softmax(0)
  | h = F.normalize(h, dim=0)

mean of examples: B D | B T D
  | h = h - h.mean(0)
  | h = h - h.mean(0, keepdim=True)
  | h = h * h.mean(0).sigmoid()
  | h = h + h.amax(0)
  | h = (h - h.mean(0)) / (h.std(0) + 1)

mean of examples, time first: T B D
  | h = h - h.mean(1, keepdim=True)
  | h = h.softmax(1)
  | h = h - h.mean((0, 1))

statistics of examples, detached: B D | B T D
  | h = h - h.detach().mean(0)
  | h = h / (h.detach().std(0) + 1)
  | h = h * float(h.detach().sum())

mean of all tokens: BT D | TB D
  | h = h - h.mean(0)
  | h = h * h.sigmoid().mean()
  | h = h / (h.norm() + 1)

graph of examples: B D | B T D
  | h = torch.einsum('ij,j...->i...', torch.ones(B, B).tril().to(h) / B, h)
  | h = torch.tensordot(torch.ones(B, B).triu().to(h) / B, h, 1)

graph product: B D
  a = nn.Linear({D}, {D})
  | h = torch.ones(B, B).tril().to(h) / B @ h
  | h = {a}(torch.eye(B).roll(1, 0).to(h) @ h + h)
  | h = torch.softmax(h @ h.T, -1) @ h
  | h = h + torch.cdist(h, h).sum(1, keepdim=True)
  | h = torch.einsum('bd,cd->bc', h, h) @ h

sparse graph product: B D
  a = nn.Linear({D}, {D})
  | h = h.index_add(0, torch.arange(B).roll(1), {a}(h))
  | h = h + {a}(h)[torch.arange(B).roll(1)]
  | h = h + {a}(h).scatter(0, torch.zeros(1, {D}, dtype=torch.long), 0.0).sum(0)

neighbours: B D | B T D
  | h = h + h.roll(1, 0)
  | h = h + h.flip(0)
  | h = h.cumsum(0)
  | h = torch.cat([h[:1], h[1:] + h[:-1]])
  | h = 0.7 * h + 0.3 * h[torch.arange(B).flip(0)]
  | h = h.clone()
  . h[0] = h.sum(0)

examples reordered: B D | B T D
  | h = h.flip(0)
  | h = h.roll(1, 0)
  | h = h[torch.arange(B).flip(0)]
  | h = torch.cat([h[1:], h[:1]])

sorted over examples: B D | B T D
  | h = h.sort(0).values
  | h = h.gather(0, h.argsort(0))
  | h = torch.take_along_dim(h, h.argsort(0), 0)
  | h = h.cummax(0).values

wrong order of view: B T D
  a = nn.Linear({D}, {D})
  g = nn.GRU({D}, {D})
  | h = {a}(h.reshape({T}, B, {D})).reshape(B, {T}, {D})
  | h = {g}(h.reshape({T}, B, {D}))[0].reshape(B, {T}, {D})
  | h = {g}(h.contiguous().view({T}, B, {D}))[0].transpose(0, 1)
  | h = h.transpose(0, 1).reshape(B, {T}, {D})

wrong order of view, time first: T B D
  g = nn.GRU({D}, {D}, batch_first=True)
  c = nn.Conv1d({D}, {D}, 3, padding=1)
  self.unused{n} = 0
  | h = {g}(h.reshape(B, {T}, {D}))[0].reshape({T}, B, {D})
  | h = h.transpose(0, 1).reshape({T}, B, {D})
  | h = {c}(h.mT).mT

attention over examples: B T D
  a = nn.MultiheadAttention({D}, 1)
  | h = h + {a}(h, h, h, need_weights=False)[0]

encoder layer over examples: B T D
  a = nn.TransformerEncoderLayer({D}, 1, 4, dropout=0.0)
  | h = {a}(h)

encoder layer over one sequence of examples: B D
  a = nn.TransformerEncoderLayer({D}, 1, 4, dropout=0.0, batch_first=True)
  | h = {a}(h)
  | h = {a}(h[None])[0]

recurrence over examples: B T D
  a = nn.GRU({D}, {D})
  | h = {a}(h)[0]

recurrence over one sequence of examples: B D
  a = nn.GRU({D}, {D})
  | h = {a}(h)[0]
  | h = {a}(h[:, None])[0][:, 0]

convolution over examples: B D
  a = nn.Conv1d({D}, {D}, 3, padding=1)
  | h = {a}(h.T).T
  | h = {a}(h.T[None])[0].T

layer norm over examples: B D | B T D
  | h = F.layer_norm(h, h.shape)
  | h = F.layer_norm(h.movedim(0, -1), (B,)).movedim(-1, 0)

batch normalisation: B D
  a = nn.BatchNorm1d({D})
  | h = {a}(h)
  | h = F.batch_norm(h, None, None, training=True)

batch normalisation of images: B C H W
  a = nn.BatchNorm2d({C})
  | h = {a}(h)
  | h = h - h.mean((0, 2, 3), keepdim=True)

mixup: B D | B T D
  | h = 0.6 * h + 0.4 * h[torch.randperm(B)]
  | h = torch.lerp(h, h.flip(0), 0.3)

count over examples: B D | BT D
  | h = h / (h > 0).sum()
  | h = h * (h[:, 0] > 0).to(h).mean()
  | h = torch.where(h.sum() > 0, h, h * 0.5)
  | h = h if h.detach().sum() > 0 else h * 0.5

tokens chosen over the batch: BT D
  a = nn.Linear({D}, {D})
  | i{n} = h[:, 0].topk(B).indices
  . h = h.index_add(0, i{n}, {a}(h[i{n}]) * B)
  | h = h * (h[:, :1] > h[:, :1].median())

gate from another example: B D
  a = nn.Linear({D}, {D})
  | h = h * {a}(h).flip(0).sigmoid()
  | h = h * {a}(h[:1]).sigmoid()
  | h = h + {a}(h.mean(0))

layer over examples by count: B D
  w = weight(8, 8)
  | h = F.linear(h.T, {w}[:B, :B]).T
  | h = {w}[:B, :B] @ h
  | h = torch.einsum('ij,jd->id', {w}[:B, :B], h)

layer over examples of a sequence: T B D
  w = weight(8, 8)
  | h = {w}[:B, :B] @ h
  | h = F.linear(h.mT, {w}[:B, :B]).mT

width mixed with examples: BT D
  a = nn.Linear({D}, {D})
  | h = h.T.reshape(-1, {D})
  | h = {a}(h.T.reshape(h.shape)).T.reshape(h.shape)

table by example's number: B D
  w = weight(8, {D})
  | h = h + {w}[:B]
  | h = h * {w}[torch.arange(B)]

table by example's number of a sequence: B T D
  w = weight(8, {D})
  | h = h + {w}[:B][:, None]
  | h = h + F.embedding(torch.arange(B), {w})[:, None]
""",
    MIXES,
)
