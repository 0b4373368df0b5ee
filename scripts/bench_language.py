"""The peers of bench.py that are language models: GPT-2's network and an LSTM in PyTorch, and Transformers' GPT-2."""

import math
import time

import numpy as np
import torch
from bench_workloads import DEVICE, FIRST_LETTER, NEW_TOKENS, ON_GPU, PROMPT, Contender, Generation, Text, fastest
from torch import nn
from torch.nn import functional as F

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16}


def tokens_of(data_file: str) -> torch.Tensor:
    """The first 90 % of the text, which is what is trained on."""
    with open(data_file, encoding='utf-8') as file:
        tokens = np.array([ord(letter) - FIRST_LETTER for letter in file.read()])
    return torch.from_numpy(tokens[: round(0.9 * len(tokens))]).to(DEVICE)


def peak(precision: str) -> float:
    """FLOP/s of a matrix product of DTYPES[precision]."""

    def timed(n: int) -> float:
        x = torch.randn((n, n), dtype=DTYPES[precision], device=DEVICE)
        for _ in range(1 + ON_GPU):  # the first chooses its algorithm there
            wait()
            began = time.perf_counter()
            torch.matmul(x, x)
            wait()
        return time.perf_counter() - began

    return fastest(timed)


def wait() -> None:
    """Until the GPU has done what it was given."""
    if ON_GPU:
        torch.cuda.synchronize()


class Block(nn.Module):
    def __init__(self, width: int, heads: int, bias: bool):
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width, bias=bias), nn.LayerNorm(width, bias=bias)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width, bias=bias)
        self.up, self.down = nn.Linear(width, 4 * width, bias=bias), nn.Linear(4 * width, width, bias=bias)

    def forward(self, x, cache=None, begin: int = 0):
        """cache: keys and values (2, n, heads, columns, d), filled up to `begin`, from where x goes on."""
        n, length, width = x.shape
        q, k, v = self.qkv(self.norm_1(x)).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if cache is not None:
            end = begin + length
            cache[0, :, :, begin:end], cache[1, :, :, begin:end] = k, v
            k, v = cache[0, :, :, :end], cache[1, :, :, :end]
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=length > 1)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, length, width))
        return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate='tanh'))


class GPT(nn.Module):
    """Radford et al. 2019; without biases as nanoGPT has it, or with them."""

    def __init__(self, workload: Text, bias: bool):
        super().__init__()
        width = workload.width
        self.embed, self.position = nn.Embedding(workload.vocab_size, width), nn.Embedding(workload.block, width)
        self.blocks = nn.ModuleList(Block(width, workload.heads, bias) for _ in range(workload.layers))
        self.norm = nn.LayerNorm(width, bias=bias)
        for name, p in self.named_parameters():
            if p.ndim > 1:
                residual = name.endswith(('out.weight', 'down.weight'))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * workload.layers) if residual else 0.02)
            elif name.endswith('bias'):
                nn.init.zeros_(p)

    def forward(self, tokens, cache=None, begin: int = 0):
        x = self.embed(tokens) + self.position.weight[begin : begin + tokens.shape[1]]
        for i, block in enumerate(self.blocks):
            x = block(x, None if cache is None else cache[i], begin)
        return self.norm(x) @ self.embed.weight.T


class LSTM(nn.Module):
    def __init__(self, workload: Text):
        super().__init__()
        width, vocab_size = workload.width, workload.vocab_size
        self.embed, self.lstm = nn.Embedding(vocab_size, width), nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, vocab_size, bias=False)
        nn.init.normal_(self.embed.weight, std=width**-0.5)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.orthogonal_(self.lstm.weight_hh_l0)
        nn.init.zeros_(self.lstm.bias_ih_l0)
        nn.init.zeros_(self.lstm.bias_hh_l0).requires_grad_(False)  # it says nothing that the other does not

    def forward(self, tokens, h, c):
        x, (h, c) = self.lstm(self.embed(tokens), (h, c))
        return self.head(x), h, c


def windows(tokens, batch_size: int, block: int):
    """Batches from anywhere, (batch, block + 1)."""
    span = torch.arange(block + 1, device=DEVICE)
    while True:
        yield tokens[torch.randint(len(tokens) - block, (batch_size, 1), device=DEVICE) + span]


def rows(tokens, batch_size: int, block: int):
    """Batches whose rows read on where those of the batch before ended, for ever."""
    length = (len(tokens) - 1) // block // batch_size * block
    begin, span = (torch.arange(n, device=DEVICE) for n in (batch_size, block + 1))
    begin = begin[:, None] * length
    while True:
        for offset in range(0, length, block):
            yield tokens[begin + offset + span]


