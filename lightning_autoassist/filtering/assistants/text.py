"""The paper's Assistant for translation, for text of one or two sequences.

Shapes: n candidates, B batch, V columns (two sequences of every token id), m columns of all bags together.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from lightning_autoassist.filtering.assistants.base import Assistant, BatchReader, RunningMean, UpdateResult
from lightning_autoassist.filtering.memory.features import FeatureFunction
from lightning_autoassist.filtering.memory.instances import Instances
from lightning_autoassist.filtering.memory.token_features import BatchTokens, PadId, pad_ids
from lightning_autoassist.filtering.memory.tokens import NUM_SEQUENCES, Tokens
from lightning_autoassist.trainer_support.arguments import check_number

LENGTH_UNIT = 10.0


class _Inputs(NamedTuple):
    """What the model sees: of each column of a bag two numbers, shape ``(m,)``; of each bag its lengths, ``(n, 2)``."""

    bags: Tensor
    columns: Tensor
    presence: Tensor
    tfidf: Tensor
    lengths: Tensor


class TextAssistant(Assistant):
    r"""The paper's Assistant for translation: logistic regression on the tokens of source and target.

    For an instance whose sequences :math:`s` hold the distinct tokens :math:`T_s` in :math:`\ell_s` positions,

    .. math:: a = \sigma\Bigl(b + \sum_s \Bigl( \frac{1}{|T_s|} \sum_{t \in T_s} W_{s,t}
        + \sum_{t \in T_s} U_{s,t}\, x_{s,t} + c_s \ell_s / u_s \Bigr)\Bigr)

    where :math:`x_s` is the sequence's TF-IDF vector of length 1: counts times :math:`1 + \ln((1 + n) / (1 + n_t))`, n
    instances of which :math:`n_t` hold the token. n and :math:`n_t` are gathered on the way, each instance counting
    when it is learnt from for the first time: in the first pass. (On a stream, which does not tell the first time, each
    time.) Sequences without tokens add nothing, so one sequence works as well as two.

    The target is "the score is above its mean in the last pass"; in the first pass, above its running mean. One step of
    SGD on the logistic loss with L2 follows each batch of the model; both are divided by B, as the paper's code has it.

    Deviations from the paper's code: weights begin at 0; :math:`u_s` is 10 tokens, or the mean length of the sequence
    where that is more, since long documents would else make the steps diverge; TF-IDF is not computed beforehand; a
    token that occurs twice does not get its gradient twice.

    Source: Zhang, Yu & Dhillon, AutoAssist, NeurIPS 2019, arXiv:1905.03381; TF-IDF: Salton & Buckley, Term-weighting
    approaches in automatic text retrieval, 1988.

    Args:
        lr: Step size of SGD.
        weight_decay: L2 coefficient.
        mean_decay: Decay of the running mean of the scores in the first pass, per batch, in [0, 1).
        pad_id: What fills the ends of short sequences, one id or one of source and target each; None finds it, see
            ``BatchTokens``.

    Raises:
        ValueError: If an argument lies outside its range.

    Example:
        >>> from lightning_autoassist.filtering.memory.tokens import tokens_of
        >>> assistant = TextAssistant()
        >>> hard_and_easy = Instances(tokens=tokens_of(torch.tensor([[4, 6], [8, 8]])), ages=torch.tensor([-1, -1]))
        >>> for _ in range(20):
        ...     outcome = assistant.update(hard_and_easy, scores=torch.tensor([2.0, 0.0]))
        >>> assistant.predict(hard_and_easy) > 0.5
        tensor([ True, False])
    """

    required_columns = ("tokens", "ages")
    predicts_probability = True

    def __init__(
        self, lr: float = 0.5, weight_decay: float = 0.1, mean_decay: float = 0.99, pad_id: PadId = None
    ) -> None:
        self.lr = check_number("lr", lr, "(0, inf)", "the paper uses 0.5")
        self.weight_decay = check_number("weight_decay", weight_decay, "[0, inf)", "the paper uses 0.1")
        pad_ids(pad_id)
        self.pad_id = pad_id
        self.mean_score = RunningMean(mean_decay)
        self.last_mean: float | None = None  # of the last pass
        self.pass_sum, self.pass_count = 0.0, 0  # of this one
        # W, U and n_t, shape (V,); take their size from the batches.
        self.presence_weight = torch.zeros(0)
        self.tfidf_weight = torch.zeros(0)
        self.num_with_token = torch.zeros(0)
        self.length_weight = torch.zeros(NUM_SEQUENCES)  # c
        self.bias = torch.zeros(1)
        self.num_documents = 0
        self.length_sum = torch.zeros(NUM_SEQUENCES, dtype=torch.float64)

    @override
    def feature_extractor(self, function: FeatureFunction | None, max_features: int) -> BatchReader:
        return BatchTokens(function, self.pad_id, max_features)

    @override
    def begin_pass(self) -> None:
        if self.pass_count:
            self.last_mean = self.pass_sum / self.pass_count
            self.pass_sum, self.pass_count = 0.0, 0

    @override
    def predict(self, instances: Instances) -> Tensor:
        return torch.sigmoid(self._logits(self._inputs(_tokens(instances))))

    @override
    def update(self, instances: Instances, scores: Tensor) -> UpdateResult:
        tokens = _tokens(instances)
        self._fit_sizes(tokens)
        is_new = torch.ones(len(scores), dtype=torch.bool) if instances.ages is None else instances.ages < 0
        self._count(tokens, is_new)
        targets = scores > self._level(scores)

        inputs = self._inputs(tokens)
        logits = self._logits(inputs)
        loss = F.binary_cross_entropy_with_logits(logits, targets.float())
        predictions = torch.sigmoid(logits)
        self._step(inputs, predictions - targets.float())
        return UpdateResult(float(loss), predictions, targets)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "presence_weight": self.presence_weight.clone(),
            "tfidf_weight": self.tfidf_weight.clone(),
            "length_weight": self.length_weight.clone(),
            "bias": self.bias.clone(),
            "num_with_token": self.num_with_token.clone(),
            "num_documents": self.num_documents,
            "length_sum": self.length_sum.clone(),
            "mean_score": self.mean_score.value,
            "last_mean": self.last_mean,
            "pass_sum": self.pass_sum,
            "pass_count": self.pass_count,
        }

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("presence_weight", "tfidf_weight", "length_weight", "bias", "num_with_token", "length_sum"):
            setattr(self, name, state[name].clone())
        self.num_documents = int(state["num_documents"])
        self.mean_score.value = state["mean_score"]
        self.last_mean = state["last_mean"]
        self.pass_sum, self.pass_count = state["pass_sum"], state["pass_count"]

    def _level(self, scores: Tensor) -> float:
        """What a score is compared with; takes note of a batch's."""
        self.pass_sum += float(scores.sum(dtype=torch.float64))
        self.pass_count += len(scores)
        running = self.mean_score.update(scores)
        return running if self.last_mean is None else self.last_mean

    def _fit_sizes(self, tokens: Tokens) -> None:
        size = 1 + int(tokens.columns.max()) if len(tokens.columns) else 0
        if size > len(self.presence_weight):
            missing = max(size, 2 * len(self.presence_weight)) - len(self.presence_weight)
            for name in ("presence_weight", "tfidf_weight", "num_with_token"):
                setattr(self, name, F.pad(getattr(self, name), (0, missing)))

    def _count(self, tokens: Tokens, is_new: Tensor) -> None:
        """Take note of instances for the inverse document frequencies and the mean lengths."""
        bags = tokens.bags
        columns = tokens.columns[is_new[bags]]
        self.num_with_token.index_add_(0, columns, torch.ones(len(columns)))
        self.num_documents += int(is_new.sum())
        self.length_sum += _lengths(tokens, _sequences(tokens, bags))[is_new].sum(0)

    def _inputs(self, tokens: Tokens) -> _Inputs:
        bags, num_sequences = tokens.bags, NUM_SEQUENCES * len(tokens.sizes)
        sequences = _sequences(tokens, bags)
        num_distinct = torch.bincount(sequences, minlength=num_sequences)
        idf = 1 + torch.log((1 + self.num_documents) / (1 + _at(self.num_with_token, tokens.columns)))
        tfidf = tokens.counts * idf
        norm = torch.bincount(sequences, tfidf.square(), minlength=num_sequences).sqrt()
        unit = (self.length_sum / max(self.num_documents, 1)).clamp(min=LENGTH_UNIT)
        return _Inputs(
            bags=bags,
            columns=tokens.columns,
            presence=1 / num_distinct[sequences].float(),
            tfidf=tfidf / norm[sequences],
            lengths=(_lengths(tokens, sequences) / unit).float(),
        )

    def _logits(self, inputs: _Inputs) -> Tensor:
        presence = _at(self.presence_weight, inputs.columns) * inputs.presence
        tfidf = _at(self.tfidf_weight, inputs.columns) * inputs.tfidf
        return (inputs.lengths @ self.length_weight + self.bias).index_add_(0, inputs.bags, presence + tfidf)

    def _step(self, inputs: _Inputs, residual: Tensor) -> None:
        """One step of SGD: residual is the loss's gradient at the logits, before it is divided by B."""
        rate = self.lr / len(residual)
        residual = rate * residual
        by_column = residual[inputs.bags]
        for weight in (self.presence_weight, self.tfidf_weight, self.length_weight, self.bias):
            weight *= 1 - rate * self.weight_decay
        self.presence_weight.index_add_(0, inputs.columns, -by_column * inputs.presence)
        self.tfidf_weight.index_add_(0, inputs.columns, -by_column * inputs.tfidf)
        self.length_weight -= residual @ inputs.lengths
        self.bias -= residual.sum()


def _tokens(instances: Instances) -> Tokens:
    if instances.tokens is None:
        raise ValueError("TextAssistant needs tokens, got instances without any; batches must hold integer token ids")
    return instances.tokens


def _sequences(tokens: Tokens, bags: Tensor) -> Tensor:
    """Which sequence of which bag each column belongs to, as 2·bag or 2·bag + 1, shape ``(m,)``."""
    return NUM_SEQUENCES * bags + tokens.columns % NUM_SEQUENCES


def _lengths(tokens: Tokens, sequences: Tensor) -> Tensor:
    """Tokens of each sequence, shape ``(n, 2)``, float64."""
    num_sequences = NUM_SEQUENCES * len(tokens.sizes)
    return torch.bincount(sequences, tokens.counts.double(), num_sequences).view(-1, NUM_SEQUENCES)


def _at(values: Tensor, columns: Tensor) -> Tensor:
    """Values of columns, shape ``(m,)``; 0 of those that no batch has held yet."""
    if not len(values):
        return torch.zeros(len(columns))
    return values[columns.clamp(max=len(values) - 1)].where(columns < len(values), 0.0)
