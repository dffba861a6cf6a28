"""Views, permutations, reductions and joins: how the dimensions move."""

from tests.variance.random_networks.rule import parsed

RULES = parsed("""
merge batch and time: B T D -> BT D
  | h = h.reshape(-1, {D})
  | h = h.flatten(0, 1)
  | h = h.contiguous().view(B * {T}, h.shape[-1])
  | h = torch.cat([u for u in h])

merge time and batch: T B D -> TB D
  | h = h.reshape(-1, {D})
  | h = h.flatten(0, 1)
  | h = h.contiguous().view({T} * B, -1)

part batch and time: BT D -> B T D
  | h = h.unflatten(0, (B, {T}))
  | h = h.view(-1, {T}, {D})
  | h = h.reshape(B, {T}, -1)
  | h = torch.stack(h.split({T}))

part time and batch: TB D -> T B D
  | h = h.unflatten(0, ({T}, B))
  | h = h.view({T}, B, {D})
  | h = h.reshape({T}, -1, {D})

time first: B T D -> T B D
  | h = h.transpose(0, 1)
  | h = h.permute(1, 0, 2)
  | h = h.swapaxes(0, 1).contiguous()
  | h = h.movedim(1, 0)
  | h = torch.einsum('btd->tbd', h)
  | h = torch.stack(h.unbind(1))
  | h = h.clone().transpose_(0, 1)

batch first: T B D -> B T D
  | h = h.transpose(0, 1)
  | h = h.permute(1, 0, 2)
  | h = torch.stack(h.unbind(0), dim=1)
  | h = torch.stack(list(h), 1)
  | h = h.sin().swapaxes_(0, 1).unsqueeze_(0).squeeze_(0)

swap time and width: B T D; T = D, D = T
  | h = h.transpose(1, 2)
  | h = h.mT
  | h = h.permute(0, 2, 1)

layer along time: B T D
  a = nn.Linear({T}, {T})
  | h = {a}(h.transpose(1, 2)).transpose(1, 2)
  | h = {a}(h.mT).permute(0, 2, 1).contiguous()

flatten time and width: B T D -> B D; D = T * D; if T * D <= 40
  | h = h.flatten(1)
  | h = h.reshape(B, -1)
  | h = h.contiguous().view(h.size(0), -1)
  | h = nn.Flatten()(h)
  | h = torch.cat(h.unbind(1), 1)

flatten image: B C H W -> B D; D = C * H * W
  | h = h.flatten(1)
  | h = h.view(B, -1)

image as sequence: B C H W -> B T D; T = H * W, D = C
  | h = h.flatten(2).transpose(1, 2)
  | h = h.permute(0, 2, 3, 1).reshape(B, -1, {C})

image last: B C H W
  a = nn.Linear({C}, {C})
  | h = h.permute(0, 2, 3, 1)
  . h = {a}(h)
  . h = h.permute(0, 3, 1, 2)

split width: B D -> B T D; T = 2, D = D // 2; if D % 2 == 0
  | h = h.unflatten(1, (2, -1))
  | h = h.view(B, 2, {D} // 2)
  | h = torch.stack(h.chunk(2, 1), 1)

split width into batch-sized parts: B D -> B T D; T = 2, D = D // 2; if D % 2 == 0
  | h = h.unflatten(1, (-1, 2)).transpose(1, 2)

None in front: *
  | h = h[None].squeeze(0)
  | h = h.unsqueeze(0)[0]
  | h = h[None][0]

None behind: *
  | h = h[..., None].squeeze(-1)
  | h = h.unsqueeze(-1)[..., 0]

None behind and a table: * D; D = E
  w = weight({D}, {E})
  | h = (h[..., None] * {w}).sum(-2)
  | h = (h.unsqueeze(-1) * {w}).sum(dim=-2)

narrow width: * D; D = D - 1; if D > 1
  | h = h[..., 1:]
  | h = h.narrow(-1, 0, {D} - 1)

narrow time: B T D; T = T - 1; if T > 1
  | h = h[:, 1:]
  | h = h[:, :-1, :]

first step: B T D -> B D
  | h = h[:, 0]
  | h = h.select(1, 0)
  | h = h[:, 0, :]

last step: T B D -> B D
  | h = h[-1]
  | h = h.select(0, -1)
  | h = h[-1, ...]

repeat along time: B D -> B T D
  | h = h.unsqueeze(1).expand(-1, {T}, -1)
  | h = h[:, None].repeat(1, {T}, 1)
  | h = torch.stack([h] * {T}, 1)
  | h = h[:, None].expand(B, {T}, {D}) * 1

repeat interleaved: B D -> BT D
  | h = h.repeat_interleave({T}, 0)

repeat tiled: B D -> TB D
  | h = h.repeat({T}, 1)
  | h = torch.cat([h] * {T})

repeat in front: B D -> T B D
  | h = h.expand({T}, -1, -1)
  | h = torch.stack([h, h.tanh()])[[0] * {T}]

transposed product: B D; D = E
  w = weight({E}, {D})
  | h = ({w} @ h.T).T
  | h = {w}.mm(h.t()).t()

chunks of the batch: B D | B T D
  a = nn.Linear({D}, {D})
  | h = torch.cat([{a}(u) for u in h.chunk(2)])
  | h = torch.cat([{a}(h[:1]), {a}(h[1:])])

stack and sum: *
  | h = torch.stack([h, h.tanh()], 1).sum(1)
  | h = torch.stack([h, -h]).logsumexp(0)
  | h = torch.stack((h.sin(), h), -1).mean(-1)

cat along width: * D; D = 2 * D; if D <= 8
  | h = torch.cat([h, h.cos()], -1)

cat along time: B T D; T = 2 * T; if T <= 6
  | h = torch.cat([h, h.flip(1)], dim=1)

split and multiply: * D; D = D // 2; if D % 2 == 0
  | u{n}, v{n} = h.chunk(2, -1)
  . h = u{n} * v{n}.sigmoid()
  | h = F.glu(h, -1)

sum of unbound steps: B T D | T B D -> B D
  | h = sum(h.unbind({t}))

mean over time: B T D | T B D -> B D
  | h = h.mean({t})
  | h = h.sum(dim={t})
  | h = h.logsumexp({t})
  | h = h.amax({t})
  | h = h.max({t}).values
  | h = h.std({t}, unbiased=False)

cumulative: B T D | T B D
  | h = h.cumsum({t})
  | h = h.flip({t})
  | h = h.roll(1, {t})
  | h = h.cummax({t}).values
  | h = h.diff(dim={t}, prepend=h[:, :1] if {t} else h[:1])

pad time: B T D; T = T + 1
  | h = F.pad(h, (0, 0, 1, 0))
  | h = F.pad(h, (0, 0, 0, 1), value=0.5)

diagonal: B D -> B T D; T = D
  | h = torch.diag_embed(h)

outer product: B D -> B T D; T = D; if D <= 6
  | h = torch.einsum('bi,bj->bij', h, h.sin())
  | h = h[:, :, None] * h[:, None]

strided: B T D; odd
  | h = h.contiguous().as_strided((B, {T}, {D}), ({T} * {D}, {D}, 1))

spectrum: * D
  | h = torch.fft.fft(h, dim=-1).real
  | h = torch.view_as_real(torch.complex(h, h.tanh())).sum(-1)

blocks of two steps: BT D; T = T // 2, D = 2 * D; if T % 2 == 0 and D <= 8
  | h = h.reshape(-1, 2 * {D})

halves of the batch on top: B D
  a = nn.Linear({D}, {D})
  | h = torch.cat([h, h.sin()])
  . h = {a}(h)
  . u{n}, v{n} = h.chunk(2)
  . h = u{n} * v{n}
  | h = {a}(torch.cat([h, h.sin()])).view(2, B, -1).sum(0)

several reductions: B T D -> B D; D = 3 * D; if D <= 6
  | h = torch.cat([h.mean(1), h.amax(1), h[:, -1]], 1)
""")
