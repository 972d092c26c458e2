"""Site profiles."""

import pathlib

import pytest

from scm_jax.sweeps.launchers.profiles import load_profile, seconds

EXAMPLE = pathlib.Path(__file__).parents[2] / "experiments/clusters/example.toml"


def load(tmp_path, text):
    path = tmp_path / "site.toml"
    path.write_text(text)
    return load_profile(path)


def test_the_example_is_a_profile():
    profile = load_profile(EXAMPLE)
    assert profile.slurm.options == ("--constraint=a100",)
    assert profile.resources_of("node4").nodes == 4
    assert profile.resources_of("") == profile.resources["default"]


def test_without_a_file_everything_has_its_default():
    assert load_profile("").resources_of("").nodes == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[slrum]", r"slrum: unknown key; legal: \['kubernetes', 'resources', 'slurm'"),
        ("[slurm]\npartiton = 'a'", r"slurm\.partiton: unknown key;.*partition"),
        ("[resources.big]\ngpu = 8", r"resources\.big\.gpu: unknown key.*'gpus'"),
        ("[resources.big]\ngpus = '8'", r"big\.gpus = '8': must be a whole number"),
        ("[resources.big]\ngpus = true", r"big\.gpus = True: must be a whole number"),
        ("[resources.big]\nnodes = 0", r"big\.nodes = 0: must be .* 1 or more"),
        ("[resources.big]\ntime = '60'", r"big\.time = '60' must be HH:MM:SS"),
        ("[slurm]\nsetup = 'a'", r"slurm\.setup = 'a': must be a list of texts"),
        ('[slurm]\naccount = "a\\nb"', r"slurm\.account = .*: must be one line"),
        ("[kubernetes]\nenvironment = ['A']", r"environment = .*: must be a table"),
        ("resources = 3", r"resources = 3: must be a table"),
        ("[slurm", "site.toml: "),
    ],
)
def test_what_is_wrong_is_named_with_file_and_key(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path, text)
    assert "site.toml" in str(caught.value)


def test_unknown_resources_are_named_with_the_legal_ones(tmp_path):
    profile = load(tmp_path, "[resources.small]\n[resources.big]\n")
    with pytest.raises(ValueError, match=r"'huge'.*\['big', 'small'\]"):
        profile.resources_of("huge")


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"--profile=no\.toml"):
        load_profile("no.toml")


def test_seconds():
    times = {"00:01:00": 60, "2-01:00:01": 176401, "100:00:00": 360000}
    assert {text: seconds(text) for text in times} == times
