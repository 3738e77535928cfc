from __future__ import annotations

import json
import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewshot.evaluation.threshold import POINTS, Calibration, calibrate
from fewshot.evaluation.verification import labelled_pairs, pairs_within, similarity
from finetune.errors import InputError

# Few values, so that ties are frequent, two of them neighbours; of a same and of a different pair one score at least.
LEVELS = st.sampled_from([-4.0, -3.0, -0.1, 0.0, 0.5, math.nextafter(0.5, 1), 1.0, 3.0, 4.0])
BOTH = st.tuples(st.lists(LEVELS, min_size=1, max_size=12), st.lists(LEVELS, min_size=1, max_size=12))
RATES = st.floats(0.001, 0.999)


def pairs(both: tuple[list[float], list[float]]) -> tuple[np.ndarray, np.ndarray]:
    same, different = both
    return np.array(same + different), np.arange(len(same) + len(different)) < len(same)


def normal(same: int = 3000, different: int = 6000) -> tuple[np.ndarray, np.ndarray]:
    """Scores of two normal distributions, two deviations apart."""
    random = np.random.default_rng(0)
    scores = np.concatenate([random.normal(2, 1, same), random.normal(0, 1, different)])
    return scores, np.arange(same + different) < same


def rates(scores: np.ndarray, same: np.ndarray, threshold: float) -> tuple[float, float]:
    return float((scores[~same] >= threshold).mean()), float((scores[same] < threshold).mean())


@given(BOTH, RATES)
def test_the_rate_is_measured_and_at_most_the_given_one(both, rate: float) -> None:
    scores, same = pairs(both)
    found = calibrate(scores, same, false_accept_rate=rate)
    assert (found.false_accept_rate, found.false_reject_rate) == rates(scores, same, found.threshold)
    assert found.false_accept_rate <= rate
    assert [found.same(score) for score in scores] == (scores >= found.threshold).tolist()
    # The next lower threshold that would make a difference accepts too many.
    lower = scores[scores < found.threshold].max()
    assert rates(scores, same, lower)[0] > rate


@given(BOTH)
def test_false_accepts_fall_and_false_rejects_rise_with_the_threshold(both) -> None:
    scores, same = pairs(both)
    found = calibrate(scores, same)
    assert (np.diff(found.thresholds) > 0).all()
    assert (np.diff(found.false_accept) <= 0).all()
    assert (np.diff(found.false_reject) >= 0).all()
    measured = [rates(scores, same, threshold) for threshold in found.thresholds]
    assert measured == list(zip(found.false_accept, found.false_reject, strict=True))
    assert (measured[0], measured[-1]) == ((1, 0), (0, 1))


@given(BOTH)
def test_auc_is_the_share_of_correctly_ordered_pairs(both) -> None:
    above = [(one > other) + (one == other) / 2 for one in both[0] for other in both[1]]
    assert calibrate(*pairs(both)).auc == pytest.approx(sum(above) / len(above))


@given(BOTH)
def test_the_equal_error_threshold_has_the_closest_rates(both) -> None:
    scores, same = pairs(both)
    found = calibrate(scores, same)
    accepted, rejected = rates(scores, same, found.eer_threshold)
    others = zip(found.false_accept, found.false_reject, strict=True)
    assert abs(accepted - rejected) == min(abs(accept - reject) for accept, reject in others)
    assert min(accepted, rejected) <= found.eer + 1e-9
    assert found.eer - 1e-9 <= max(accepted, rejected)


@pytest.mark.slow
@given(BOTH, RATES)
def test_rates_do_not_change_under_increasing_maps(both, rate: float) -> None:
    scores, same = pairs(both)
    plain = calibrate(scores, same, false_accept_rate=rate)
    for mapped in (4 * scores, np.where(scores > 0, 8 * scores, scores), np.unique(scores, return_inverse=True)[1]):
        found = calibrate(mapped, same, false_accept_rate=rate)
        assert found.false_accept == plain.false_accept
        assert found.false_reject == plain.false_reject
        assert found.false_accept_rate == plain.false_accept_rate
        assert (found.auc, found.eer) == pytest.approx((plain.auc, plain.eer))


