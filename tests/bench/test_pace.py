"""Tests of a sweep that are left out."""

from dataclasses import replace

from scripted_placement import scripted_placement

from trilithon.bench.progress import Pace
from trilithon.engines.base import Settings
from trilithon.measure.records import Test

PP, TG = Test(kind="pp", prompt_tokens=512), Test(kind="tg", generated_tokens=64)


def test_what_would_take_too_long_is_left_out() -> None:
    placement = scripted_placement(settings=Settings(context=100_000))
    pace = Pace(60.0)
    assert pace.objection(placement, replace(PP, depth=8192)) == ""  # nothing is known yet
    pace.note(placement, PP, 5.12)
    pace.note(placement, TG, 900.0)  # it says nothing of prompts
    assert pace.objection(placement, replace(PP, depth=4096)) == ""
    assert pace.objection(placement, replace(PP, depth=8192)) == "it would take about 87 s, more than 60 s"
    assert pace.objection(placement, PP) == ""
    pace.note(placement, replace(PP, depth=1024), 30.72)  # attention is slower the deeper it goes
    assert pace.objection(placement, replace(TG, depth=4096)) == "it would take about 82 s, more than 60 s"
    pace.note(placement, replace(TG, depth=4096), 100.0)
    assert pace.objection(placement, replace(TG, depth=4096)) == ""  # measured once, it is measured in every round
    other = scripted_placement("scripted/npu", settings=Settings(context=100_000))
    assert pace.objection(other, replace(PP, depth=8192)) == ""


def test_what_does_not_fit_the_context_is_left_out() -> None:
    placement = scripted_placement(settings=Settings(context=4096))
    depth = replace(PP, depth=4096)
    assert Pace(60.0).objection(placement, depth) == "it takes 4610 tokens, and the context has 4096"
    assert Pace(60.0).objection(placement, replace(PP, depth=2048)) == ""
    assert Pace(None).objection(placement, depth) == ""  # the engine says so, where the depth was asked for
