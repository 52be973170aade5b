"""Models of transformers with tiny configurations: the loss comes out of their forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.outside.cases import NUM_INSTANCES, Setup, case, cases, integers, loaders, normal
from benchmarks.outside.steps import Step, livelier

PACKAGE = "transformers"
VOCABULARY, LENGTH, CLASSES, IGNORED = 31, 7, 3, -100
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
ENCODER = {**SMALL, "intermediate_size": 16, "max_position_embeddings": 32}
ENCODERS = {
    "Bert": ENCODER,
    "Roberta": {**ENCODER, "pad_token_id": 0},
    "DistilBert": {"vocab_size": VOCABULARY, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16},
    "Electra": {**ENCODER, "embedding_size": 16},
    "DebertaV2": ENCODER,
}
DECODERS = {
    "GPT2LMHeadModel": {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32},
    "LlamaForCausalLM": {**ENCODER, "pad_token_id": 0},
    "Qwen2ForCausalLM": {**ENCODER, "num_key_value_heads": 2, "pad_token_id": 0},
    "MambaForCausalLM": {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4},
}
PICTURE = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 16,
    "patch_size": 8,
}


def _line(step: Any, batch: Any) -> Tensor:
    return step.net(**batch).loss


def _setup(
    model: str, config: str, options: dict[str, Any], columns: Any, line: Callable[..., Tensor] = _line
) -> Setup:
    import transformers

    def make_module() -> Step:
        return Step(line, net=getattr(transformers, model)(getattr(transformers, config)(**options)).train())

    return Setup(make_module, columns if callable(columns) else loaders(columns))


def _tokens(**others: Tensor) -> dict[str, Tensor]:
    """Texts of different lengths, padded at their ends."""
    lengths = 3 + integers(LENGTH - 2)
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    return {"input_ids": (1 + integers(VOCABULARY - 1, LENGTH)) * mask, "attention_mask": mask, **others}


def _own_labels() -> dict[str, Tensor]:
    """The texts for their own labels, padding left out."""
    columns = _tokens()
    return {**columns, "labels": columns["input_ids"].where(columns["attention_mask"].bool(), IGNORED)}


@cases(PACKAGE, [f"{name}ForSequenceClassification" for name in ENCODERS], "module")
def sequence_classifier(name: str) -> Setup:
    """One label a text."""
    family = name.removesuffix("ForSequenceClassification")
    options = {**ENCODERS[family], "num_labels": CLASSES}
    return _setup(name, f"{family}Config", options, _tokens(labels=integers(CLASSES)))


@case(PACKAGE, "BertForSequenceClassification, regression", "module")
def regression() -> Setup:
    """One number a text: the mean squared error."""
    options = {**ENCODER, "num_labels": 1, "problem_type": "regression"}
    return _setup("BertForSequenceClassification", "BertConfig", options, _tokens(labels=normal()))


@case(PACKAGE, "BertForSequenceClassification, several labels", "module")
def tags() -> Setup:
    """Several labels a text: binary cross-entropy."""
    options = {**ENCODER, "num_labels": CLASSES, "problem_type": "multi_label_classification"}
    columns = _tokens(labels=integers(2, CLASSES).float())
    return _setup("BertForSequenceClassification", "BertConfig", options, columns)


@case(PACKAGE, "BertForTokenClassification", "module")
def token_classifier() -> Setup:
    """One label a token, padding left out."""
    columns = _tokens()
    columns["labels"] = integers(CLASSES, LENGTH).where(columns["attention_mask"].bool(), IGNORED)
    return _setup("BertForTokenClassification", "BertConfig", {**ENCODER, "num_labels": CLASSES}, columns)


@case(PACKAGE, "BertForQuestionAnswering", "module")
def question_answering() -> Setup:
    """Two cross-entropies over positions, averaged."""
    columns = _tokens(start_positions=integers(3), end_positions=integers(3).flip(0))
    return _setup("BertForQuestionAnswering", "BertConfig", ENCODER, columns)


@case(PACKAGE, "BertForMaskedLM", "module")
def masked_language_model() -> Setup:
    """A label at some tokens only."""
    columns = _tokens()
    is_asked = (integers(3, LENGTH) == 0) & columns["attention_mask"].bool()
    is_asked[:, 0] = True
    columns["labels"] = columns["input_ids"].where(is_asked, IGNORED)
    return _setup("BertForMaskedLM", "BertConfig", ENCODER, columns)


@case(PACKAGE, "BertForMultipleChoice", "module")
def multiple_choice() -> Setup:
    """Several texts an instance, flattened inside."""
    columns = {"input_ids": 1 + integers(VOCABULARY - 1, 4, LENGTH), "labels": integers(4)}
    return _setup("BertForMultipleChoice", "BertConfig", ENCODER, columns)


@cases(PACKAGE, DECODERS, "module")
def causal_language_model(name: str) -> Setup:
    """The next token; its loss is divided by the number of tokens."""
    family = name.removesuffix("LMHeadModel").removesuffix("ForCausalLM")
    return _setup(name, f"{family}Config", DECODERS[name], _own_labels())


@case(PACKAGE, "MixtralForCausalLM with its router's loss", "module")
def mixture_of_experts() -> Setup:
    """Beside the tokens' loss, a term that balances the experts over the batch."""
    options = {**ENCODER, "num_key_value_heads": 2, "num_local_experts": 2, "output_router_logits": True}
    return _setup("MixtralForCausalLM", "MixtralConfig", {**options, "pad_token_id": 0}, _own_labels())


