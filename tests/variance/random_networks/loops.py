"""Loops over steps and over examples, buffers filled in them, recurrences and checkpoints."""

from tests.variance.random_networks.rule import parsed

RULES = parsed("""
recurrent layer: B T D; D = E
  a = nn.GRU({D}, {E}, batch_first=True)
  p = weight({E})
  | h = {a}(h)[0]
  | h, _ = {a}(h, h.new_zeros(1, B, {E}))
  | h = {a}(h, {p}.expand(1, B, -1).contiguous())[0]

long short-term memory: B T D; D = E
  a = nn.LSTM({D}, {E}, batch_first=True)
  | h = {a}(h)[0]
  | h = {a}(h, (h.new_zeros(1, B, {E}), h.new_zeros(1, B, {E})))[0]
  | h = {a}(h.contiguous())[0].tanh()

recurrent layer, time first: T B D; D = E
  a = nn.RNN({D}, {E})
  | h = {a}(h)[0]
  | h, s{n} = {a}(h)
  . h = h + s{n}

long short-term memory, time first: T B D; D = E
  a = nn.LSTM({D}, {E})
  | h = {a}(h)[0]
  | h, (s{n}, c{n}) = {a}(h)
  . h = h * c{n}

last states of two layers: B T D; T = 2, D = E
  a = nn.GRU({D}, {E}, 2, batch_first=True)
  | h = {a}(h)[1].transpose(0, 1)
  | h = torch.stack(list({a}(h)[1]), 1)

last states of as many layers as examples: T B D; T = 2, D = E
  a = nn.GRU({D}, {E}, 2)
  | h = {a}(h)[1]

both directions: B T D; D = 2 * E
  a = nn.GRU({D}, {E}, batch_first=True, bidirectional=True)
  | h = {a}(h)[0]
  | h = {a}(h)[0] + {a}(h)[1].permute(1, 0, 2).flatten(1)[:, None]

packed sequences: B T D; D = E
  a = nn.GRU({D}, {E}, batch_first=True)
  | l{n} = torch.arange(B).remainder({T}) + 1
  . s{n} = nn.utils.rnn.pack_padded_sequence(h, l{n}, batch_first=True, enforce_sorted=False)
  . h = nn.utils.rnn.pad_packed_sequence({a}(s{n})[0], batch_first=True, total_length={T})[0]

cell in a loop: B T D; D = E
  a = nn.GRUCell({D}, {E})
  | s{n} = h.new_zeros(B, {E})
  . o{n} = []
  . for k in range({T}):
  .     s{n} = {a}(h[:, k], s{n})
  .     o{n}.append(s{n})
  . h = torch.stack(o{n}, 1)
  | s{n} = torch.zeros(B, {E}).to(h)
  . o{n} = h.new_zeros(B, {T}, {E})
  . for k in range({T}):
  .     s{n} = {a}(h[:, k], s{n})
  .     o{n}[:, k] = s{n}
  . h = o{n}
  | s{n} = None
  . o{n} = []
  . for u in h.unbind(1):
  .     s{n} = {a}(u, s{n})
  .     o{n}.append(s{n})
  . h = torch.stack(o{n}, dim=1)

time-major buffer: B T D -> T B D; D = E
  a = nn.RNNCell({D}, {E})
  | s{n} = h.new_zeros(B, {E})
  . o{n} = h.new_zeros({T}, B, {E})
  . for k in range({T}):
  .     s{n} = {a}(h[:, k], s{n})
  .     o{n}[k] = s{n}
  . h = o{n}
  | o{n} = torch.zeros({T}, B, {E}, dtype=h.dtype)
  . s{n} = torch.zeros(B, {E}, dtype=h.dtype)
  . for k in range({T}):
  .     s{n} = {a}(h[:, k], s{n})
  .     o{n}[k].copy_(s{n})
  . h = o{n}
  | o{n} = h.new_empty({T}, B, {E})
  . s{n} = h.new_zeros(B, {E})
  . for k, u in enumerate(h.transpose(0, 1)):
  .     o{n}[k, :] = s{n} = {a}(u, s{n})
  . h = o{n}

memory cell in a loop: T B D; D = E
  a = nn.LSTMCell({D}, {E})
  | s{n} = c{n} = h.new_zeros(B, {E})
  . o{n} = []
  . for u in h:
  .     s{n}, c{n} = {a}(u, (s{n}, c{n}))
  .     o{n}.append(s{n})
  . h = torch.stack(o{n})
  | s{n} = c{n} = h.new_zeros(B, {E})
  . o{n} = h.new_zeros({T}, B, {E})
  . for k in range({T}):
  .     s{n}, c{n} = {a}(h[k], (s{n}, c{n}))
  .     o{n}[k] = s{n}
  . h = o{n}

recurrence by hand: B T D -> T B D; D = E
  w = weight({D}, {E})
  u = weight({E}, {E})
  p = weight({E})
  | s{n} = h.new_zeros(B, {E})
  . o{n} = h.new_zeros({T}, B, {E})
  . for k in range({T}):
  .     s{n} = torch.tanh(h[:, k] @ {w} + s{n} @ {u} + {p})
  .     o{n}[k] = s{n}
  . h = o{n}

learned first state: B T D -> B D
  p = weight({D})
  w = weight({D}, {D})
  | s{n} = {p}.expand(B, -1)
  . for k in range({T}):
  .     s{n} = torch.tanh(h[:, k] + s{n} @ {w})
  . h = s{n}
  | s{n} = {p}.repeat(B, 1)
  . for u in h.unbind(1):
  .     s{n} = torch.tanh(u + s{n} @ {w})
  . h = s{n}

linear scan: B T D
  p = weight({D})
  | s{n} = torch.zeros_like(h[:, 0])
  . o{n} = torch.zeros_like(h)
  . for k in range({T}):
  .     s{n} = {p}.sigmoid() * s{n} + h[:, k]
  .     o{n}[:, k] = s{n}
  . h = o{n}
  | s{n} = 0
  . o{n} = []
  . for u in h.unbind(1):
  .     s{n} = {p}.sigmoid() * s{n} + u
  .     o{n}.append(s{n})
  . h = torch.stack(o{n}, 1)

layer in a loop over steps: B T D; D = E
  a = nn.Linear({D}, {E})
  | h = torch.stack([{a}(h[:, k]) for k in range({T})], 1)
  | h = torch.stack([{a}(u) for u in h.unbind(1)])
  . h = h.movedim(0, 1)
  | o{n} = h.new_zeros({T}, B, {E})
  . for k in range({T}):
  .     o{n}[k] = {a}(h[:, k])
  . h = o{n}.transpose(0, 1)

layer of its own at each step: B T D; D = E
  a = nn.ModuleList([nn.Linear({D}, {E}) for _ in range({T})])
  | h = torch.stack([f(h[:, k]) for k, f in enumerate({a})], 1)

loop over examples: B D | B T D; D = E
  a = nn.Linear({D}, {E})
  | h = torch.stack([{a}(h[k]) for k in range(B)])
  | h = torch.stack([{a}(u) for u in h])
  | h = torch.cat([{a}(h[k : k + 1]) for k in range(B)])
  | h = torch.cat([{a}(u) for u in h.split(1)])
  | h = torch.stack(list(map({a}, h.unbind(0))))
  | h = torch.cat([{a}(u[None]) for u in h])

buffer filled by example: B D | B T D
  a = nn.Linear({D}, {D})
  | o{n} = torch.zeros_like(h)
  . for k in range(B):
  .     o{n}[k] = {a}(h[k])
  . h = o{n}
  | o{n} = torch.empty_like(h)
  . for k, u in enumerate(h):
  .     o{n}[k].copy_({a}(u).tanh())
  . h = o{n}

recurrence over each example alone: B T D; D = E
  a = nn.GRU({D}, {E})
  | h = torch.stack([{a}(u)[0] for u in h])
  | h = torch.cat([{a}(u[:, None])[0].transpose(0, 1) for u in h])

ragged loop over examples: B T D -> B D; D = E
  a = nn.Linear({D}, {E})
  | h = torch.stack([{a}(h[k, : 1 + k % {T}]).sum(0) for k in range(B)])
  | h = torch.stack([{a}(u[u[:, 0] > 0]).sum(0) for u in h])

checkpoint: * D; D = E
  a = nn.Linear({D}, {E})
  | h = checkpoint({a}, h, use_reentrant=False)
  | h = checkpoint(lambda u: {a}(u).tanh(), h, use_reentrant=False)
  | h = checkpoint(lambda u, v: {a}(u) * v.sum(-1, keepdim=True), h, h.sin(), use_reentrant=False)

checkpoint of a block: * D
  a = nn.Sequential(nn.Linear({D}, {E}), nn.GELU(), nn.Linear({E}, {D}))
  | h = checkpoint({a}, h, use_reentrant=False)
  | h = h + checkpoint({a}, h, use_reentrant=False)
  | h = checkpoint({a}, h, use_reentrant=False, preserve_rng_state=False)
  | h = checkpoint(lambda u: checkpoint({a}, u, use_reentrant=False), h, use_reentrant=False)

checkpoint of tables: * D
  w = weight({D}, {E})
  p = weight({D})
  | h = checkpoint(lambda u: (u @ {w}).sin() @ {w}.T * {p}, h, use_reentrant=False)
  | h = checkpoint(lambda u, w: u @ w, h, {w} @ {w}.T, use_reentrant=False) * {p}

checkpointed recurrence: B T D; D = E
  a = nn.GRU({D}, {E}, batch_first=True)
  | h = checkpoint(lambda u: {a}(u)[0], h, use_reentrant=False)

checkpointed mixing of width and time: B T D
  a = nn.Linear({T}, {T})
  | h = checkpoint(lambda u: {a}(u.mT).mT, h, use_reentrant=False)
  | h = checkpoint(lambda u: {a}(u.permute(0, 2, 1)).permute(0, 2, 1), h, use_reentrant=False)

checkpointed convolution: B C H W
  a = nn.Conv2d({C}, {C}, 3, padding=1)
  | h = checkpoint({a}, h, use_reentrant=False)

checkpoint without its input's gradient: * D
  a = nn.Linear({D}, {D})
  | h = h + checkpoint({a}, h.detach(), use_reentrant=False)

checkpointed loop: B T D
  a = nn.Linear({D}, {D})
  | h = torch.stack([checkpoint({a}, h[:, k], use_reentrant=False) for k in range({T})], 1)

sequential checkpoint: * D
  a = nn.Sequential(nn.Linear({D}, {E}), nn.Tanh(), nn.Linear({E}, {D}))
  | h = checkpoint_sequential({a}, 2, h, use_reentrant=False)

dropout at rest: *
  | h = F.dropout(h, 0.5, training=False)
  | h = nn.Dropout(0.5).eval()(h)

dropout: *
  | h = F.dropout(h, 0.5)
  | h = nn.Dropout(0.25)(h)
  | h = h * (torch.rand_like(h) > 0.3)
  | h = h + 0.1 * torch.randn_like(h)

elementwise: *
  | h = h.tanh()
  | h = h.relu()
  | h = F.gelu(h)
  | h = h * h.sigmoid()
  | h = h.sin() + h
  | h = F.softplus(h)
  | h = F.silu(h)
  | h = h.abs().sqrt().clamp(min=0.1)
  | h = torch.logaddexp(h, h.cos())
  | h = h / (1 + h.abs())
  | h = h.clone().tanh_()
  | h = h.square() * 0.3

over the width: * D
  | h = h.softmax(-1)
  | h = h.log_softmax(-1)
  | h = F.normalize(h, dim=-1)
  | h = h - h.mean(-1, keepdim=True)
  | h = h.cumsum(-1)
  | h = h / (h.norm(dim=-1, keepdim=True) + 0.1)
  | h = h * h.amax(-1, keepdim=True)

over the steps: B T D
  | h = h.softmax(1)
  | h = h - h.mean(1, keepdim=True)
  | h = h * h.sum(1, keepdim=True).sigmoid()
  | h = h + h.amax(1, keepdim=True)
  | h = F.layer_norm(h, h.shape[1:])

detached: *
  | h = h + h.detach().sin()
  | with torch.no_grad():
  .     s{n} = h.abs() + 0.5
  . h = h / s{n}

counter of calls: *
  self.register_buffer('calls{n}', torch.zeros(()))
  | self.calls{n} += 1
  . h = h * 1.0

running statistic: * D
  self.register_buffer('seen{n}', torch.zeros({D}))
  | self.seen{n}.lerp_(h.detach().flatten(0, -2).mean(0), 0.1)
""")