@pytest.mark.slow
@given(BOTH, RATES, RATES)
def test_at_gives_the_point_that_calibrate_would_choose(both, rate: float, other: float) -> None:
    scores, same = pairs(both)
    found = calibrate(scores, same, false_accept_rate=other)
    point = calibrate(scores, same, false_accept_rate=rate).at(other)
    assert point == (found.threshold, found.false_accept_rate, found.false_reject_rate)


@pytest.mark.slow
@given(BOTH, RATES)
def test_a_calibration_survives_json(both, rate: float) -> None:
    found = calibrate(*pairs(both), false_accept_rate=rate)
    assert Calibration.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found


def test_the_threshold_lies_half_way_above_the_rejected_score() -> None:
    scores, same = np.array([0.9, 0.8, 0.3, 0.6, 0.2, 0.1]), np.array([True, True, True, False, False, False])
    assert calibrate(scores, same, false_accept_rate=0.1).threshold == pytest.approx(0.7)
    assert calibrate(scores, same, false_accept_rate=0.34).threshold == pytest.approx(0.25)
    low, high = 1.0, math.nextafter(1.0, 2)
    found = calibrate(np.array([high, low]), np.array([True, False]))
    assert (found.threshold, found.false_reject_rate) == (high, 0)


def test_too_few_different_pairs_put_the_threshold_above_all_of_them() -> None:
    scores, same = normal(same=50, different=40)
    found = calibrate(scores, same, false_accept_rate=0.02)
    assert found.resolution == 1 / 40 > found.asked
    assert (found.same_pairs, found.different_pairs, found.false_accept_rate) == (50, 40, 0)
    assert found.threshold > scores[~same].max()
    best_is_different = calibrate(np.array([0.5, 1.0]), np.array([True, False]))
    assert best_is_different.threshold > 1
    assert best_is_different.false_reject_rate == 1


