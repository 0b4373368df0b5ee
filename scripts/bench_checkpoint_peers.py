"""The peers of bench.py that begin with a checkpoint: classes of transformers, in a plain loop, and `generate`."""

import zlib

import numpy as np
import torch
import transformers
from bench_checkpoints import END, NEW_TOKENS, PAD, Beams, FineTuning, Loading, Peak
from bench_workloads import Contender
from torch import nn


def load(workload, folder: str):
    kind = {'bert': 'BertForSequenceClassification', 't5': 'T5ForConditionalGeneration'}[workload.kind]
    return getattr(transformers, kind).from_pretrained(folder)


def size(network) -> int:
    return sum(p.numel() for p in network.parameters())


def train(workload: FineTuning, folder: str, compiled: bool) -> Contender:
    """Fused AdamW, whose decay is that of the config of ours; network and loss compiled, or not."""
    network = load(workload, folder).train()
    sources, told = (torch.from_numpy(rows.astype(np.int64)) for rows in workload.rows())
    decayed = [p for p in network.parameters() if p.ndim > 1]
    groups = [{'params': decayed, 'weight_decay': 0.01},
              {'params': [p for p in network.parameters() if p.ndim == 1], 'weight_decay': 0.0}]  # fmt: skip
    adam = torch.optim.AdamW(groups, workload.learning_rate, (0.9, 0.98), fused=True)
    loss_of = lambda source, told: network(input_ids=source, labels=told).loss
    loss_of = torch.compile(loss_of) if compiled else loss_of

    def batches():
        while True:
            for index in torch.randperm(len(sources)).split(workload.batch_size):
                yield sources[index], told[index]

    feed = batches()

    def run(steps: int) -> float:
        for _ in range(steps):
            loss = loss_of(*next(feed))
            adam.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            adam.step()
        return loss.item()

    return Contender(run, size(network))


def beams(workload: Beams, folder: str) -> Contender:
    """`generate` as it comes, with a score that no length changes, and until no beam can become better."""
    network = load(workload, folder).eval()
    sources = torch.from_numpy(workload.rows()[0][: workload.batch_size].astype(np.int64))
    how = dict(
        num_beams=4, do_sample=False, length_penalty=0.0, early_stopping='never', max_new_tokens=NEW_TOKENS,
        attention_mask=torch.ones_like(sources), eos_token_id=END, pad_token_id=PAD,
    )  # fmt: skip

    @torch.inference_mode()
    def run(steps: int) -> np.ndarray:
        for _ in range(steps):
            found = network.generate(sources, **how)[:, 1:]
        return found.numpy()

    def number(found: np.ndarray) -> float:
        whole = np.zeros((len(found), NEW_TOKENS), np.int32)
        whole[:, : found.shape[1]] = found
        return float(zlib.crc32(whole.tobytes()))

    return Contender(run, size(network), score=number)


def loading(workload: Loading, folder: str) -> Contender:
    """Without the tokenizer, which ours reads, too."""
    peak = Peak()

    def run(steps: int) -> float:
        for _ in range(steps):
            with peak:
                network = load(workload, folder)
                squares = sum(float(p.detach().flatten() @ p.detach().flatten()) for p in network.parameters())
            found = squares / size(network)
            del network
        return found

    return Contender(run, workload.parameters, memory=lambda: peak.most)
