import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mtlops.data.grouping import chance, connect
from mtlops.data.rows import fold

ROWS = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from([None, *"stuvwxyz"])), max_size=24)


def components(rows):
    ids = [f"id of {key}" for key, _ in rows]
    return connect(ids, keys=[key for key, _ in rows], groups=[group for _, group in rows])


def by_hand(rows):
    """Components the slow and plain way: merge what touches until nothing changes."""
    sets = [{i} for i in range(len(rows))]
    for i, (key, group) in enumerate(rows):
        for j, (other_key, other_group) in enumerate(rows):
            if key == other_key or (group is not None and group == other_group):
                one, other = (next(s for s in sets if n in s) for n in (i, j))
                if one is not other:
                    sets.remove(other)
                    one |= other
    return sorted(map(sorted, sets))


@given(ROWS)
def test_components_are_what_touches_directly_or_through_others(rows):
    found = components(rows)
    sets = [np.flatnonzero(found.of_row == c).tolist() for c in range(len(found))]
    assert sorted(sets) == by_hand(rows)
    assert found.sizes.tolist() == [len(s) for s in sets]


@given(ROWS, st.randoms())
def test_names_do_not_depend_on_the_order_of_rows(rows, random):
    shuffled = random.sample(rows, len(rows))
    assert sorted(components(rows).names) == sorted(components(shuffled).names)


def test_a_group_is_not_a_text_of_the_same_letters():
    assert len(components([("a", "b"), ("b", "c")])) == 2


def test_selected_components_number_their_own_rows():
    found = components([("a", None), ("b", "s"), ("c", "s"), ("d", None)])
    kept = found.select(np.asarray([name != "id of a" for name in found.names]))
    assert [kept.names[c] for c in kept.of_row] == ["id of b", "id of b", "id of d"]
    assert kept.sizes.sum() == 3


def test_chance_is_uniform_and_depends_on_seed_and_purpose():
    drawn = np.asarray([chance(str(n), seed=0, purpose="x") for n in range(4000)])
    assert abs(drawn.mean() - 0.5) < 0.02
    assert 0 <= drawn.min() < drawn.max() < 1
    assert len({chance("a", seed=seed, purpose=purpose) for seed in (0, 1) for purpose in "xy"}) == 4


def test_quotes_dashes_capitals_and_spaces_do_not_make_another_text():
    assert fold("The ''Conan'' of well-made  films_") == fold('the "conan" of well made films')
    assert fold("!?") == "!?"
