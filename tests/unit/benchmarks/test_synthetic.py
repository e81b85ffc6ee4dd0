from __future__ import annotations

import cext
from benchmarks.micro.synthetic import make


def test_a_made_up_image_is_one_that_the_checker_takes() -> None:
    made = make(300)
    erofs, tables = cext.encode_image(made.tree, made.packs)
    cext.check_image(erofs, tables)


def test_the_same_seed_makes_the_same_image_and_another_does_not() -> None:
    assert make(50) == make(50)
    assert make(50, seed=2).tree != make(50).tree
