"""Partners come from other videos, and units are put together so that there are some."""

from collections import Counter

import numpy as np
import pytest

from lawm.evaluation import deal, derange


def test_every_partner_is_of_another_video() -> None:
    for seed in range(20):
        for groups in (list("aabbcc"), list("abcdefg"), list("aaabbb"), list("aaabbc"), list("ab")):
            partner = derange(groups, seed)
            assert partner is not None
            assert sorted(partner) == list(range(len(groups)))  # everyone is a partner once
            assert all(groups[i] != groups[j] for i, j in enumerate(partner))


def test_two_clips_have_each_other_and_a_single_video_nobody() -> None:
    assert derange(["a", "b"], 5) is not None and derange(["a", "b"], 5).tolist() == [1, 0]  # type: ignore[union-attr]
    assert derange(["a", "a", "a"], 0) is None


def test_where_one_video_has_most_clips_partners_repeat_but_are_never_its_own() -> None:
    groups = list("aaaaaabc")
    partner = derange(groups, 1)
    assert partner is not None and all(groups[i] != groups[j] for i, j in enumerate(partner))
    assert {groups[j] for i, j in enumerate(partner) if groups[i] == "a"} == {"b", "c"}


def test_seeds_pair_differently() -> None:
    groups = [f"v{i % 10}" for i in range(30)]
    one, two = derange(groups, 0), derange(groups, 1)
    assert one is not None and two is not None and one.tolist() != two.tolist()


def test_units_take_all_clips_and_leave_none_without_a_partner() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        groups = [f"v{i}" for i in rng.choice(5, rng.integers(2, 60), p=rng.dirichlet(np.full(5, 0.4)))]
        batch = int(rng.integers(2, 20))
        units = deal(groups, batch)
        taken = [i for unit in units for i in unit]
        assert len(taken) == len(set(taken)) and max(map(len, units)) <= batch + 1
        if len(set(groups)) == 1:
            assert sorted(taken) == list(range(len(groups)))
            continue
        assert all(len({groups[i] for i in unit}) > 1 for unit in units)
        others = len(groups) - max(Counter(groups).values())
        assert len(taken) == len(groups) or others * batch < len(groups)


@pytest.mark.parametrize(("clips", "batch", "sizes"), [(64, 32, [32, 32]), (65, 32, [22, 22, 21]), (3, 2, [3])])
def test_units_are_even(clips: int, batch: int, sizes: list[int]) -> None:
    assert [len(unit) for unit in deal([f"v{i}" for i in range(clips)], batch)] == sizes


def test_four_videos_in_one_unit_as_the_plan_gives_them() -> None:
    """With clips in the plan's order, 29 % of the partners on four videos were of the same one."""
    groups = [f"v{i}" for i in np.random.default_rng(0).integers(0, 4, 256)]
    for unit in deal(groups, 32):
        names = [groups[i] for i in unit]
        partner = derange(names, 0)
        assert partner is not None and all(a != names[j] for a, j in zip(names, partner, strict=True))