@case(PACKAGE, "T5ForConditionalGeneration", "module")
def sequence_to_sequence() -> Setup:
    """Encoder and decoder."""
    options = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return _setup("T5ForConditionalGeneration", "T5Config", {**options, "decoder_start_token_id": 0}, _own_labels())


@case(PACKAGE, "BartForConditionalGeneration", "module")
def denoising() -> Setup:
    """Encoder and decoder, whose loss counts padding that is not left out."""
    sides = {f"{side}_{what}": number for side in ("encoder", "decoder") for what, number in BART.items()}
    options = {"vocab_size": VOCABULARY, "d_model": 16, "max_position_embeddings": 32, **sides}
    return _setup("BartForConditionalGeneration", "BartConfig", options, _own_labels())


BART = {"layers": 1, "attention_heads": 2, "ffn_dim": 16}


@case(PACKAGE, "DataCollatorForLanguageModeling", "module")
def own_collator() -> Setup:
    """Texts of different lengths, padded and masked by a collator of transformers and a tokenizer."""
    from tokenizers import Tokenizer, models
    from torch.utils.data import DataLoader
    from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

    words = {"[PAD]": 0, "[UNK]": 1, "[MASK]": 2, **{f"w{number}": number for number in range(3, VOCABULARY)}}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="[UNK]")),
        pad_token="[PAD]",
        unk_token="[UNK]",
        mask_token="[MASK]",
    )
    lengths, tokens = 3 + integers(LENGTH - 2), 3 + integers(VOCABULARY - 3, LENGTH)
    texts = [{"input_ids": row[:length].tolist()} for row, length in zip(tokens, lengths.tolist(), strict=True)]
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)

    def make_loader(batch_size: int, shuffle: bool) -> DataLoader:
        return DataLoader(texts, batch_size=batch_size, shuffle=shuffle, collate_fn=collator)

    def line(step: Any, batch: Any) -> Tensor:
        return step.net(**batch).loss

    return _setup("GPT2LMHeadModel", "GPT2Config", DECODERS["GPT2LMHeadModel"], make_loader, line)


@case(PACKAGE, "ViTForImageClassification", "module")
def picture_classifier() -> Setup:
    """One label a picture."""
    columns = {"pixel_values": normal(3, 16, 16), "labels": integers(CLASSES)}
    return _setup("ViTForImageClassification", "ViTConfig", {**PICTURE, "num_labels": CLASSES}, columns)


@case(PACKAGE, "SegformerForSemanticSegmentation", "module")
def segmentation() -> Setup:
    """One label a pixel."""
    import transformers

    options = {
        "num_encoder_blocks": 2,
        "depths": [1, 1],
        "hidden_sizes": [8, 16],
        "num_attention_heads": [1, 2],
        "sr_ratios": [2, 1],
        "patch_sizes": [3, 3],
        "strides": [2, 2],
        "mlp_ratios": [2, 2],
        "decoder_hidden_size": 16,
        "num_labels": CLASSES,
    }
    columns = {"pixel_values": normal(3, 16, 16), "labels": integers(CLASSES, 16, 16)}
    columns["labels"] *= integers(2)[:, None, None]  # some pictures are background only

    def make_module() -> Step:
        net = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(**options))
        return Step(_line, net=livelier(net.train(), 100))

    return Setup(make_module, loaders(columns))


