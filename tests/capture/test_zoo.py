"""What is captured from whole modules, and that nothing of them changes."""

from __future__ import annotations

import inspect
import re

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule, AutoAssistPolicy, InstanceLossCapture
from lightning_autoassist.capture.interceptor import observe_training_steps
from tests.helpers import zoo
from tests.helpers.ordinary import trainer
from tests.helpers.zoo_cases import (
    BATCH_SIZE,
    CAPTURED,
    CASES,
    CE,
    KNOWS_COMPILED_CAPTURE,
    NUM_INSTANCES,
    UNFILTERED,
    Case,
    Columns,
    loader_of,
    name_of,
    nll,
    of_tokens,
    random_columns,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:this run trains on"),
    pytest.mark.filterwarnings("ignore:.*is taken for the mean of one loss an instance"),
    pytest.mark.filterwarnings("ignore:the loss has terms beside the instances' own"),
]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """So small networks only wait for further threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Recording(AutoAssistCallback):
    """The callback, with notes of each step: what was observed, and what by hand was to be.

    Args:
        by_hand: See :class:`Case`; None: nothing is compared.
    """

    def __init__(self, by_hand=None, **options):
        super().__init__(**options)
        self.by_hand = by_hand
        self.observations = []
        self.explanations = []
        self.weights_drawn = []
        self.batches = []
        self.expected = []
        self._steps.capture.explain = self.explanations.append

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch)
        if self.by_hand is not None:
            with torch.no_grad(), torch.random.fork_rng():  # dropout draws the same again in the step
                self.expected.append(self.by_hand(pl_module, batch))

    def on_fit_start(self, trainer, pl_module):
        self.leave = observe_training_steps(trainer.strategy, self.note)  # around the callback's own observer
        super().on_fit_start(trainer, pl_module)

    def note(self, step):
        output = step.run()
        answer = self._steps.answer
        if answer is not None:
            loss = output["loss"] if isinstance(output, dict) else output
            self.observations.append((answer.observation, None if loss is None else loss.detach().clone()))
            self.weights_drawn.append(answer.draw.weights)
        return output

    def teardown(self, trainer, pl_module, stage):
        self.leave()
        super().teardown(trainer, pl_module, stage)


def fit(case, callback=None, budget=1.0, epochs=1, **options):
    pl.seed_everything(0, verbose=False)
    module = case.module()
    run = trainer(max_epochs=epochs, callbacks=[] if callback is None else [callback], **options)
    if callback is None:
        run.fit(module, train_dataloaders=loader_of(case))
    else:
        run.fit(module, datamodule=AutoAssistDataModule(loader_of(case), budget=budget))
    return module


def keeping_all(score="gradient_norm", **options):
    return Recording(policy=AutoAssistPolicy(gamma=1.0), score=score, **options)


@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.1}, {"precision": "bf16-mixed"}],
    ids=str,
)
@pytest.mark.parametrize("case", CASES, ids=name_of)
@pytest.mark.filterwarnings("ignore:AutoAssist stopped filtering")
def test_nothing_filtered_nothing_changed(case, options):
    if options and "precision" not in options and case.module in (zoo.Gan, zoo.Manual):
        pytest.skip("the Trainer refuses these options for manual optimization")
    try:
        expected = fit(case, **options).state_dict()
    except RuntimeError as error:  # plain Lightning: some processors have no kernel for recurrent layers in bfloat16
        if "could not create a primitive" not in str(error):
            raise
        pytest.skip(str(error))
    found = fit(case, keeping_all(), **options).state_dict()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("case", CASES, ids=name_of)
@pytest.mark.filterwarnings("ignore:AutoAssist stopped filtering")
def test_weights_of_one_change_nothing(case):
    """In the first pass everything is kept; its weights go all the way through."""
    expected = fit(case).state_dict()
    callback = Recording(reweighting="inverse_probability", score="gradient_norm")
    found = fit(case, callback).state_dict()
    assert len(callback.weights_drawn) == (3 if case.losses else 0)
    assert all((drawn == 1).all() for drawn in callback.weights_drawn)
    assert callback.reweighting == "inverse_probability"
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("case", [case for case in CAPTURED if case.adds_up], ids=name_of)
@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_weights_weigh_the_gradients_of_instances(case):
    pl.seed_everything(0, verbose=False)
    module, batch, weights = case.module(), next(iter(loader_of(case))), torch.rand(BATCH_SIZE) + 0.5
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    rng = torch.get_rng_state()
    with InstanceLossCapture().step(batch, BATCH_SIZE, weights=weights, module=module) as step:
        output = module.training_step(batch, 0)
    assert step.observe(output).losses.shape == (BATCH_SIZE,)
    found = torch.autograd.grad(output["loss"] if isinstance(output, dict) else output, parameters)
    torch.set_rng_state(rng)
    expected = torch.autograd.grad((case.by_hand(module, batch) * weights).mean(), parameters)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.fixture
def _process_group(monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "0")
    yield
    torch.distributed.destroy_process_group()  # Lightning leaves it, and later Trainers would think they are many


@pytest.mark.usefixtures("_process_group")
@pytest.mark.parametrize("case", [CASES[0], CASES[2]], ids=name_of)
def test_a_module_wrapped_for_distributed_training_is_captured_and_unchanged(case):
    """One process, whose module Lightning wraps in DistributedDataParallel."""
    options = {"strategy": "ddp", "use_distributed_sampler": False}  # else plain Lightning draws in an order of its own
    expected = fit(case, **options).state_dict()
    callback = keeping_all()
    found = fit(case, callback, **options).state_dict()
    assert len(callback.observations) == 3
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("case", CAPTURED, ids=name_of)
def test_what_is_captured(case):
    callback = keeping_all(score="loss", by_hand=case.by_hand)
    fit(case, callback)
    assert len(callback.observations) == len(callback.expected) == NUM_INSTANCES // BATCH_SIZE
    for (observation, loss), expected, batch in zip(
        callback.observations, callback.expected, callback.batches, strict=True
    ):
        torch.testing.assert_close(observation.losses, expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(observation.scores, observation.losses)  # as asked for: score="loss"
        if case.adds_up:
            torch.testing.assert_close(observation.losses.mean(), loss, rtol=1e-5, atol=1e-6)
        if case.has_labels:
            assert torch.equal(observation.labels, batch["labels"] if isinstance(batch, dict) else batch[1])
        else:
            assert observation.labels is None
        assert_is_source(observation.source, case)
    for parts in callback.explanations:
        assert [part.coefficient for part in parts] == pytest.approx(list(case.coefficients))


def assert_is_source(source, case):
    """Whether it names the losses, and lines of the class that calls them."""
    if case.losses == ("instance_loss",):
        assert re.fullmatch(rf"instance_loss of {case.module.__name__}\.(training_step|instance_loss)", source)
        return
    lines, first = inspect.getsourcelines(case.calls_from or case.module)
    for part, name in zip(source.split(" + "), case.losses, strict=True):
        found, line = re.fullmatch(r"(.+) at zoo\.py:(\d+)", part).groups()
        assert found == name
        assert first <= int(line) < first + len(lines)


@pytest.mark.parametrize("case", UNFILTERED, ids=name_of)
def test_what_cannot_be_told_apart_trains_unfiltered_with_one_warning(case):
    callback = Recording(score="loss")
    with pytest.warns(UserWarning, match="AutoAssist stopped filtering") as caught:
        fit(case, callback, budget=1.0, epochs=3)
    (message,) = [str(each.message) for each in caught if "stopped filtering" in str(each.message)]
    assert f"{case.module.__name__}.training_step" in message
    assert "instance_loss" in message
    assert callback.observations == []
    assert callback.summary()["keep_rate"] == 1


@pytest.mark.parametrize("case", CAPTURED, ids=name_of)
@pytest.mark.parametrize("reweighting", ["none", "inverse_probability"])
def test_every_module_trains_filtered(case, reweighting):
    callback = Recording(reweighting=reweighting, score="loss")
    module = fit(case, callback, budget=1.0, epochs=6)
    assert callback.summary()["keep_rate"] < 1
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_two_views_are_told_apart_on_request():
    callback = Recording(score="loss")
    callback._steps.capture = InstanceLossCapture(score="loss", row_order="time_major")
    fit(Case(zoo.TwoViews, "features", ("cross_entropy",)), callback)
    assert len(callback.observations) == 3
    for observation, loss in callback.observations:
        torch.testing.assert_close(observation.losses.mean(), loss)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_scripted_losses_are_captured():
    @torch.jit.script
    def scripted(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits, labels)

    class Scripted(zoo.Base):
        def training_step(self, batch, batch_idx):
            return scripted(self.net(batch[0]), batch[1])

    callback = keeping_all()
    fit(Case(Scripted, "features", ()), callback)
    assert len(callback.observations) == 3
    for observation, loss in callback.observations:
        assert observation.source == "nll_loss in the autograd graph"
        torch.testing.assert_close(observation.losses.mean(), loss)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_step_that_returns_nothing_now_and_then_costs_no_filtering():
    class Sometimes(zoo.Base):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 1 else F.cross_entropy(self.net(batch[0]), batch[1])

    callback = keeping_all()
    fit(Case(Sometimes, "features", ()), callback, epochs=2)
    assert len(callback.observations) == 4


@pytest.mark.skipif(not KNOWS_COMPILED_CAPTURE, reason="torch.compile below 2.7 knows no function modes")
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of torch.compile itself
@pytest.mark.parametrize("reweighting", ["none", "inverse_probability"])
def test_a_module_compiled_as_a_whole_is_captured(reweighting):
    """``trainer.fit(torch.compile(module))``: the step runs in compiled code, loss and all."""

    def fit_compiled(*callbacks):
        torch.compiler.reset()
        pl.seed_everything(0, verbose=False)
        module = zoo.EarlyBound()
        run = trainer(max_epochs=1, callbacks=list(callbacks))
        loader = loader_of(Case(zoo.EarlyBound, "features", CE))
        data = AutoAssistDataModule(loader, budget=1.0) if callbacks else loader
        run.fit(torch.compile(module, backend="aot_eager"), data)
        return module.state_dict()

    callback = Recording(reweighting=reweighting, score="loss")
    expected, found = fit_compiled(), fit_compiled(callback)
    assert [observation.source for observation, _ in callback.observations] == ["cross_entropy in compiled code"] * 3
    for observation, loss in callback.observations:
        torch.testing.assert_close(observation.losses.mean(), loss)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


# ---- models of transformers


def sequence_classifier(transformers, sizes):
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(num_labels=zoo.CLASSES, intermediate_size=8, problem_type=None, **sizes)
    )


def causal_language_model(transformers, sizes):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(intermediate_size=8, pad_token_id=zoo.PAD, **sizes))


@pytest.mark.parametrize("make_model", [sequence_classifier, causal_language_model])
def test_models_of_transformers_are_captured(make_model):
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": zoo.VOCABULARY, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    is_classifier = make_model is sequence_classifier
    columns = random_columns()["dict"]
    if not is_classifier:
        tokens = random_columns()["pairs"]["target"]
        mask = (tokens != zoo.PAD).long()
        columns = {"input_ids": tokens, "attention_mask": mask, "labels": tokens.where(mask > 0, -100)}

    class Wrapped(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = make_model(transformers, sizes).train()

        def training_step(self, batch, batch_idx):
            return self.model(**batch).loss

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    def by_hand(module, batch):
        logits = module.model(**{name: value for name, value in batch.items() if name != "labels"}).logits
        if is_classifier:
            return nll(logits, batch["labels"])
        counts = (batch["labels"][:, 1:] != -100).float()
        return of_tokens(logits[:, :-1], batch["input_ids"][:, 1:], counts)

    def run(*callbacks):
        pl.seed_everything(0, verbose=False)
        module, loader = Wrapped(), DataLoader(Columns(columns), batch_size=BATCH_SIZE, shuffle=True)
        data = AutoAssistDataModule(loader, budget=1.0) if callbacks else loader
        trainer(max_epochs=1, callbacks=list(callbacks)).fit(module, data)
        return module.state_dict()

    for options in ({"policy": AutoAssistPolicy(gamma=1.0)}, {"reweighting": "inverse_probability"}):
        callback = Recording(by_hand, score="loss", **options)
        expected, found = run(), run(callback)
        assert len(callback.observations) == 3
        for (observation, _), losses, batch in zip(
            callback.observations, callback.expected, callback.batches, strict=True
        ):
            assert observation.source.startswith("cross_entropy at ")
            torch.testing.assert_close(observation.losses, losses, rtol=1e-5, atol=1e-6)
            if is_classifier:
                assert torch.equal(observation.labels, batch["labels"])
            else:
                assert observation.labels is None
        for name, value in expected.items():
            assert torch.equal(found[name], value), name


# ---- what is left behind


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("case", CASES, ids=name_of)
@pytest.mark.filterwarnings("ignore:AutoAssist stopped filtering")
def test_nothing_of_ours_is_left(case, fails):
    class Failing(case.module):
        def training_step(self, batch, batch_idx):
            output = super().training_step(batch, batch_idx)
            if fails and batch_idx == 1:
                raise ArithmeticError("the user's own")
            return output

    def run(*callbacks):
        pl.seed_everything(0, verbose=False)
        module, fitted = Failing(), trainer(max_epochs=1, callbacks=list(callbacks))
        loader = loader_of(case)
        data = AutoAssistDataModule(loader, budget=1.0) if callbacks else loader
        if fails:
            with pytest.raises(ArithmeticError, match="the user's own"):
                fitted.fit(module, data)
        else:
            fitted.fit(module, data)
        return module, fitted

    (plain, plain_run), (module, fitted) = run(), run(AutoAssistCallback(reweighting="inverse_probability"))
    for found, expected in zip(module.modules(), plain.modules(), strict=True):
        assert found.__dict__.keys() == expected.__dict__.keys()
        assert found._buffers.keys() == expected._buffers.keys()
        for hooks in (name for name in found.__dict__ if name.endswith("_hooks")):
            assert len(getattr(found, hooks)) == len(getattr(expected, hooks)), hooks
    for parameter in module.parameters():
        assert not parameter._backward_hooks
        assert not parameter._post_accumulate_grad_hooks
    assert fitted.strategy.__dict__.keys() == plain_run.strategy.__dict__.keys()
    assert not torch.overrides._get_current_function_mode_stack()


@pytest.mark.parametrize("reweighting", ["none", "inverse_probability"])
def test_an_error_in_the_users_loss_is_the_users(reweighting):
    class Wrong(zoo.Base):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch[0]), batch[1] + 7 * batch_idx)

    case, messages = Case(Wrong, "features", ()), []
    for callback in (None, AutoAssistCallback(reweighting=reweighting)):
        with pytest.raises(IndexError) as raised:
            fit(case, callback)
        messages.append(str(raised.value))
        assert not torch.overrides._get_current_function_mode_stack()
    assert messages[0] == messages[1]