def test_a_thinned_curve_keeps_its_tails() -> None:
    scores, same = normal()
    found = calibrate(scores, same, false_accept_rate=0.001)
    assert POINTS / 2 < len(found.thresholds) <= POINTS + 4
    assert (found.threshold, found.false_accept_rate, found.false_reject_rate) == found.at(found.asked)
    for rate in (0.0005, 0.002, 0.01, 0.1, 0.5):
        exact = calibrate(scores, same, false_accept_rate=rate)
        point = found.at(rate)
        assert 0.75 * exact.false_accept_rate <= point.false_accept_rate <= rate
        assert point.false_reject_rate <= exact.false_reject_rate + 0.04
    accepted, true = found.roc()
    assert (accepted[0], true[0], accepted[-1], true[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(true, accepted) == pytest.approx(found.auc, abs=2e-3)


def test_normal_scores_give_a_straight_det_curve() -> None:
    accepts, rejects = calibrate(*normal(30_000, 30_000)).det()
    middle = np.abs(accepts) < 2
    slope, offset = np.polyfit(accepts[middle], rejects[middle], 1)
    assert (slope, offset) == pytest.approx((-1, -2), abs=0.05)
    assert np.isfinite(accepts).all()
    assert np.isfinite(rejects).all()


def test_torch_and_numpy_of_any_layout_agree() -> None:
    scores, same = normal(30, 30)
    scores = scores.astype(np.float32)
    scores.flags.writeable = False
    plain = calibrate(scores, same)
    assert calibrate(torch.tensor(scores).requires_grad_(), torch.tensor(same)) == plain
    assert calibrate(scores[::-1], same[::-1]) == plain
    half = torch.tensor(scores).bfloat16()
    assert calibrate(half, torch.tensor(same)) == calibrate(half.float().numpy(), same)


@pytest.mark.parametrize(
    ("scores", "same", "rate", "message"),
    [
        ([0.1, 0.2], [True, True], 0.01, "there must be pairs of the same class"),
        ([0.1, 0.2], [False, False], 0.01, "there must be pairs of the same class"),
        ([0.1, math.nan], [True, False], 0.01, "scores: 1 of 2 numbers are not finite"),
        ([0.1, math.inf], [True, False], 0.01, "scores: 1 of 2 numbers are not finite"),
        ([0.1, 0.2, 0.3], [True, False], 0.01, "scores and same must have one length, not 3 and 2"),
        ([[0.1, 0.2]], [True, False], 0.01, r"scores must be numbers of shape \(n,\)"),
        ([], [], 0.01, "scores must be numbers"),
        (["a", "b"], [True, False], 0.01, "scores must be numbers"),
        ([0.1, 0.2], [1, 0], 0.01, "same must be bool"),
        ([0.1, 0.2], [True, False], 0.0, "rate of false accepts must be between 0 and 1, not 0.0"),
        ([0.1, 0.2], [True, False], 1.0, "rate of false accepts must be between 0 and 1, not 1.0"),
        ([0.1, 0.2], [True, False], math.nan, "rate of false accepts must be between 0 and 1, not nan"),
    ],
)
def test_invalid_calibration_data_is_refused(scores, same, rate: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        calibrate(np.array(scores), np.array(same), false_accept_rate=rate)


def test_at_refuses_rates_outside_0_to_1() -> None:
    found = calibrate(*normal(10, 10))
    for rate in (0, 1, math.nan):
        with pytest.raises(InputError, match="rate of false accepts"):
            found.at(rate)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"more": 1}, "and no others"),
        ({"auc": "0.9"}, "may be damaged: auc"),
        ({"auc": True}, "may be damaged: auc"),
        ({"auc": 1.5}, "auc and eer are between 0 and 1"),
        ({"threshold": math.nan}, "does not match its curve"),
        ({"threshold": 10**400}, "may be damaged: threshold"),
        ({"threshold": 0.123}, "does not match its curve"),
        ({"asked": 1.0}, "rate of false accepts must be between 0 and 1, not 1.0"),
        ({"same_pairs": 2.5}, "may be damaged: same_pairs"),
        ({"different_pairs": 0}, "may be damaged: different_pairs"),
        ({"thresholds": 3}, "may be damaged: thresholds"),
        ({"thresholds": [3.0, 2.0, 1.0]}, "have one length"),
        ({"thresholds": [], "false_accept": [], "false_reject": []}, "have one length"),
        ({"false_accept": [0.5, None]}, "may be damaged: false_accept"),
        ({"eer_threshold": 77.0}, "eer_threshold is one of the thresholds"),
    ],
)
def test_a_damaged_calibration_is_refused(damage: dict[str, object], message: str) -> None:
    values = calibrate(*normal(10, 10)).to_dict()
    with pytest.raises(InputError, match=message):
        Calibration.from_dict(values | damage)


