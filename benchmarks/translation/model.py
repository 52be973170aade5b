"""A Transformer that translates, greedily or by beam search, and how its translations are measured.

Shapes: B batch, S source and T target tokens, V vocabulary, D width, W beam.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.translation.data import BEGIN, END, PAD, Vocabulary, source_batches

LABEL_SMOOTHING = 0.1
# Of the run's own updates; the rate then falls with the square root of the update.
WARM_UP_RATIO = 0.1


class Size(NamedTuple):
    """What makes a Transformer large or small.

    Attributes:
        width: D.
        num_heads: Of each attention.
        num_layers: Of the encoder, and of the decoder.
        hidden: Width of the feed-forward layers.
        dropout: Chance that a value is left out.
    """

    width: int
    num_heads: int
    num_layers: int
    hidden: int
    dropout: float


SIZES = {
    "tiny": Size(32, 2, 1, 64, 0.0),
    "small": Size(96, 4, 2, 256, 0.1),
    "base": Size(512, 8, 6, 2048, 0.3),
}


class Translator(nn.Module):
    """Encoder and decoder of ``torch.nn.Transformer``, with one embedding for both sides and for the output.

    Source: Vaswani et al., Attention Is All You Need, NeurIPS 2017, arXiv:1706.03762; normalised before each layer.

    Args:
        size: See :class:`Size`.
        vocabulary_size: V.
    """

    def __init__(self, size: Size, vocabulary_size: int) -> None:
        super().__init__()
        self.width = size.width
        self.embedding = nn.Embedding(vocabulary_size, size.width, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=size.width**-0.5)
        self.dropout = nn.Dropout(size.dropout)
        options: Any = {"dropout": size.dropout, "batch_first": True, "norm_first": True}
        layer = nn.TransformerEncoderLayer(size.width, size.num_heads, size.hidden, **options)
        # The encoder that the Transformer would make, without the fast path that cannot be taken.
        encoder = nn.TransformerEncoder(layer, size.num_layers, nn.LayerNorm(size.width), enable_nested_tensor=False)
        self.transformer = nn.Transformer(
            size.width,
            size.num_heads,
            num_decoder_layers=size.num_layers,
            dim_feedforward=size.hidden,
            custom_encoder=encoder,
            **options,
        )

    def forward(self, sources: Tensor, targets: Tensor) -> Tensor:
        """Logits of the token after each target token, shape ``(B, T, V)``.

        Args:
            sources: Shape ``(B, S)``.
            targets: Shape ``(B, T)``.
        """
        hidden = self.decode(self.encode(sources), sources == PAD, targets)
        return F.linear(hidden, self.embedding.weight)

    def encode(self, sources: Tensor) -> Tensor:
        """What the decoder reads of the sources, shape ``(B, S, D)``."""
        memory: Tensor = self.transformer.encoder(self._embedded(sources), src_key_padding_mask=sources == PAD)
        return memory

    def decode(self, memory: Tensor, is_padding: Tensor, targets: Tensor) -> Tensor:
        """The decoder's output at each target token, shape ``(B, T, D)``."""
        ahead = torch.ones(targets.shape[1], targets.shape[1], dtype=torch.bool, device=targets.device).triu(1)
        hidden: Tensor = self.transformer.decoder(
            self._embedded(targets), memory, tgt_mask=ahead, tgt_is_causal=True, memory_key_padding_mask=is_padding
        )
        return hidden

    def _embedded(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device, dtype=torch.float32)
        rates = torch.exp(torch.arange(0, self.width, 2, device=tokens.device) * (-math.log(10_000.0) / self.width))
        angles = positions[:, None] * rates
        waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
        embedded: Tensor = self.dropout(self.embedding(tokens) * math.sqrt(self.width) + waves)
        return embedded


