"""Layers with parameters, products with tables, embeddings, normalisations and attention."""

from tests.variance.random_networks.rule import parsed

RULES = parsed("""
dense: * D; D = E
  a = nn.Linear({D}, {E})
  | h = {a}(h)

dense without bias: * D; D = E
  a = nn.Linear({D}, {E})
  | h = F.linear(h, {a}.weight)

perceptron: * D
  a = nn.Linear({D}, {E})
  b = nn.Linear({E}, {D})
  | h = h + {b}(F.gelu({a}(h)))

table product: * D; D = E
  w = weight({D}, {E})
  | h = h @ {w}
  | h = torch.matmul(h, {w})
  | h = torch.einsum('...d,de->...e', h, {w})
  | h = torch.tensordot(h, {w}, 1)

einsum of a sequence: B T D; D = E
  w = weight({D}, {E})
  | h = torch.einsum('btd,de->bte', h, {w})
  | h = torch.einsum('btd,de->bte', (h, {w}))

einsum of heads: B T D; D = 2 * E
  w = weight(2, {D}, {E})
  | h = torch.einsum('btd,hdc->bthc', h, {w}).flatten(2)
  | h = torch.einsum('...d,hdc->...hc', h, {w}).flatten(-2)

steps mixed by a table: B T D
  w = weight({T}, {T})
  | h = {w} @ h
  | h = torch.einsum('st,btd->bsd', {w}, h)
  | h = torch.matmul({w}, h)
  | h = torch.bmm({w}.expand(B, -1, -1), h)

steps mixed by a table, time first: T B D
  w = weight({T}, {T})
  | h = torch.einsum('st,tbd->sbd', {w}, h)
  | h = torch.tensordot({w}, h, 1)

addmm: B D | BT D; D = E
  w = weight({D}, {E})
  p = weight({E})
  | h = torch.addmm({p}, h, {w})
  | h = {p}.addmm(h, {w})

baddbmm: B T D; D = E
  w = weight({D}, {E})
  p = weight({E})
  | h = torch.baddbmm({p}.expand(B, {T}, {E}), h, {w}.expand(B, -1, -1))

bilinear: B D | B T D; D = E
  a = nn.Bilinear({D}, {D}, {E})
  | h = {a}(h, h.tanh())

scale: * D
  p = weight({D})
  | h = h * {p}
  | h = {p} * h
  | h = torch.mul(h, {p})
  | h = h.mul({p}.sigmoid())

shift: * D
  p = weight({D})
  | h = h + {p}
  | h = h - {p}.exp()
  | h = torch.addcmul(h, {p}, {p})
  | h = h.clone()
  . h += {p}
  | h = h.clone().add_({p})

temperature: *
  p = weight(1)
  | h = h * {p}
  | h = h / {p}.exp()
  | h = torch.lerp(h, h.tanh(), {p}.sigmoid())

scalar parameter: *
  p = weight()
  | h = h * {p}
  | h = {p} + h

prelu: B D | B T D
  p = weight(1)
  | h = F.prelu(h, {p})

position table: B T D
  p = weight({T}, {D})
  | h = h + {p}
  | h = h + {p}.unsqueeze(0)
  | h = h + {p}[None]
  | h = h + {p}[: h.shape[1]]
  | h = torch.add(h, {p})

position table cast: B T D
  p = weight({T}, {D})
  | h = h + {p}.to(h)
  | h = h + {p}.type_as(h)
  | h = h + (h.new_zeros({T}, {D}) + {p})
  | h = h + (torch.zeros_like({p}) + {p})
  | h = h + (torch.zeros_like(h[0]) + {p})
  | h = h + {p}.to(h.device, h.dtype)

position layer: B T D
  a = nn.Linear(1, {D})
  | h = h + {a}(torch.arange({T}).to(h)[:, None])
  | h = h + {a}(torch.arange({T}, dtype=h.dtype).unsqueeze(1))
  | h = h + {a}(torch.linspace(0, 1, {T}).type_as(h)[:, None])
  | h = h + {a}(h.new_ones({T}, 1))
  | h = h + {a}(torch.ones_like(h[0, :, :1]))

position layer, time first: T B D
  a = nn.Linear(1, {D})
  | h = h + {a}(torch.arange({T}).to(h)[:, None])[:, None]
  | h = h + {a}(h.new_ones({T}, 1)).unsqueeze(1)
  | h = h + {a}(torch.zeros_like(h[:, 0, :1]))[:, None]

position embedding: B T D
  a = nn.Embedding({T}, {D})
  | h = h + {a}(torch.arange({T}))
  | h = h + {a}(torch.arange(h.shape[1], device=h.device))[None]
  | h = h + {a}(torch.arange({T}).expand(B, -1))
  | h = h + {a}.weight

position buffer: B T D
  a = nn.Linear(1, {D})
  self.register_buffer('steps{n}', torch.arange({T}))
  | h = h + {a}(self.steps{n}.to(h)[:, None])

class token: B T D; T = T + 1
  p = weight(1, 1, {D})
  | h = torch.cat([{p}.expand(B, -1, -1), h], 1)
  | h = torch.cat([{p}.repeat(B, 1, 1), h], 1)

two parameters first: B T D
  w = weight({D}, {E})
  u = weight({E}, {D})
  | h = h @ ({w} @ {u})
  | h = h @ {w} @ {u}

tied weights: * D
  w = weight({E}, {D})
  | h = F.linear(F.linear(h, {w}).tanh(), {w}.t())
  | h = (h @ {w}.T).sin() @ {w}

tied embedding: B T D; D = 5
  a = nn.Embedding(5, {D})
  | ids{n} = (h.detach().abs() * 7).long().remainder(5)
  . h = h + {a}(ids{n}[..., 0])
  . h = h @ {a}.weight.T

embedding of values: * D
  a = nn.Embedding(5, {D})
  | ids{n} = (h.detach().abs() * 7).long().remainder(5)
  . h = h + {a}(ids{n}).sum(-2)
  | ids{n} = (h.detach().abs() * 7).long().remainder(5)
  . h = h + F.embedding(ids{n}[..., 0], {a}.weight)
  | ids{n} = (h.detach().abs() * 7).long().remainder(5)
  . h = h + {a}.weight[ids{n}[..., 0]]
  | ids{n} = (h.detach().abs() * 7).long().remainder(5)
  . h = h + F.one_hot(ids{n}[..., 0], 5).to(h) @ {a}.weight

embedding bag: B D
  a = nn.EmbeddingBag(5, {D})
  | ids{n} = (h.detach().abs() * 7).long().remainder(5)
  . h = h + {a}(ids{n})
  | ids{n} = (h.detach().abs() * 7).long().remainder(5)
  . h = h + {a}(ids{n}.flatten(), torch.arange(B) * {D})

weighted bag: B D
  a = nn.EmbeddingBag(5, {D}, mode='sum')
  | ids{n} = (h.detach().abs() * 7).long().remainder(5)
  . h = h + {a}(ids{n}, per_sample_weights=h)

weight norm: * D; D = E
  a = parametrizations.weight_norm(nn.Linear({D}, {E}))
  | h = {a}(h)

spectral norm: * D; D = E
  a = parametrizations.spectral_norm(nn.Linear({D}, {E}))
  | h = {a}(h)

computed weight: * D; D = E
  a = nn.Linear({D}, {E})
  | h = F.linear(h, {a}.weight.softmax(-1), {a}.bias)
  | h = F.linear(h, F.normalize({a}.weight, dim=1))
  | h = h @ {a}.weight.tril().T

layer norm: * D; if D > 1
  a = nn.LayerNorm({D})
  | h = {a}(h)
  | h = F.layer_norm(h, ({D},), {a}.weight)

rms norm: * D
  a = nn.RMSNorm({D}, eps=1e-5)
  | h = {a}(h)

rms norm by hand: * D
  p = weight({D})
  | h = h * (h.square().mean(-1, keepdim=True) + 1e-3).rsqrt() * {p}

layer norm of steps and width: B T D
  a = nn.LayerNorm(({T}, {D}))
  | h = {a}(h)

group norm: B D | B T D | B C H W; if D > 1 and T > 1
  a = nn.GroupNorm(1, {channels})
  | h = {a}(h)

instance norm: B T D; if D > 1
  a = nn.InstanceNorm1d({T}, affine=True)
  | h = {a}(h)

instance norm of an image: B C H W
  a = nn.InstanceNorm2d({C}, affine=True)
  | h = {a}(h)

batch norm in eval mode: B D
  a = nn.BatchNorm1d({D})
  | h = {a}.eval()(h)

convolution along time: B T D; D = E
  a = nn.Conv1d({D}, {E}, 3, padding=1)
  | h = {a}(h.mT).mT
  | h = F.conv1d(h.transpose(1, 2), {a}.weight, padding=1).transpose(1, 2)

depthwise convolution: B T D
  a = nn.Conv1d({D}, {D}, 3, padding=1, groups={D})
  | h = {a}(h.mT).mT

steps as channels: B T D
  a = nn.Conv1d({T}, {T}, 1)
  | h = {a}(h)

transposed convolution along time: B T D; T = 2 * T, D = E; if T <= 4
  a = nn.ConvTranspose1d({D}, {E}, 2, stride=2)
  | h = {a}(h.mT).mT

convolution of one example's rows: B D; D = 2 * D; if D <= 8
  a = nn.Conv1d(1, 2, 3, padding=1)
  | h = {a}(h[:, None]).flatten(1)

convolution: B C H W; C = E
  a = nn.Conv2d({C}, {E}, 3, padding=1)
  | h = {a}(h)

grouped convolution: B C H W; C = 2 * C; if C % 2 == 0
  a = nn.Conv2d({C}, 2 * {C}, 3, padding=1, groups=2)
  | h = {a}(h)

transposed convolution: B C H W; C = E
  a = nn.ConvTranspose2d({C}, {E}, 3, padding=1)
  | h = {a}(h)

pooling: B C H W
  | h = F.max_pool2d(h, 3, 1, 1)
  | h = F.avg_pool2d(h, 3, 1, 1)
  | h = F.interpolate(h, scale_factor=1.0)
  | h = F.local_response_norm(h, 2)

global pooling: B C H W -> B D; D = C
  | h = F.adaptive_avg_pool2d(h, 1).flatten(1)
  | h = h.mean((2, 3))
  | h = h.amax((-1, -2))

patches: B C H W -> B T D; T = (H - 1) * (W - 1), D = E; if H > 1 and W > 1
  w = weight({C} * 4, {E})
  | h = F.unfold(h, 2).transpose(1, 2) @ {w}

channel scale: B C H W
  p = weight({C})
  | h = h * {p}[:, None, None]
  | h = h * {p}.view(1, -1, 1, 1)
  | h = h + {p}.reshape({C}, 1, 1).expand_as(h)

squeeze and excite: B C H W
  a = nn.Linear({C}, {C})
  | h = h * {a}(h.mean((2, 3)))[:, :, None, None].sigmoid()
  | h = h * {a}(h.flatten(2).mean(-1)).sigmoid().view(B, {C}, 1, 1)

attention by hand: B T D
  a = nn.Linear({D}, {D})
  b = nn.Linear({D}, {D})
  | h = h + torch.softmax({a}(h) @ {b}(h).transpose(1, 2), -1) @ h
  | h = h + torch.bmm(torch.softmax(torch.bmm({a}(h), {b}(h).mT), -1), h)
  | s{n} = torch.einsum('bsd,btd->bst', {a}(h), {b}(h)).softmax(-1)
  . h = h + torch.einsum('bst,btd->bsd', s{n}, h)

causal attention: B T D
  a = nn.Linear({D}, {D})
  | s{n} = {a}(h) @ h.mT
  . s{n} = s{n}.masked_fill(torch.ones({T}, {T}, dtype=torch.bool).triu(1), -1e9)
  . h = s{n}.softmax(-1) @ h
  | h = F.scaled_dot_product_attention({a}(h), h, h, is_causal=True)
  | h = F.scaled_dot_product_attention({a}(h), h, h, attn_mask=torch.ones({T}, {T}).tril().bool())

attention of heads: B T D; D = 2 * E
  a = nn.Linear({D}, 6 * {E})
  | q{n}, k{n}, v{n} = {a}(h).view(B, {T}, 3, 2, {E}).permute(2, 0, 3, 1, 4)
  . h = F.scaled_dot_product_attention(q{n}, k{n}, v{n}).transpose(1, 2).reshape(B, {T}, -1)

attention with a position bias: B T D
  p = weight({T}, {T})
  | h = torch.softmax(h @ h.mT + {p}, -1) @ h
  | h = F.scaled_dot_product_attention(h, h, h, attn_mask={p})

learned query: B T D -> B D
  p = weight({D})
  a = nn.Linear({D}, 1)
  | h = (torch.softmax(h @ {p}, 1)[..., None] * h).sum(1)
  | h = ({a}(h).softmax(1) * h).sum(1)

learned queries: B T D; T = 2
  p = weight(2, {D})
  | h = torch.softmax({p} @ h.mT, -1) @ h
  | h = torch.einsum('qd,btd->bqt', {p}, h).softmax(-1) @ h

multi-head attention: B T D
  a = nn.MultiheadAttention({D}, 1, batch_first=True)
  | h = h + {a}(h, h, h)[0]
  | h = h + {a}(h, h, h, need_weights=False)[0]

multi-head attention, time first: T B D
  a = nn.MultiheadAttention({D}, 1)
  | h = h + {a}(h, h, h, need_weights=False)[0]

encoder layer: B T D; if D > 1
  a = nn.TransformerEncoderLayer({D}, 1, {E}, dropout=0.0, batch_first=True)
  | h = {a}(h)

encoder layer, time first: T B D; if D > 1
  a = nn.TransformerEncoderLayer({D}, 1, {E}, dropout=0.0)
  | h = {a}(h)

solve: * D
  w = weight({D}, {D})
  | h = torch.linalg.solve({w} @ {w}.T + torch.eye({D}).to({w}), h.unsqueeze(-1)).squeeze(-1)
  | h = h @ torch.linalg.inv({w} @ {w}.T + torch.eye({D}).to({w}))
  | h = h @ torch.matrix_exp({w})

distance to centres: B D | B T D; D = E
  w = weight({E}, {D})
  | h = torch.cdist(h, {w})
  | h = (h.unsqueeze(-2) - {w}).square().sum(-1)
  | h = F.cosine_similarity(h.unsqueeze(-2), {w}, dim=-1)

function of its own: * D; odd
  | h = Doubled.apply(h)

function of its own with a parameter: * D; odd
  p = weight({D})
  | h = Scaled.apply(h, {p})

vmap: B D | B T D; D = E
  a = nn.Linear({D}, {E})
  | h = torch.vmap({a})(h)
  | h = torch.vmap(lambda u: u @ {a}.weight.T)(h)
  | h = torch.vmap({a}, in_dims=-2, out_dims=-2)(h)

per-step experts: B T D; D = E
  w = weight({T}, {D}, {E})
  | h = torch.einsum('btd,tde->bte', h, {w})
  | h = torch.bmm(h.transpose(0, 1), {w}).transpose(0, 1)

mixture by weights: * D
  a = nn.Linear({D}, 2)
  b = nn.ModuleList([nn.Linear({D}, {D}) for _ in range(2)])
  | h = sum(g[..., None] * f(h) for g, f in zip({a}(h).softmax(-1).unbind(-1), {b}))

generated weights: B D; if D <= 6
  a = nn.Linear({D}, {D} * {D})
  | h = torch.bmm({a}(h).view(B, {D}, {D}), h[:, :, None]).squeeze(2)
  | h = torch.einsum('bij,bj->bi', {a}(h).unflatten(1, ({D}, {D})), h)

low-rank update: * D
  a = nn.Linear({D}, {D})
  u = weight({D}, 1)
  w = weight(1, {D})
  | h = {a}(h) + (h @ {u}) @ {w}

one layer twice: * D
  a = nn.Linear({D}, {D})
  | h = {a}(h).tanh()
  . h = h + {a}(h)

one norm twice: * D; if D > 1
  a = nn.LayerNorm({D})
  | h = {a}(h)
  . h = {a}(h.sin())
""")