def train(workload: Text, data_file: str, compiled: bool) -> Contender:
    """A plain loop over a text in memory; fused AdamW; network and loss compiled, or not; bfloat16 by autocast."""
    is_lstm = not workload.heads
    network = (LSTM(workload) if is_lstm else GPT(workload, bias=False)).to(DEVICE)
    trained = [p for p in network.parameters() if p.requires_grad]
    # Weight decay as in the config of ours.
    decayed = [p for name, p in network.named_parameters() if p.ndim > 1 and not (is_lstm and 'embed' in name)]
    rest = [p for p in trained if not any(p is other for other in decayed)]
    groups = [{'params': decayed, 'weight_decay': 0.1}, {'params': rest, 'weight_decay': 0.0}]
    adam = torch.optim.AdamW(groups, workload.learning_rate, (0.9, 0.99), fused=True)
    shape = 1, workload.batch_size, workload.width
    state = [torch.zeros(shape, device=DEVICE) for _ in range(2 * is_lstm)]
    feed = (rows if is_lstm else windows)(tokens_of(data_file), workload.batch_size, workload.block)
    dtype = DTYPES[workload.precision]

    def forward(tokens, *state):
        with torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32):
            out = network(tokens[:, :-1], *state)
            logits, *state = out if is_lstm else (out,)
            return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten()), state

    forward = torch.compile(forward) if compiled else forward

    def run(steps: int) -> float:
        nonlocal state
        for _ in range(steps):
            loss, state = forward(next(feed), *state)
            state = [part.detach() for part in state]
            adam.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            adam.step()
        return loss.item()

    return Contender(run, sum(p.numel() for p in trained), peak=lambda: peak(workload.precision))


def prompt_of(workload: Generation) -> torch.Tensor:
    prompt = np.random.default_rng(0).integers(0, workload.vocab_size, (workload.batch_size, PROMPT))
    return torch.from_numpy(prompt).to(DEVICE)


@torch.inference_mode()
def nats(logits_of, tokens) -> float:
    """−log p a token of what was written."""
    tokens = tokens.to(DEVICE)
    return F.cross_entropy(
        logits_of(tokens[:, :-1])[:, PROMPT - 1 :].flatten(0, 1), tokens[:, PROMPT:].flatten()
    ).item()


def scaled(network, workload: Generation):
    with torch.no_grad():
        for p in network.parameters():
            if p.ndim > 1:
                p.mul_(workload.SCALE)
    return network.eval().to(DEVICE)


def loop(workload: Generation, data_file: str) -> Contender:
    """A cache that is laid out once, and one forward pass a token."""
    network, n = scaled(GPT(workload, bias=True), workload), workload.batch_size
    shape = (workload.layers, 2, n, workload.heads, PROMPT + NEW_TOKENS, workload.width // workload.heads)

    @torch.inference_mode()
    def run(steps: int):
        for _ in range(steps):
            tokens, cache = [prompt_of(workload)], torch.empty(shape, device=DEVICE)
            for i in range(NEW_TOKENS):
                logits = network(tokens[-1], cache, PROMPT + i - 1 if i else 0)[:, -1]
                tokens.append(torch.multinomial(logits.softmax(dim=-1), 1))
            tokens = torch.cat(tokens, dim=1)
        return tokens.cpu()

    return Contender(run, sum(p.numel() for p in network.parameters()), score=lambda tokens: nats(network, tokens))


def transformers(workload: Generation, data_file: str) -> Contender:
    """GPT2LMHeadModel.generate as it comes: its growing cache, SDPA, no compilation."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=workload.vocab_size, n_positions=workload.block, n_embd=workload.width, n_layer=workload.layers,
        n_head=workload.heads, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    network, prompt = scaled(GPT2LMHeadModel(config), workload), prompt_of(workload)
    how = dict(
        attention_mask=torch.ones_like(prompt), do_sample=True, top_k=0, max_new_tokens=NEW_TOKENS, use_cache=True,
        pad_token_id=0,
    )  # fmt: skip

    def run(steps: int):
        for _ in range(steps):
            tokens = network.generate(prompt, **how)
        return tokens.cpu()

    logits_of = lambda tokens: network(tokens).logits
    return Contender(run, sum(p.numel() for p in network.parameters()), score=lambda tokens: nats(logits_of, tokens))
