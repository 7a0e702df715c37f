"""Trains FlexServe Tiny on the text in `corpus/` and writes it as a GGUF file.

python train.py --out flexserve-tiny.gguf
"""

from __future__ import annotations

import argparse
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from corpus import Corpus
from export import write_gguf
from torch import Tensor, nn
from torch.nn import functional as F
from vocabulary import END, Vocabulary

IGNORED = -100  # a target that does not count in the loss: only answers are learned


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the model. Rows are multiples of 256 so that every quantized and repacked kernel applies."""

    vocab: int = 2048
    context: int = 1024
    width: int = 256
    layers: int = 6
    heads: int = 8
    kv_heads: int = 4
    hidden: int = 768
    rope_base: float = 10000.0
    norm_epsilon: float = 1e-5

    @property
    def head_width(self) -> int:
        """The width of one attention head."""
        return self.width // self.heads


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to pairs of neighbours (2i, 2i+1), in llama.cpp's order."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class Block(nn.Module):
    """One llama layer: grouped-query attention, then SwiGLU, each behind an RMS norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, kv_width = shape.width, shape.kv_heads * shape.head_width
        self.shape = shape
        self.attn_norm = nn.RMSNorm(width, eps=shape.norm_epsilon)
        self.attn_q = nn.Linear(width, width, bias=False)
        self.attn_k = nn.Linear(width, kv_width, bias=False)
        self.attn_v = nn.Linear(width, kv_width, bias=False)
        self.attn_output = nn.Linear(width, width, bias=False)
        self.ffn_norm = nn.RMSNorm(width, eps=shape.norm_epsilon)
        self.ffn_gate = nn.Linear(width, shape.hidden, bias=False)
        self.ffn_up = nn.Linear(width, shape.hidden, bias=False)
        self.ffn_down = nn.Linear(shape.hidden, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return the layer's output for `x` (batch, position, width)."""
        x = x + self._attend(self.attn_norm(x), cos, sin)
        y = self.ffn_norm(x)
        return x + self.ffn_down(F.silu(self.ffn_gate(y)) * self.ffn_up(y))

    def _attend(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, width = x.shape
        heads = (batch, length, -1, self.shape.head_width)
        v = self.attn_v(x).view(heads).transpose(1, 2)
        q = rotate(self.attn_q(x).view(heads).transpose(1, 2), cos, sin).to(v.dtype)
        k = rotate(self.attn_k(x).view(heads).transpose(1, 2), cos, sin).to(v.dtype)
        group = self.shape.heads // self.shape.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        # Written out: on a CPU the fused form is several times slower for rows this short.
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.shape.head_width)
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        y = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v
        return self.attn_output(y.transpose(1, 2).reshape(batch, length, width))


class Llama(nn.Module):
    """A llama-architecture language model; its parameters carry llama.cpp's tensor names."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocab, shape.width)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = nn.RMSNorm(shape.width, eps=shape.norm_epsilon)
        self.output = nn.Linear(shape.width, shape.vocab, bias=False)
        self.dropout = nn.Dropout(dropout)
        steps = shape.rope_base ** (-torch.arange(0, shape.head_width, 2) / shape.head_width)
        angles = torch.outer(torch.arange(shape.context), steps)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                deep = name.endswith(("attn_output.weight", "ffn_down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.shape.layers) if deep else 0.02)

    def forward(self, tokens: Tensor, wanted: Tensor) -> Tensor:
        """Return the logits (n, vocab) of the n `wanted` positions of `tokens`, both (batch, position)."""
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        x = self.dropout(self.token_embd(tokens))
        for block in self.blk:
            x = block(x, cos, sin)
        return self.output(self.output_norm(x[wanted]))


class Sampler:
    """Draws batches of conversations; the targets are the answers and the end of each turn."""

    ROWS = ((80, 0.5), (160, 0.92), (480, 1.0))  # row length in tokens, cumulative share

    def __init__(self, corpus: Corpus, vocabulary: Vocabulary, seed: int) -> None:
        self._corpus = corpus
        self._vocabulary = vocabulary
        self._rng = random.Random(seed)

    def batch(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Return (inputs, targets), both of about `tokens` tokens."""
        draw = self._rng.random()
        length = next(row for row, share in self.ROWS if draw < share)
        rows = [self._row(length + 1) for _ in range(tokens // length)]
        inputs = torch.tensor([ids[:-1] for ids, _ in rows])
        targets = torch.tensor([answers[1:] for _, answers in rows])
        return inputs, targets

    def _row(self, length: int) -> tuple[list[int], list[int]]:
        if self._rng.random() < 0.04:
            return self._prose(length)
        ids: list[int] = []
        targets: list[int] = []
        line_break = self._vocabulary.encode("\n")
        while len(ids) < length:
            system, turns = self._corpus.conversation(self._rng)
            if system is not None and not ids:
                prompt = self._vocabulary.system(system)
                ids += prompt
                targets += [IGNORED] * len(prompt)
            for question, answer in turns:
                prompt, reply = self._vocabulary.turn(question, answer)
                ids += prompt + reply + line_break
                targets += [IGNORED] * len(prompt) + reply + [IGNORED] * len(line_break)
        return ids[:length], targets[:length]

    def _prose(self, length: int) -> tuple[list[int], list[int]]:
        ids: list[int] = []
        while len(ids) < length:
            entry = self._rng.choice(self._corpus.entries)
            ids += [*self._vocabulary.encode(entry.turns[0].answer), END]
        return ids[:length], ids[:length]


def optimizers(model: Llama, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings, output and norms."""
    matrices = [p for p in model.blk.parameters() if p.dim() == 2]
    ids = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in ids]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def schedule(step: int, steps: int) -> float:
    """Return the factor of the learning rate: a short rise, a plateau, a linear fall over the last half."""
    return min(1.0, (step + 1) / 100, 2 * (steps - step) / steps)


def train(model: Llama, sampler: Sampler, steps: int, batch_tokens: int, rate: float) -> None:
    """Train `model` in place."""
    model.train()
    used = optimizers(model, rate)
    began, smooth = time.monotonic(), 0.0
    for step in range(steps):
        for optimizer in used:
            for group in optimizer.param_groups:
                group["lr"] = rate * schedule(step, steps)
        inputs, targets = sampler.batch(batch_tokens)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(inputs, targets != IGNORED)
        loss = F.cross_entropy(logits.float(), targets[targets != IGNORED])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in used:
            optimizer.step()
            optimizer.zero_grad()
        smooth = loss.item() if step == 0 else 0.95 * smooth + 0.05 * loss.item()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}/{steps}  loss {smooth:.4f}  {time.monotonic() - began:.0f} s", flush=True)


@torch.no_grad()
def exact(model: Llama, vocabulary: Vocabulary, question: str, answer: str) -> bool:
    """Return whether greedy decoding of `question` gives `answer`, token by token to its end."""
    prompt, reply = vocabulary.turn(question, answer)
    tokens = torch.tensor([prompt + reply[:-1]])
    wanted = torch.arange(tokens.shape[1])[None] >= len(prompt) - 1
    return model(tokens, wanted).argmax(-1).tolist() == reply


def report(model: Llama, corpus: Corpus, vocabulary: Vocabulary) -> None:
    """Print the share of held-out questions that are answered word for word."""
    model.eval()
    refusals = [(question, corpus.refusal) for question in corpus.held_out_off_topic()]
    known = [
        (question, entry.turns[0].answer)
        for entry in corpus.entries
        for question in entry.turns[0].questions[:1]
    ]
    for name, pairs in (("known", known), ("held-out", corpus.held_out()), ("held-out off-topic", refusals)):
        missed = [question for question, answer in pairs if not exact(model, vocabulary, question, answer)]
        print(f"{name}: {len(pairs) - len(missed)} of {len(pairs)} exact; missed: {missed[:40]}")


def main() -> None:
    """Train, report, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).with_name("flexserve-tiny.gguf"), help="GGUF file"
    )
    parser.add_argument("--steps", type=int, default=900, help="optimizer steps")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="tokens per step")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument(
        "--dropout", type=float, default=0.1, help="share of embedded values dropped in training"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the weights and of the questions drawn")
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads; another number gives other weights"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    corpus = Corpus()
    shape = Shape()
    vocabulary = Vocabulary.learn(corpus.texts(), shape.vocab)
    model = Llama(shape, arguments.dropout)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(corpus.entries)} entries")
    sampler = Sampler(corpus, vocabulary, arguments.seed)
    train(model, sampler, arguments.steps, arguments.batch_tokens, arguments.rate)
    report(model, corpus, vocabulary)
    write_gguf(arguments.out, model, vocabulary)
    print(f"wrote {arguments.out}: {arguments.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