@torch.no_grad()
def translate(net: Translator, sources: Tensor, beam: int = 1) -> Tensor:
    r"""The likeliest translations that a beam finds, by log-likelihood over :math:`((5 + T) / 6)^{0.6}`.

    Source: length normalisation of Wu et al., Google's Neural Machine Translation System, 2016, arXiv:1609.08144.

    Args:
        net: In evaluation mode.
        sources: Shape ``(B, S)``.
        beam: W; 1 is greedy.

    Returns:
        Tokens, shape ``(B, T)``, with a beginning, an end and padding.
    """
    batch_size, device = len(sources), sources.device
    most = int(1.5 * sources.shape[1]) + 10
    memory = net.encode(sources).repeat_interleave(beam, 0)
    is_padding = (sources == PAD).repeat_interleave(beam, 0)
    tokens = torch.full((batch_size * beam, 1), BEGIN, device=device)
    # Of the W equal beginnings only the first counts.
    scores = torch.full((batch_size, beam), -torch.inf, device=device)
    scores[:, 0] = 0.0
    first = torch.arange(batch_size, device=device)[:, None] * beam
    for _ in range(most):
        hidden = net.decode(memory, is_padding, tokens)[:, -1]
        steps = F.log_softmax(F.linear(hidden, net.embedding.weight), -1).view(batch_size, beam, -1)
        steps[..., [PAD, BEGIN]] = -torch.inf
        # What has ended goes on with padding, at no cost.
        ended = ((tokens == END).any(1)).view(batch_size, beam)
        steps = steps.masked_fill(ended[..., None], -torch.inf)
        steps[..., PAD] = torch.where(ended, 0.0, steps[..., PAD])
        lengths = (tokens != PAD).sum(1).view(batch_size, beam) - 1 + (~ended)
        totals = scores[..., None] + steps
        normalised = totals / ((5 + lengths[..., None]) / 6) ** (0.6 if beam > 1 else 0.0)
        best = normalised.flatten(1).topk(beam).indices
        scores = totals.flatten(1).gather(1, best)
        rows = (first + best // steps.shape[-1]).flatten()
        tokens = torch.cat([tokens[rows], (best % steps.shape[-1]).view(-1, 1)], 1)
        if bool((tokens == END).any(1).all()):
            break
    return tokens.view(batch_size, beam, -1)[:, 0]


def translations(net: Translator, pairs: Sequence[Any], vocabulary: Vocabulary, beam: int = 1) -> list[str]:
    """Translations of the pairs' sources, in their order; leaves the network in evaluation mode."""
    net.eval()
    device = net.embedding.weight.device
    found = [""] * len(pairs)
    for places, sources in source_batches(pairs, vocabulary, 4096 // beam):
        texts = vocabulary.decode(translate(net, sources.to(device), beam).cpu())
        for place, text in zip(places.tolist(), texts, strict=True):
            found[place] = text
    return found


class Quality(NamedTuple):
    """How good translations are.

    Attributes:
        bleu: In %.
        chrf: In %.
        signatures: Of both, as sacrebleu writes them.
    """

    bleu: float
    chrf: float
    signatures: tuple[str, str]


def quality(found: Sequence[str], references: Sequence[str]) -> Quality:
    """BLEU and chrF of translations against one reference each.

    Source: Post, A Call for Clarity in Reporting BLEU Scores, WMT 2018, arXiv:1804.08771.

    Args:
        found: N translations.
        references: N references.
    """
    from sacrebleu.metrics import BLEU, CHRF

    bleu, chrf = BLEU(), CHRF()
    scores = [metric.corpus_score(list(found), [list(references)]).score for metric in (bleu, chrf)]
    return Quality(scores[0], scores[1], (str(bleu.get_signature()), str(chrf.get_signature())))


class TranslationModule(pl.LightningModule):
    """Cross-entropy with label smoothing, Adam, and an inverse-square-root schedule over the run's own updates.

    Args:
        net: See :class:`Translator`.
        vocabulary: Of both sides.
        references: Of the sources that validation translates.
        learning_rate: Peak of the schedule.
    """

    def __init__(
        self, net: Translator, vocabulary: Vocabulary, references: Sequence[str], learning_rate: float
    ) -> None:
        super().__init__()
        self.net = net
        self.vocabulary = vocabulary
        self.references = references
        self.learning_rate = learning_rate
        self._found: list[tuple[int, str]] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        sources, targets = batch
        logits = self.net(sources, targets[:, :-1])
        return F.cross_entropy(
            logits.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=PAD, label_smoothing=LABEL_SMOOTHING
        )

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        places, sources = batch
        self._found += zip(places.tolist(), self.vocabulary.decode(translate(self.net, sources).cpu()), strict=True)

    def on_validation_epoch_end(self) -> None:
        found, self._found = dict(self._found), []
        texts = [found[place] for place in range(len(found))]
        self.log("curve_bleu", quality(texts, self.references[: len(texts)]).bleu)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), self.learning_rate, betas=(0.9, 0.98), eps=1e-9)
        warm_up = max(1, round(WARM_UP_RATIO * int(self.trainer.estimated_stepping_batches)))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / warm_up, math.sqrt(warm_up / (step + 1)))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