def test_reversed_curves_and_missing_values_are_refused() -> None:
    values = calibrate(*normal(10, 10)).to_dict()
    for name, law in (
        ("thresholds", "finite and rise"), ("false_accept", "accepts fall"), ("false_reject", "rejects rise"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=law):
            Calibration.from_dict(values | {name: values[name][::-1]})
    del values["auc"]
    with pytest.raises(InputError, match="a calibration has the entries threshold, asked"):
        Calibration.from_dict(values)
    with pytest.raises(InputError, match="a calibration has the entries threshold, asked"):
        Calibration.from_dict([1, 2])  # type: ignore[arg-type]


# --- pairs of a labelled set ------------------------------------------------------------------------------------------

LABELS = st.lists(st.sampled_from("abcd"), min_size=2, max_size=14)


@given(LABELS, st.integers(2, 100), st.integers(0, 9))
def test_labelled_pairs_are_distinct_and_correctly_labelled(labels: list[str], most: int, seed: int) -> None:
    every = [labels[i] == labels[j] for i, j in combinations(range(len(labels)), 2)]
    if all(every) or not any(every):
        with pytest.raises(InputError, match="give no pairs for calibration"):
            labelled_pairs(labels)
        return
    rows, same = labelled_pairs(labels, most=most, seed=seed)
    drawn = [(min(pair), max(pair)) for pair in rows.tolist()]
    assert len(set(drawn)) == len(drawn) == min(most, len(every))
    assert all(one < other < len(labels) for one, other in drawn)
    assert same.tolist() == [labels[one] == labels[other] for one, other in drawn]
    # All the same pairs, unless they are more than half and there are others to take.
    assert int(same.sum()) == min(sum(every), max(most // 2, most - (len(every) - sum(every))))


def test_a_sample_of_pairs_follows_its_seed_and_is_even() -> None:
    labels = torch.arange(300) % 100
    rows, same = labelled_pairs(labels, most=2000, seed=1)
    assert torch.equal(rows, labelled_pairs(labels, most=2000, seed=1)[0])
    assert not torch.equal(rows, labelled_pairs(labels, most=2000, seed=2)[0])
    assert int(same.sum()) == 300
    often = rows[~same].flatten().bincount(minlength=300).double()
    assert float(often.mean()) == pytest.approx(3400 / 300)
    assert 2 < float(often.std()) < 5


def test_a_sample_of_pairs_does_not_list_all_pairs() -> None:
    rows, same = labelled_pairs(torch.arange(100_000) // 1000, most=1000)
    assert (len(rows), int(same.sum())) == (1000, 500)
    with pytest.raises(InputError, match="most must be >= 2, not 1"):
        labelled_pairs("aab", most=1)
    with pytest.raises(InputError, match="0 pictures give no pairs"):
        labelled_pairs([])


def test_a_folder_of_classes_is_calibrated_on_its_pairs() -> None:
    labels = [f"class {number}" for number in range(10) for _ in range(5)]
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(10, 16, generator=generator).repeat_interleave(5, 0)
    vectors = vectors + 0.5 * torch.randn(50, 16, generator=generator)
    rows, same = labelled_pairs(labels)
    found = calibrate(similarity(vectors, rows), same)
    assert (found.same_pairs, found.different_pairs) == (100, 1125)
    assert found.false_accept_rate <= 0.01
    assert found.false_reject_rate < 0.1
    assert found.auc > 0.99


def test_similarities_do_not_depend_on_the_batch() -> None:
    vectors = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    rows = torch.combinations(torch.arange(400))
    for metric in ("cosine", "euclidean"):
        scores = similarity(vectors, rows, metric)
        assert len(scores) == len(rows) > 65_536
        assert torch.equal(scores[-100:], similarity(vectors, rows[-100:], metric))
        assert len(similarity(vectors, rows[:0], metric)) == 0


def test_pairs_within_groups_have_both_kinds() -> None:
    labels = torch.arange(60) // 3  # twenty classes of three pictures
    groups = labels // 5
    rows, same = pairs_within(labels, groups)
    assert torch.equal(groups[rows[:, 0]], groups[rows[:, 1]])
    assert torch.equal(same, labels[rows[:, 0]] == labels[rows[:, 1]])
    assert int(same.sum()) == 20 * 3
    assert int((~same).sum()) == 4 * 10 * 9  # of each group, all pairs of its five classes
    assert len(pairs_within(labels, groups, most=80)[0]) <= 80


def test_a_group_without_pairs_of_both_kinds_is_left_out() -> None:
    labels = torch.tensor([0, 0, 1, 2, 3, 4, 4])
    groups = torch.tensor([0, 0, 0, 1, 1, 2, 2])  # of the second all differ, of the third all are the same
    rows, _ = pairs_within(labels, groups)
    assert set(groups[rows].flatten().tolist()) == {0}
    with pytest.raises(InputError, match="give no pairs for calibration within their groups"):
        pairs_within(torch.arange(4), torch.zeros(4, dtype=torch.int64))
