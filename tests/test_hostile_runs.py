"""The files of a run, damaged or made up: a whole result, or one sentence that names the file."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_compare import write_run

import compare
from support.commands import InputError
from support.run_folder import read_settings

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner,
                                                                max_size=3), max_leaves=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("hostile") / "run", 0.5)


@settings(deadline=None, max_examples=80,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_run_with_damaged_files_is_compared_whole_or_named(folder, data):
    name = data.draw(st.sampled_from(["run.json", "scores.json", "log.jsonl"]))
    sound = (folder / name).read_bytes()
    if data.draw(st.booleans()):  # damaged bytes
        at = data.draw(st.integers(0, len(sound) - 1))
        damaged = sound[:at] + data.draw(st.binary(max_size=3)) + sound[at + 1 :]
    else:  # one value is another
        lines = sound.splitlines() if name == "log.jsonl" else [sound]
        values = json.loads(lines[0])
        values[data.draw(st.sampled_from(sorted(values)))] = data.draw(VALUES)
        damaged = b"\n".join([json.dumps(values).encode(), *lines[1:]])
    try:
        (folder / name).write_bytes(damaged)
        try:
            groups = compare.group_runs([compare.read_run(folder)])
            compare.score_rows(groups)
            compare.format_costs(groups)
            read_settings(folder)
        except InputError as error:
            assert str(folder) in str(error)
    finally:
        (folder / name).write_bytes(sound)
