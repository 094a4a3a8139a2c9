"""Losses by TRL's names against TRL's own numbers, and what `from_trl` refuses."""

import json
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import assert_refused

from flowlab.losses import (
    KTO,
    SFT,
    AlphaPO,
    OddsRatio,
    Pair,
    SimPO,
    WeightedSum,
)
from flowlab.losses.trl import from_trl

DATA = Path(__file__).parent / "data"
# `trl_losses.json` holds one loss per row as TRL's loss functions give it; `trl_more.json` what
# whole trainers minimise: lists of losses, likelihood terms, examples instead of pairs.
GOLDEN = json.loads((DATA / "trl_losses.json").read_text())["cases"]
MORE = json.loads((DATA / "trl_more.json").read_text())["cases"]

# TRL's defaults, trainer by trainer, and another value for each field.
DEFAULTS: dict[str, dict[str, Any]] = {
    "dpo": {
        "beta": 0.1,
        "label_smoothing": 0.0,
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5,
        "discopop_tau": 0.05,
    },
    "cpo": {
        "beta": 0.1,
        "label_smoothing": 0.0,
        "simpo_gamma": 0.5,
        "alpha": 0.0,
        "cpo_alpha": 1.0,
    },
    "kto": {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
    "orpo": {"beta": 0.1},
}
OTHERS: dict[str, Any] = {
    "beta": 0.3,
    "label_smoothing": 0.2,
    "f_divergence_type": "forward_kl",
    "f_alpha_divergence_coef": 0.7,
    "discopop_tau": 0.2,
    "loss_weights": [2.0],
    "simpo_gamma": 0.3,
    "alpha": 0.1,
    "cpo_alpha": 0.4,
    "desirable_weight": 1.3,
    "undesirable_weight": 0.6,
}
LOSS_TYPES = {
    "dpo": (
        "sigmoid hinge ipo exo_pair nca_pair robust bco_pair sppo_hard aot aot_unpaired apo_zero "
        "apo_down discopop sft sigmoid_norm"
    ).split(),
    "cpo": ["sigmoid", "hinge", "ipo", "simpo", "alphapo"],
    "kto": ["kto", "apo_zero_unpaired"],
    "orpo": [None, "odds_ratio_term"],
}
EVERY_LOSS = [(trainer, name) for trainer, names in LOSS_TYPES.items() for name in names]


def loss_of(case):
    """The loss of a golden row, all of whose fields of TRL are handed on."""
    fields = {name: case[name] for name in OTHERS if name in case}
    if case.get("loss_type") == "sft":
        # TRL has one β for all rows, but no β in this loss, where a value of one's own is refused.
        del fields["beta"]
    loss = from_trl(case["trainer"], case.get("loss_type"), **fields)
    if "reference_point" in case:
        held = np.asarray(case["reference_point"])
        loss = eqx.tree_at(lambda half: half.losses[0].reference_point, loss, held)
    return loss


def pairs_of(case):
    names = ["chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps"]
    names += ["chosen_len", "rejected_len"]
    pairs = Pair(*(jnp.asarray(case[name], float) for name in names))
    return with_one_token(pairs) if averaged(case) else pairs


def averaged(case):
    """True where the log-probabilities of a row are those per token already.

    TRL's loss functions for CPO's `ipo` and for ORPO are given averages, and the rows that call
    them alone hand them the log-probabilities as they stand, by which the gradients are too. Rows
    of `simpo` were averaged before the call, with gradients by the sums; so were those of whole
    trainers, which state their precision.
    """
    alone = "precision" not in case
    return alone and (case["trainer"], case["loss_type"]) in {
        ("cpo", "ipo"),
        ("orpo", "odds_ratio_term"),
    }


def with_one_token(pairs):
    one = jnp.ones_like(pairs.chosen)
    return eqx.tree_at(lambda p: (p.chosen_length, p.rejected_length), pairs, (one, one))


def names_of(case):
    """The loss types of a row, which may leave TRL's default unsaid."""
    name = case.get("loss_type", LOSS_TYPES[case["trainer"]][0])
    return name if isinstance(name, list) else [name]


def label(case):
    """A row's line in the table at the end of a run."""
    names = names_of(case)
    loss = f"{len(names)} losses" if len(names) > 3 else "+".join(n or "whole" for n in names)
    traits = [case["trainer"], loss, case.get("f_divergence_type", "")]
    traits += ["alpha"] if case.get("alpha") else []
    traits += ["(float32 in TRL)"] if single_precision(case) else []
    return " ".join(filter(None, traits))


def single_precision(case):
    """True where TRL computes in single precision: the α-divergence and ORPO, whole or not."""
    wanted = case["trainer"] == "orpo" or case.get("f_divergence_type") == "alpha_divergence"
    return case["precision"] == "float32" if "precision" in case else wanted


def relative_error(value, wanted):
    """The largest error over the elements, each relative to its own wanted value.

    No floor: an element that is wanted to be zero must be zero.
    """
    value, wanted = np.asarray(value), np.asarray(wanted)
    scale = np.where(wanted == 0, 1, np.abs(wanted))
    errors = np.where(value == wanted, 0, np.abs(value - wanted) / scale)
    return float(np.max(np.where((wanted == 0) & (value != 0), np.inf, errors)))


def numbered(cases, source):
    return [
        pytest.param(case, id=f"{source}-{row}-{label(case).replace(' ', '-')}")
        for row, case in enumerate(cases)
    ]


@pytest.mark.parametrize("case", numbered(GOLDEN, "losses") + numbered(MORE, "more"))
def test_values_and_gradients_are_those_of_trl(case, record_property):
    loss, gradient = jax.value_and_grad(loss_of(case).mean)(pairs_of(case))
    of_value = relative_error(loss, case["loss"])
    of_gradient = max(
        relative_error(gradient.chosen, case["grad_chosen"]),
        relative_error(gradient.rejected, case["grad_rejected"]),
    )
    record_property("trl_parity", [label(case), of_value, of_gradient])
    assert max(of_value, of_gradient) <= (1e-5 if single_precision(case) else 1e-10)


def test_every_loss_of_trl_has_a_row():
    rows = {(case["trainer"], name) for case in GOLDEN + MORE for name in names_of(case)}
    assert rows >= set(EVERY_LOSS)


def fields_of(name) -> dict[str, Any]:
    """The fields that TRL demands with a loss type."""
    return {"label_smoothing": 0.1} if name == "exo_pair" else {}


def mean_of(loss):
    return float(loss.mean(pairs_of(MORE[0])))


@pytest.mark.parametrize(("trainer", "name"), EVERY_LOSS)
def test_a_default_may_be_written_out(trainer, name):
    demanded = fields_of(name)
    written_out = from_trl(trainer, name, **{**DEFAULTS[trainer], **demanded})
    assert repr(written_out) == repr(from_trl(trainer, name, **demanded))


@pytest.mark.parametrize("trainer", DEFAULTS)
def test_a_trainer_without_a_loss_type_has_the_first_of_its_own(trainer):
    assert repr(from_trl(trainer)) == repr(from_trl(trainer, LOSS_TYPES[trainer][0]))


def test_without_arguments_it_is_dpo():
    assert repr(from_trl()) == "DPO(beta=0.1)"


@pytest.mark.parametrize(("trainer", "name"), EVERY_LOSS)
@pytest.mark.parametrize("field", OTHERS)
def test_a_field_changes_the_loss_or_is_refused(trainer, name, field):
    demanded = fields_of(name)
    given = {**demanded, field: OTHERS[field]}
    try:
        changed = from_trl(trainer, name, **given)
    except ValueError as error:
        assert str(error).startswith(f"Argument `{field}` must ")
    else:
        assert mean_of(changed) != mean_of(from_trl(trainer, name, **demanded))


def test_a_field_has_an_effect_if_one_loss_of_a_list_has_it():
    both = from_trl("dpo", ["sft", "robust"], label_smoothing=0.2, beta=0.3)
    wanted = mean_of(from_trl("dpo", "robust", label_smoothing=0.2, beta=0.3)) + mean_of(SFT())
    np.testing.assert_allclose(mean_of(both), wanted, rtol=1e-14)


def test_a_list_is_a_sum_weighted_with_one_each_unless_weights_are_given():
    names, weights = ["sigmoid", "ipo"], [0.8, 0.2]
    values = np.asarray([mean_of(from_trl("dpo", name)) for name in names])
    plain, weighted = from_trl("dpo", names), from_trl("dpo", tuple(names), loss_weights=weights)
    np.testing.assert_allclose(mean_of(plain), sum(values), rtol=1e-14)
    np.testing.assert_allclose(mean_of(weighted), values @ weights, rtol=1e-14)


def test_a_list_of_one_loss_is_that_loss():
    assert repr(from_trl("dpo", ["hinge"])) == repr(from_trl("dpo", "hinge"))


@pytest.mark.parametrize("name", LOSS_TYPES["kto"])
def test_the_loss_of_kto_is_half_of_the_sum_over_the_pair_at_the_reference_point_zero(name):
    loss = from_trl("kto", name, beta=0.3, desirable_weight=1.3, undesirable_weight=0.6)
    assert repr(loss) == repr(WeightedSum((KTO(0.3, 1.3, 0.6, 0.0),), np.asarray([0.5])))


def test_alpha_zero_is_simpo_and_any_other_is_alphapo():
    assert type(from_trl("cpo", "simpo")) is type(from_trl("cpo", "alphapo")) is SimPO
    assert type(from_trl("cpo", "simpo", alpha=-0.1)) is AlphaPO
    assert type(from_trl("cpo", "alphapo", alpha=0.1)) is AlphaPO


def test_alphapo_has_no_likelihood_and_simpo_has_that_of_trl():
    without, likelihood = (from_trl("cpo", name, alpha=0.1) for name in ("alphapo", "simpo"))
    assert isinstance(without, AlphaPO)
    assert isinstance(likelihood, AlphaPO)
    assert (without.nll_weight, likelihood.nll_weight) == (0, 1)


def test_the_weight_that_trl_sets_for_alphapo_may_be_written_out():
    for written in (0.0, 0, 1.0):
        loss = from_trl("cpo", "alphapo", alpha=0.1, cpo_alpha=written)
        assert repr(loss) == repr(from_trl("cpo", "alphapo", alpha=0.1))


def test_a_strength_may_be_given_for_each_pair():
    betas = np.asarray([0.1, 0.2])
    assert repr(from_trl("dpo", "hinge", beta=betas)) == "Hinge(beta=[0.1, 0.2])"


def test_the_term_of_orpo_stands_alone_under_its_own_name():
    assert repr(from_trl("orpo", "odds_ratio_term", beta=0.3)) == repr(OddsRatio(0.3))


def test_a_divergence_may_stand_with_sft_beside_a_loss_that_reads_it():
    loss = from_trl("dpo", ["sigmoid", "sft"], f_divergence_type="forward_kl")
    wanted = mean_of(from_trl("dpo", "sigmoid", f_divergence_type="forward_kl")) + mean_of(SFT())
    np.testing.assert_allclose(mean_of(loss), wanted, rtol=1e-14)


OF_SCORES = "'discopop', 'exo_pair', 'hinge', 'ipo', 'robust', 'sigmoid', 'sigmoid_norm'"
REFUSED = {
    "an unknown trainer": (
        ("ppo", None, {}),
        "Argument `trainer` must be one of 'dpo', 'cpo', 'kto', 'orpo', but is 'ppo'.",
    ),
    "a trainer that is no name": (
        (["dpo"], None, {}),
        "Argument `trainer` must be one of 'dpo', 'cpo', 'kto', 'orpo', but is ['dpo'].",
    ),
    "an unknown loss type": (
        ("dpo", "simpo", {}),
        "Argument `loss_type` must be one of 'sigmoid', 'hinge', 'ipo', 'exo_pair', 'nca_pair', "
        "'robust', 'bco_pair', 'sppo_hard', 'aot', 'aot_unpaired', 'apo_zero', 'apo_down', "
        "'discopop', 'sft', 'sigmoid_norm' for the trainer 'dpo', but is 'simpo'.",
    ),
    "an unknown loss type in a list": (
        ("dpo", ["sigmoid", 3], {}),
        "Argument `loss_type` must be one of 'sigmoid', 'hinge', 'ipo', 'exo_pair', 'nca_pair', "
        "'robust', 'bco_pair', 'sppo_hard', 'aot', 'aot_unpaired', 'apo_zero', 'apo_down', "
        "'discopop', 'sft', 'sigmoid_norm' for the trainer 'dpo', but is 3.",
    ),
    "a loss type of orpo": (
        ("orpo", "orpo", {}),
        "Argument `loss_type` must be one of None, 'odds_ratio_term' for the trainer 'orpo', "
        "but is 'orpo'.",
    ),
    "a list outside dpo": (
        ("cpo", ["sigmoid"], {}),
        "Argument `loss_type` must be a single name for the trainer 'cpo', but is ['sigmoid'].",
    ),
    "an empty list": (
        ("dpo", [], {}),
        "Argument `loss_type` must name a loss, but is empty.",
    ),
    "an unknown divergence": (
        ("dpo", "sigmoid", {"f_divergence_type": "kl"}),
        "Argument `f_divergence_type` must be one of 'reverse_kl', 'forward_kl', 'js_divergence', "
        "'alpha_divergence', but is 'kl'.",
    ),
    "a field of another trainer": (
        ("kto", None, {"label_smoothing": 0.0}),
        "Argument `label_smoothing` must be left out for the trainer 'kto', which has no such "
        "field, but is 0.0; its fields are `beta`, `desirable_weight`, `undesirable_weight`.",
    ),
    "weights outside dpo": (
        ("orpo", None, {"loss_weights": [1.0]}),
        "Argument `loss_weights` must be left out for the trainer 'orpo', which has no such field, "
        "but is [1.0]; its fields are `beta`.",
    ),
    "a divergence with a loss that is of no difference": (
        ("dpo", ["sigmoid", "nca_pair", "aot"], {"f_divergence_type": "forward_kl"}),
        "Argument `f_divergence_type` must be 'reverse_kl' with the loss 'nca_pair', 'aot', but is "
        f"'forward_kl', which TRL has only for {OF_SCORES}.",
    ),
    "a divergence with sft alone": (
        ("dpo", "sft", {"f_divergence_type": "forward_kl"}),
        "Argument `f_divergence_type` must keep its default 'reverse_kl' with the loss 'sft', "
        "where it has no effect, but is 'forward_kl'; the fields with an effect are "
        "`loss_weights`.",
    ),
    "beta with sft alone": (
        ("dpo", "sft", {"beta": 0.5}),
        "Argument `beta` must keep its default 0.1 with the loss 'sft', where it has no effect, "
        "but is 0.5; the fields with an effect are `loss_weights`.",
    ),
    "smoothing that sigmoid does not have": (
        ("dpo", "sigmoid", {"label_smoothing": 0.1}),
        "Argument `label_smoothing` must keep its default 0.0 with the loss 'sigmoid', where it "
        "has no effect, but is 0.1; the fields with an effect are `beta`, `f_divergence_type`, "
        "`loss_weights`; the smoothed sigmoid loss is `losses.ConservativeDPO`.",
    ),
    "a weight of the tail": (
        ("dpo", None, {"ld_alpha": 0.5}),
        "Argument `ld_alpha` must be None or 1, but is 0.5; it weights the tokens of the longer "
        "response beyond the length of the shorter one, and a pair holds the log-probabilities of "
        "whole responses.",
    ),
    "weights by likelihood": (
        ("dpo", None, {"use_weighting": True}),
        "Argument `use_weighting` must be None or False, but is True; it weights pairs by the "
        "probabilities of their responses, without a gradient, so that training does not follow "
        "the gradient of a loss.",
    ),
    "a reference that moves": (
        ("kto", None, {"sync_ref_model": True}),
        "Argument `sync_ref_model` must be None or False, but is True; it moves the reference "
        "during training, and the reference of a flow is constant.",
    ),
    "a field that nobody knows": (
        ("dpo", None, {"learning_speed": 1.0}),
        "Argument `learning_speed` must be left out, but is given; TRL 1.16.0 has no field of "
        "that name.",
    ),
    "smoothing that no loss of a list has": (
        ("dpo", ["hinge", "sft"], {"label_smoothing": 0.1}),
        "Argument `label_smoothing` must keep its default 0.0 with the loss 'hinge', 'sft', where "
        "it has no effect, but is 0.1; the fields with an effect are `beta`, `f_divergence_type`, "
        "`loss_weights`.",
    ),
    "smoothing of the hinge of cpo": (
        ("cpo", "hinge", {"label_smoothing": 0.1}),
        "Argument `label_smoothing` must keep its default 0.0 with the loss 'hinge', where it has "
        "no effect, but is 0.1; the fields with an effect are `beta`, `alpha`, `cpo_alpha`.",
    ),
    "smoothing of the ipo of cpo": (
        ("cpo", "ipo", {"label_smoothing": 0.1}),
        "Argument `label_smoothing` must keep its default 0.0 with the loss 'ipo', where it has "
        "no effect, but is 0.1; the fields with an effect are `beta`, `alpha`, `cpo_alpha`.",
    ),
    "a coefficient without its divergence": (
        ("dpo", "sigmoid", {"f_alpha_divergence_coef": 0.3}),
        "Argument `f_alpha_divergence_coef` must keep its default 0.5 without 'alpha_divergence', "
        "where it has no effect, but is 0.3; the fields with an effect are `beta`, "
        "`f_divergence_type`, `loss_weights`.",
    ),
    "a temperature without discopop": (
        ("dpo", "robust", {"discopop_tau": 0.1}),
        "Argument `discopop_tau` must keep its default 0.05 with the loss 'robust', where it has "
        "no effect, but is 0.1; the fields with an effect are `beta`, `label_smoothing`, "
        "`f_divergence_type`, `loss_weights`.",
    ),
    "a margin without simpo": (
        ("cpo", "sigmoid", {"simpo_gamma": 0.1}),
        "Argument `simpo_gamma` must keep its default 0.5 with the loss 'sigmoid', where it has "
        "no effect, but is 0.1; the fields with an effect are `beta`, `label_smoothing`, `alpha`, "
        "`cpo_alpha`.",
    ),
    "a likelihood with alphapo": (
        ("cpo", "alphapo", {"cpo_alpha": 0.3}),
        "Argument `cpo_alpha` must keep its default 1.0 or be 0.0 with the loss 'alphapo', where "
        "it has no effect, but is 0.3; the fields with an effect are `beta`, `label_smoothing`, "
        "`simpo_gamma`, `alpha`.",
    ),
    "several strengths with sft alone": (
        ("dpo", "sft", {"beta": np.asarray([0.1, 0.2])}),
        "Argument `beta` must keep its default 0.1 with the loss 'sft', where it has no effect, "
        "but is array([0.1, 0.2]); the fields with an effect are `loss_weights`.",
    ),
    "several shapes": (
        ("cpo", "alphapo", {"alpha": np.asarray([0.1, 0.2])}),
        "Argument `alpha` must be a single number, but has shape (2,).",
    ),
    "several smoothings": (
        ("dpo", "exo_pair", {"label_smoothing": np.asarray([0.1, 0.2])}),
        "Argument `label_smoothing` must be a single number, but has shape (2,).",
    ),
    "exo_pair without smoothing": (
        ("dpo", "exo_pair", {}),
        "Argument `label_smoothing` must be positive with the loss 'exo_pair', but is 0.0; its "
        "paper recommends 1e-3.",
    ),
    "weights of another number than the losses": (
        ("dpo", ["sigmoid", "sft"], {"loss_weights": [1.0]}),
        "Argument `loss_weights` must have shape (2,), one weight per loss type, but has shape "
        "(1,).",
    ),
    "a weight that is no list": (
        ("dpo", "sigmoid", {"loss_weights": 2.0}),
        "Argument `loss_weights` must have shape (1,), one weight per loss type, but has shape ().",
    ),
    "a value that the loss itself refuses": (
        ("dpo", "sigmoid", {"beta": -1.0}),
        "Argument `beta` must be positive and finite, but is -1.0.",
    ),
}


@pytest.mark.parametrize(("given", "message"), REFUSED.values(), ids=REFUSED)
def test_it_is_refused(given, message):
    trainer, loss_type, fields = given
    assert_refused(from_trl, message, trainer, loss_type, **fields)


CONFIGS = json.loads((DATA / "trl_configs.json").read_text())


@pytest.mark.parametrize("trainer", CONFIGS)
def test_a_whole_configuration_is_the_loss_of_its_trainer(trainer):
    assert repr(from_trl(**CONFIGS[trainer])) == repr(from_trl(trainer))
    assert repr(from_trl(trainer, **CONFIGS[trainer])) == repr(from_trl(trainer))


def test_a_whole_configuration_keeps_what_it_says_of_the_loss():
    changed = {"loss_type": ["robust", "sft"], "loss_weights": [1.0, 0.5], "label_smoothing": 0.2}
    given = {**CONFIGS["dpo"], **changed, "learning_rate": 3e-5, "__cached__setup_devices": "cpu"}
    assert repr(from_trl(**given)) == repr(from_trl("dpo", **changed))


def test_a_whole_configuration_with_a_field_of_no_effect_is_refused():
    with pytest.raises(ValueError, match="^Argument `discopop_tau` must keep its default 0.05"):
        from_trl(**{**CONFIGS["dpo"], "discopop_tau": 0.3})


def test_a_weight_of_one_on_the_tail_changes_nothing():
    assert repr(from_trl(ld_alpha=1.0, use_weighting=False)) == repr(from_trl())