@case(PACKAGE, "ViTMAEForPreTraining", "module")
def masked_autoencoder() -> Setup:
    """The pixels of masked patches, by a loss of its own; what is masked is given, so that an instance has one loss."""
    options = {**PICTURE, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    columns = {"pixel_values": normal(3, 16, 16), "noise": normal(4)}
    return _setup("ViTMAEForPreTraining", "ViTMAEConfig", {**options, "decoder_intermediate_size": 16}, columns)


@case(PACKAGE, "DetrForObjectDetection", "module")
def detection() -> Setup:
    """Boxes that are matched to queries, a list of targets of different sizes."""
    import transformers
    from torch.utils.data import DataLoader

    from benchmarks.outside.detection import collate_pairs, targets

    pictures = normal(3, 32, 32)
    rows = [(pictures[index], target) for index, target in enumerate(targets(32, CLASSES, as_centres=True))]

    def line(step: Any, batch: Any) -> Tensor:
        images, wanted = batch
        labels = [{"class_labels": each["labels"], "boxes": each["boxes"]} for each in wanted]
        return step.net(pixel_values=torch.stack(images), labels=labels).loss

    def make_module() -> Step:
        backbone = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
        )
        config = transformers.DetrConfig(
            use_timm_backbone=False,
            use_pretrained_backbone=False,
            backbone=None,
            backbone_config=backbone,
            num_labels=CLASSES,
            num_queries=6,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
        )
        return Step(line, net=transformers.DetrForObjectDetection(config).train())

    def make_loader(batch_size: int, shuffle: bool) -> DataLoader:
        return DataLoader(rows, batch_size=batch_size, shuffle=shuffle, collate_fn=collate_pairs)

    return Setup(make_module, make_loader)


@case(PACKAGE, "CLIPModel", "module")
def pictures_and_texts() -> Setup:
    """Contrastive: each picture against the texts of the batch."""
    import transformers

    def line(step: Any, batch: Any) -> Tensor:
        return step.net(**batch, return_loss=True).loss

    def make_module() -> Step:
        text = {**ENCODER, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        config = transformers.CLIPConfig(text_config=text, vision_config=PICTURE, projection_dim=8)
        return Step(line, net=transformers.CLIPModel(config).train())

    def by_hand(step: Any, batch: Any) -> Tensor:
        likeness, own = step.net(**batch).logits_per_text, torch.arange(len(batch["input_ids"]))
        return sum(F.cross_entropy(each, own, reduction="none") for each in (likeness, likeness.t())) / 2

    columns = {"input_ids": 1 + integers(VOCABULARY - 1, LENGTH), "pixel_values": normal(3, 16, 16)}
    return Setup(make_module, loaders(columns), by_hand)


@case(PACKAGE, "Wav2Vec2ForCTC", "module")
def speech() -> Setup:
    """CTC over sound, labels of different lengths."""
    options = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "conv_dim": [8, 8],
        "conv_stride": [4, 4],
        "conv_kernel": [8, 8],
        "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2,
        "mask_time_prob": 0.0,
        "ctc_loss_reduction": "mean",
    }
    columns = {"input_values": normal(400), "labels": 1 + integers(VOCABULARY - 1, 4)}
    columns["labels"][::2, 3] = IGNORED
    return _setup("Wav2Vec2ForCTC", "Wav2Vec2Config", options, columns)


@case(PACKAGE, "WhisperForConditionalGeneration", "module")
def transcription() -> Setup:
    """Spectrograms to texts."""
    sides = {f"{side}_{what}": number for side in ("encoder", "decoder") for what, number in BART.items()}
    options = {
        **sides,
        "vocab_size": VOCABULARY,
        "d_model": 16,
        "num_mel_bins": 8,
        "max_source_positions": 10,
        "max_target_positions": 16,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
        "mask_time_prob": 0.0,
    }
    columns = {"input_features": normal(8, 20), "labels": _own_labels()["labels"]}
    return _setup("WhisperForConditionalGeneration", "WhisperConfig", options, columns)


@case(PACKAGE, "TimeSeriesTransformerForPrediction", "module")
def time_series() -> Setup:
    """The negative logarithm of a distribution's density."""
    options = {
        "prediction_length": 3,
        "context_length": 6,
        "lags_sequence": [1, 2],
        "num_time_features": 1,
        "d_model": 16,
        **{f"{side}_{what}": number for side in ("encoder", "decoder") for what, number in BART.items()},
    }
    times = torch.linspace(0, 1, 11).expand(NUM_INSTANCES, 11)
    series = normal(11).cumsum(1)
    columns = {
        "past_values": series[:, :8],
        "past_time_features": times[:, :8, None].contiguous(),
        "past_observed_mask": torch.ones(NUM_INSTANCES, 8),
        "future_values": series[:, 8:],
        "future_time_features": times[:, 8:, None].contiguous(),
    }
    return _setup("TimeSeriesTransformerForPrediction", "TimeSeriesTransformerConfig", options, columns)


@case(PACKAGE, "PatchTSTForPrediction", "module")
def patches_of_series() -> Setup:
    """Patches of several channels, the mean squared error."""
    options = {
        "num_input_channels": 2,
        "context_length": 8,
        "patch_length": 4,
        "patch_stride": 4,
        "prediction_length": 3,
        "d_model": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "ffn_dim": 16,
        "loss": "mse",
    }
    columns = {"past_values": normal(8, 2), "future_values": normal(3, 2)}
    return _setup("PatchTSTForPrediction", "PatchTSTConfig", options, columns)
