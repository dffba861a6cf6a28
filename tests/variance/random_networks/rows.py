"""Rows picked, masked, sorted, gathered, scattered and put back; experts that share the tokens."""

from tests.variance.random_networks.rule import parsed

RULES = parsed("""
clamp by mask: *
  | h = h.masked_fill(h > 1, 0.5)
  | h = torch.where(h > 0, h, h * 0.1)
  | h = h.clamp(min=-0.5)
  | h = h * (h > 0)
  | h = h.clone()
  . h[h < 0] = 0.25
  | h = torch.where(h > 0, h, torch.zeros_like(h))

where with a parameter: * D
  p = weight({D})
  | h = torch.where(h > 0, h, {p})
  | h = torch.where(h > 0, h, {p} * h)
  | h = torch.where((h > 0).any(-1, keepdim=True), h, {p})

masked entries scaled: * D
  p = weight(1)
  | h = h.clone()
  . h[h > 0] = h[h > 0] * {p}
  | h = h.masked_scatter(h > 0, h[h > 0] * {p})
  | m{n} = h > 0
  . h = torch.zeros_like(h).masked_scatter(m{n}, h[m{n}] + {p})

parameter scattered by the same mask: B D
  p = weight(8, {D})
  | h = h.masked_scatter((torch.arange({D}) % 2 == 0).expand_as(h), {p})
  | h = h.masked_scatter((torch.arange({D}) < 1).expand_as(h), {p}.flatten())

parameter scattered by a mask: * D
  p = weight(60, {D})
  | h = h.masked_scatter(h > 0.3, {p})

images scattered into tokens: B T D
  a = nn.Linear({D}, {D})
  | v{n} = {a}(h[:, :1].tanh())
  . m{n} = (torch.arange({T}) == {T} - 1)[None, :, None].expand_as(h)
  . h = h.masked_scatter(m{n}, v{n})
  | v{n} = {a}(h.mean(1))
  . m{n} = torch.zeros_like(h, dtype=torch.bool)
  . m{n}[:, 0] = True
  . h = h.masked_scatter(m{n}, v{n})

tokens picked and put back by mask: BT D | TB D | B D
  a = nn.Linear({D}, {D})
  | m{n} = h[:, 0] > 0
  . o{n} = torch.zeros_like(h)
  . o{n}[m{n}] = {a}(h[m{n}])
  . h = o{n}
  | m{n} = h.sum(1) > 0
  . h = h.clone()
  . h[m{n}] = {a}(h[m{n}])
  | m{n} = h[:, 0] > 0
  . h = h.masked_scatter(m{n}[:, None], {a}(h[m{n}]))
  | m{n} = h[:, -1] < 0
  . h = h.index_put((m{n},), {a}(h[m{n}]), accumulate=True)

tokens of a sequence picked and put back: B T D | T B D
  a = nn.Linear({D}, {D})
  | m{n} = h[..., 0] > 0
  . h = h.clone()
  . h[m{n}] = {a}(h[m{n}])
  | m{n} = h.mean(-1) > 0
  . o{n} = h.new_zeros(h.shape)
  . o{n}[m{n}] = {a}(h[m{n}]).tanh()
  . h = h + o{n}
  | m{n} = h[..., 0] > 0
  . h = h.masked_scatter(m{n}[..., None], {a}(h[m{n}]))

the best step of each example: B T D -> B D
  a = nn.Linear({D}, {D})
  | m{n} = h[..., 0] == h[..., 0].amax(1, keepdim=True)
  . h = {a}(h[m{n}])
  | h = {a}(h[torch.arange(B), h[..., 0].argmax(1)])
  | i{n} = h[..., 0].argmax(1)
  . h = {a}(h.gather(1, i{n}[:, None, None].expand(-1, -1, {D}))[:, 0])
  | i{n} = h[..., 0].argmax(1, keepdim=True)
  . h = {a}(h.take_along_dim(i{n}[..., None], 1).squeeze(1))
  | h = {a}(h.flatten(0, 1)[h[..., 0].argmax(1) + torch.arange(B) * {T}])
  | h = {a}(h.flatten(0, 1).index_select(0, h[..., 0].argmin(1) + torch.arange(B) * {T}))

the best step of each example, time first: T B D -> B D
  a = nn.Linear({D}, {D})
  | h = {a}(h[h[..., 0].argmax(0), torch.arange(B)])
  | i{n} = h[..., 0].argmax(0)
  . h = {a}(h.gather(0, i{n}[None, :, None].expand(-1, -1, {D}))[0])

as many tokens as examples: BT D
  a = nn.Linear({D}, {D})
  | i{n} = h[:, 0].topk(B).indices
  . h = h.index_add(0, i{n}, {a}(h[i{n}]))
  | i{n} = torch.arange(B)
  . h = h.index_add(0, i{n}, {a}(h[i{n}]))
  | h = torch.cat([{a}(h[:B]), h[B:]])
  | i{n} = h[:, 0].argsort()[:B]
  . o{n} = torch.zeros_like(h)
  . o{n}[i{n}] = {a}(h[i{n}])
  . h = o{n} + h.sin()

sorted, fed and put back: BT D | TB D | B D
  a = nn.Linear({D}, {D})
  | o{n} = h[:, 0].argsort()
  . u{n} = {a}(h[o{n}])
  . h = torch.zeros_like(u{n})
  . h[o{n}] = u{n}
  | o{n} = h[:, 0].argsort()
  . h = {a}(h[o{n}])[o{n}.argsort()]
  | o{n} = h.sum(1).argsort()
  . u{n} = {a}(h.index_select(0, o{n}))
  . h = torch.zeros_like(u{n}).index_copy(0, o{n}, u{n})
  | o{n} = h[:, 0].sort().indices
  . u{n} = {a}(h.gather(0, o{n}[:, None].expand_as(h)))
  . h = torch.zeros_like(u{n}).scatter(0, o{n}[:, None].expand_as(u{n}), u{n})

sorted within each example: B T D
  a = nn.Linear({D}, {D})
  | o{n} = h[..., :1].argsort(1).expand_as(h)
  . h = torch.zeros_like(h).scatter(1, o{n}, {a}(h.gather(1, o{n})))
  | h = h.sort(1).values
  | h = h.topk({T}, 1).values
  | h = h.gather(1, h.argsort(1))
  | h = torch.take_along_dim(h, h.argsort(1, descending=True), 1)

sorted entries: * D
  | h = h.sort(-1).values
  | h = h.gather(-1, h.argsort(-1))
  | h = h.topk({D}, -1).values
  | h = h.sort(dim=-1, descending=True)[0]

examples permuted and put back: B D | B T D
  a = nn.Linear({D}, {D})
  | o{n} = torch.arange(B).flip(0)
  . h = {a}(h[o{n}])[o{n}]
  | h = {a}(h.flip(0)).flip(0)
  | h = {a}(h.roll(1, 0)).roll(-1, 0)
  | o{n} = torch.randperm(B, generator=torch.Generator().manual_seed({n}))
  . h = {a}(h.index_select(0, o{n}))[o{n}.argsort()]

examples repeated: B D | B T D
  a = nn.Linear({D}, {D})
  | i{n} = torch.arange(B).repeat(2)
  . u{n} = {a}(h[i{n}] * (1 + torch.arange(2 * B).to(h).view(-1, *[1] * (h.dim() - 1))).sin())
  . h = torch.zeros_like(h).index_add(0, i{n}, u{n})
  | i{n} = torch.arange(2 * B) // 2
  . h = {a}(h[i{n}])[::2] + h
  | h = {a}(h.repeat_interleave(2, 0)).unflatten(0, (B, 2)).sum(1)

nonzero and put back: BT D | TB D | B D
  a = nn.Linear({D}, {D})
  | i{n} = (h[:, 0] > 0).nonzero().squeeze(1)
  . h = h.index_add(0, i{n}, {a}(h[i{n}]))
  | i{n} = torch.nonzero(h[:, 0] > 0, as_tuple=True)[0]
  . h = h.index_copy(0, i{n}, {a}(h.index_select(0, i{n})))
  | (i{n},) = torch.where(h[:, 0] > 0)
  . h = h.clone()
  . h[i{n}] += {a}(h[i{n}])

nonzero of a sequence: B T D
  a = nn.Linear({D}, {D})
  | i{n}, j{n} = (h[..., 0] > 0).nonzero(as_tuple=True)
  . h = h.index_put((i{n}, j{n}), {a}(h[i{n}, j{n}]))
  | k{n} = (h[..., 0] > 0).nonzero()
  . h = h.clone()
  . h[k{n}[:, 0], k{n}[:, 1]] += {a}(h[k{n}[:, 0], k{n}[:, 1]])

tokens picked and summed by example: B T D -> B D
  a = nn.Linear({D}, {D})
  | i{n}, j{n} = (h[..., 0] > 0).nonzero(as_tuple=True)
  . h = h.new_zeros(B, {D}).index_add(0, i{n}, {a}(h[i{n}, j{n}]))
  | m{n} = h[..., 0] > 0
  . i{n} = torch.arange(B)[:, None].expand(B, {T})[m{n}]
  . u{n} = {a}(h[m{n}])
  . h = torch.zeros(B, {D}).to(u{n}).scatter_add(0, i{n}[:, None].expand_as(u{n}), u{n})

experts by index: BT D | TB D | B D
  g = nn.Linear({D}, 2)
  f = nn.ModuleList([nn.Linear({D}, {D}) for _ in range(2)])
  | r{n} = {g}(h).argmax(-1)
  . o{n} = torch.zeros_like(h)
  . for e, f in enumerate({f}):
  .     i = (r{n} == e).nonzero().squeeze(-1)
  .     o{n}.index_add_(0, i, f(h[i]))
  . h = o{n}
  | r{n} = {g}(h).argmax(-1)
  . o{n} = torch.zeros_like(h)
  . for e, f in enumerate({f}):
  .     (i,) = torch.where(r{n} == e)
  .     o{n} = o{n}.index_add(0, i, f(h[i]) * {g}(h[i]).softmax(-1)[:, e, None])
  . h = o{n}
  | r{n} = {g}(h).argmax(-1)
  . o{n} = torch.empty_like(h)
  . for e, f in enumerate({f}):
  .     o{n}[r{n} == e] = f(h[r{n} == e])
  . h = o{n}

experts by mask of choices: BT D | TB D | B D
  g = nn.Linear({D}, 2)
  f = nn.ModuleList([nn.Linear({D}, {D}) for _ in range(2)])
  | w{n}, c{n} = {g}(h).softmax(-1).topk(1)
  . m{n} = F.one_hot(c{n}, 2).permute(2, 1, 0)
  . o{n} = torch.zeros_like(h)
  . for e, f in enumerate({f}):
  .     j, i = torch.where(m{n}[e])
  .     o{n}.index_add_(0, i, f(h[None, i].reshape(-1, {D})) * w{n}[i, j, None])
  . h = o{n}

experts by sorting: BT D | TB D | B D
  g = nn.Linear({D}, 2)
  f = nn.ModuleList([nn.Linear({D}, {D}) for _ in range(2)])
  | r{n} = {g}(h).argmax(-1)
  . i{n} = r{n}.argsort(stable=True)
  . k{n} = torch.bincount(r{n}, minlength=2).tolist()
  . u{n} = torch.cat([f(u) for f, u in zip({f}, h[i{n}].split(k{n}))])
  . h = torch.zeros_like(h).index_copy(0, i{n}, u{n})

experts of a sequence: B T D | T B D
  g = nn.Linear({D}, 2)
  f = nn.ModuleList([nn.Linear({D}, {D}) for _ in range(2)])
  | r{n} = {g}(h).argmax(-1)
  . o{n} = torch.zeros_like(h)
  . for e, f in enumerate({f}):
  .     o{n}[r{n} == e] = f(h[r{n} == e])
  . h = o{n}
  | r{n} = {g}(h).argmax(-1)
  . h = sum(f(h) * (r{n} == e)[..., None] for e, f in enumerate({f}))
  | r{n} = {g}(h).argmax(-1)
  . u{n} = h.reshape(-1, {D})
  . o{n} = torch.zeros_like(u{n})
  . for e, f in enumerate({f}):
  .     i = (r{n}.flatten() == e).nonzero()[:, 0]
  .     o{n}[i] += f(u{n}[i])
  . h = o{n}.view_as(h)

steps picked by index: B T D; T = 3
  | h = h[:, [0, -1, 0]]
  | h = h[:, torch.tensor([{T} - 1, 0, 0])]
  | h = h.index_select(1, torch.tensor([0, {T} - 1, {T} - 1]))
  | h = h.take_along_dim(torch.tensor([0, 0, {T} - 1])[None, :, None], 1)

steps picked by index, time first: T B D; T = 3
  | h = h[[0, -1, 0]]
  | h = h.index_select(0, torch.tensor([0, {T} - 1, {T} - 1]))
  | h = h[torch.tensor([0, 0, {T} - 1])]

as many steps as examples: T B D; T = B
  | h = h[torch.arange(B) % {T}]
  | h = h.index_select(0, torch.arange(B) % {T})

steps picked by mask: B T D; T = T - 1; if T > 1
  | h = h[:, torch.arange({T}) > 0]

steps summed by index: B T D; T = 2
  | h = h.new_zeros(B, 2, {D}).index_add(1, torch.arange({T}) % 2, h)
  | i{n} = (torch.arange({T}) % 2)[None, :, None].expand_as(h)
  . h = h.new_zeros(B, 2, {D}).scatter_add(1, i{n}, h)

scatter within each example: * D
  | h = torch.zeros_like(h).scatter(-1, h.argsort(-1), h)
  | h = torch.zeros_like(h).scatter_add(-1, h.argsort(-1), h.cos())

steps overwritten: B T D
  p = weight({D})
  | h = h.clone()
  . h[:, 0] = {p}
  | h = h.clone()
  . h[:, -1] += {p}
  | h = h.index_fill(1, torch.tensor([0]), 0.5) * {p}
  | h = torch.cat([h[:, :-1], {p}.expand(B, 1, -1)], 1)
  | h = h.clone()
  . h[:, 0].copy_({p})

steps overwritten, time first: T B D
  p = weight({D})
  | h = h.clone()
  . h[0] = {p}
  | h = h.clone()
  . h[-1] = h[-1].clone() * {p}
  | h = h.clone()
  . h[0].add_({p})

table looked up by rank: B T D
  w = weight({T}, {D})
  | h = h + {w}[h[..., 0].argsort(1)]
  | h = h + F.embedding(h[..., 0].argsort(1), {w})
  | h = h + {w}.index_select(0, h[..., 0].argsort(1).flatten()).view_as(h)
  | h = h + {w}.expand(B, -1, -1).gather(1, h.argsort(1))

relative positions: B T D
  w = weight(2 * {T})
  | i{n} = torch.arange({T})
  . h = torch.softmax(h @ h.mT + {w}[i{n}[:, None] - i{n} + {T} - 1], -1) @ h

padding mask: B T D -> B D
  | m{n} = h[..., 0] > -1
  . h = (h * m{n}[..., None]).sum(1) / m{n}.sum(1, keepdim=True).clamp(min=1)
  | m{n} = (h[..., 0] > -1).to(h)
  . h = torch.einsum('bt,btd->bd', m{n}, h) / m{n}.sum(1).clamp(min=1).unsqueeze(1)

two views joined: B D | B T D
  a = nn.Linear({D}, {D})
  | u{n} = {a}(torch.cat([h, h + 0.5], 0)).relu()
  . h = u{n}[:B] - u{n}[B:]
  | u{n} = {a}(torch.stack([h, h * 0.5]).flatten(0, 1)).unflatten(0, (2, B))
  . h = u{n}[0] * u{n}[1]
  | u{n} = {a}(torch.stack([h, h * 0.5], 1).flatten(0, 1)).unflatten(0, (B, 2))
  . h = u{n}.prod(1)
""")
