"""No changed file is accepted silently: loading one raises PlanError or gives an equal plan."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plan_examples import golden

import plans
from plans import Plan, PlanError
from plans.files import decode
from plans.format import seal

PLAN = golden()["heun-12x19"]
TEXT = plans.dumps(PLAN)
SMALL = plans.Plan.full(
    model=plans.ModelSpec(class_name="M", layers=2, heads=1, head_dim=1, tokens=4, in_channels=1, out_channels=1),
    sampler=plans.SamplerSpec(class_name="S", settings={"a": [1, 2.5]}, timesteps=(2.0, 1.0)),
    guidance=plans.GuidanceSpec(scale=4.0, layout="cond_first"),
)

# Deadlines and the health check of speed go by the wall clock, and would fail on a busy machine.
PATIENT = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _load(data: bytes) -> Plan:
    return plans.loads(decode(data, "plan.json"))


def _refused_or_equal(data: bytes, plan: Plan) -> bool:
    """Whether the bytes are refused; any other exception, or another plan, fails the test."""
    try:
        loaded = _load(data)
    except PlanError:
        return True
    assert loaded == plan
    return False


def test_every_single_byte_changed_deleted_or_doubled() -> None:
    data = plans.dumps(SMALL).encode()
    refused = 0
    for index in range(len(data)):
        for replaced in (bytes([data[index] ^ 1]), b"", data[index : index + 1] * 2, b"\xff"):
            refused += _refused_or_equal(data[:index] + replaced + data[index + 1 :], SMALL)
    assert refused > 2 * len(data)  # what is accepted is white space


def test_every_truncation_is_refused() -> None:
    data = plans.dumps(SMALL).encode()
    assert all(_refused_or_equal(data[:length], SMALL) for length in range(len(data.rstrip())))


@PATIENT
@given(edits=st.lists(st.tuples(st.integers(0, len(TEXT) - 1), st.integers(0, 3), st.binary(max_size=4)), min_size=1))
def test_random_bytes(edits: list[tuple[int, int, bytes]]) -> None:
    data = TEXT.encode()
    for start, length, replaced in edits:
        data = data[:start] + replaced + data[start + length :]
    _refused_or_equal(data, PLAN)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(list(plans.Method)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """The document with one value replaced, removed or added somewhere."""
    document: dict[str, Any] = json.loads(TEXT)
    place: Any = document
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw(st.sampled_from(keys)) if keys else None
        if key is None or not isinstance(place[key], dict | list) or draw(st.integers(0, 3)) == 0:
            break
        place = place[key]
    action = draw(st.sampled_from(["replace", "remove", "add"]))
    if action == "add" or key is None:
        value = draw(json_values)
        place.append(value) if isinstance(place, list) else place.__setitem__(draw(st.text(max_size=8)), value)
    elif action == "remove":
        del place[key]
    else:
        place[key] = draw(json_values)
    return document


@PATIENT
@given(document=mutated())
def test_changed_values(document: dict[str, Any]) -> None:
    _refused_or_equal(json.dumps(document).encode(), PLAN)


@PATIENT
@given(document=mutated())
def test_changed_values_with_a_right_digest_follow_the_rules_or_are_refused(document: dict[str, Any]) -> None:
    """Behind the digest the rules hold too: what they let through can be written and read again."""
    try:
        text = json.dumps(seal(document))
        loaded = plans.loads(text)
    except ValueError:  # PlanError, or a NaN that cannot be sealed
        return
    assert plans.loads(plans.dumps(loaded)) == loaded


@PATIENT
@given(data=st.data())
def test_a_key_given_twice_is_refused_even_with_its_own_value(data: st.DataObject) -> None:
    lines = TEXT.splitlines()
    keyed = [index for index, line in enumerate(lines) if '": ' in line and not line.endswith(("{", "["))]
    index = data.draw(st.sampled_from(keyed))
    line = lines[index]
    doubled = [line.rstrip(",") + ",", line]
    try:
        plans.loads("\n".join(lines[:index] + doubled + lines[index + 1 :]))
    except PlanError as error:
        assert "twice in one object" in str(error)
    else:
        raise AssertionError(f"accepted {line.strip()} twice")
